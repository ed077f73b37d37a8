"""`replicast token`: makes, lists and revokes API keys; a gateway that runs on the data folder follows at once."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gateway.cli_table import lines

if TYPE_CHECKING:
    from gateway.keys import KeyFile

app = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys.")

DataDir = Annotated[Path | None, typer.Option(help="Folder of the gateway, as given to serve.")]


@app.command()
def create(
    role: Annotated[
        Literal["inference", "admin", "worker", "metrics"], typer.Option(help="What the key is for.", show_choices=True)
    ],
    name: Annotated[str, typer.Option(help="Whose it is, for the list.")] = "",
    max_requests: Annotated[int | None, typer.Option(min=1, help="Requests it may have in flight.")] = None,
    images_per_minute: Annotated[int | None, typer.Option(min=1, help="Images it may ask for in a minute.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Make a key. Its secret is the last word that is printed, and is not kept: nobody can show it again."""
    from gateway.keys import Role

    key, secret = _file(data_dir).create(
        Role(role), name, max_requests=max_requests, images_per_minute=images_per_minute
    )
    typer.echo(f"{key.id} may do what {key.role.value} may. Keep its secret now; it is not shown again:")
    typer.echo(secret)


@app.command("list")
def list_keys(data_dir: DataDir = None) -> None:
    """List the keys, oldest first; secrets are not kept and so not shown."""
    keys = _file(data_dir).read()
    if not keys:
        typer.echo("There is no key.")
        return
    rows = [("ID", "ROLE", "CREATED", "REQUESTS", "IMAGES/MIN", "NAME")]
    rows += [
        (
            key.id,
            key.role.value,
            datetime.fromtimestamp(key.created, UTC).strftime("%Y-%m-%d %H:%M UTC"),
            str(key.max_requests or "-"),
            str(key.images_per_minute or "-"),
            key.name or "-",
        )
        for key in keys
    ]
    for line in lines(rows):
        typer.echo(line)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, from the list.")], data_dir: DataDir = None
) -> None:
    """Take a key away: from the next request on it is worth nothing."""
    file = _file(data_dir)
    left = file.revoke(key_id)
    typer.echo(f"{key_id} is revoked.")
    if not left:
        typer.echo(
            f"It was the last: nobody is let in now. To need no keys again, stop the gateway and remove {file.path}"
        )


def _file(data_dir: Path | None) -> KeyFile:
    from gateway import settings
    from gateway.keys import KeyFile

    return KeyFile(settings.load({"data_dir": data_dir}).data_dir)
