"""The `replicast` command. A subcommand is one function; it imports what it needs when it runs: help is quick."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway import cli_lora, cli_token

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
app.add_typer(cli_lora.app, name="lora")
app.add_typer(cli_token.app, name="token")

_HOST = "127.0.0.1"
_PORT = 8000


def main() -> None:
    """Run the command; a wrong setting is one line and exit status 2, never a traceback."""
    from shared.errors import ReplicastError

    try:
        app()
    except ReplicastError as error:
        sys.stderr.write(f"replicast: {error.message}\n")
        sys.exit(2)


@app.callback()
def _replicast() -> None:
    """Diffusers pipelines from every GPU you have, behind one OpenAI-compatible address."""


Model = Annotated[
    list[str] | None,
    typer.Option(
        help="Model to serve, as [NAME=]SOURCE[?OPTION=VALUE]; SOURCE: shapes, stub, or a Diffusers folder. Repeatable."
    ),
]


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help=f"Address to listen on.  [default: {_HOST}]")] = None,
    port: Annotated[
        int | None, typer.Option(help=f"Port to listen on; 0 takes a free one.  [default: {_PORT}]")
    ] = None,
    num_gpus: Annotated[
        int | None, typer.Option(help="GPUs to use in all; without GPUs, replicas to start.  [default: all; 2]")
    ] = None,
    gpus_per_model: Annotated[int | None, typer.Option(help="GPUs of one replica.  [default: 1]")] = None,
    gpus: Annotated[str | None, typer.Option(help="GPUs to use, by index or UUID, separated by commas.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cuda, cpu, mps, or stub[:N].  [default: auto]")] = None,
    model: Model = None,
    config: Annotated[Path | None, typer.Option(help="Configuration file (TOML).")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder for all that is kept.")] = None,
    lora_root: Annotated[
        Path | None, typer.Option(help="Folder of LoRA files that clients may name, by their place in it.")
    ] = None,
    max_queue: Annotated[int | None, typer.Option(help="Waiting images per model before 429.  [default: 1000]")] = None,
    drain_seconds: Annotated[
        float | None, typer.Option(help="Time to finish running requests at shutdown.  [default: 30]")
    ] = None,
    public_url: Annotated[str | None, typer.Option(help="Where clients reach this server, if not at its host.")] = None,
    allow_anonymous: Annotated[
        bool | None, typer.Option("--allow-anonymous", help="Let in who has no key, from wherever this can be reached.")
    ] = None,
    enable_sdapi: Annotated[
        bool | None, typer.Option("--enable-sdapi", help="Answer AUTOMATIC1111's API too, under /sdapi/v1.")
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.  [default: info]")] = None,
    log_format: Annotated[str | None, typer.Option(help="text or json.  [default: text]")] = None,
) -> None:
    """Serve models until Ctrl-C or SIGTERM; a second one leaves at once.

    Every flag is also a REPLICAST_ variable and a key of the configuration file; gateway/README.md lists them all.
    """
    flags: dict[str, Any] = {name: value for name, value in locals().items() if name != "config"}
    if model is not None:
        flags["model"] = tuple(model)
    from gateway import settings
    from gateway.serve import serve

    raise typer.Exit(serve(settings.load(flags, config)))


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write; with --n, a number is added.")] = Path(
        "out.png"
    ),
    model: Annotated[str | None, typer.Option(help="Model to ask; the server's first without it.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the first picture; drawn without it.")] = None,
    n: Annotated[int, typer.Option("--n", "-n", help="Pictures to make.")] = 1,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT, or auto.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    url: Annotated[
        str | None,
        typer.Option(help="Server to ask; else the one at the usual address, or one for this call."),
    ] = None,
) -> None:
    """Make pictures: from a running server, or from one that is started for this call."""
    from gateway.client import Wish, generate

    wish = Wish(prompt=prompt, model=model, seed=seed, n=n, size=size, steps=steps)
    for path in generate(wish, output, url):
        typer.echo(path)


@app.command()
def scale(
    replicas: Annotated[int, typer.Argument(min=1, help="How many replicas there shall be.")],
    url: Annotated[str | None, typer.Option(help="Server to tell; the one at the usual address without it.")] = None,
) -> None:
    """Have more or fewer replicas on a running server; those that are too many finish their work first."""
    from gateway.client import scale

    for line in scale(replicas, url):
        typer.echo(line)


@app.command()
def doctor(
    port: Annotated[int, typer.Option(help="Port to look at.")] = _PORT,
    data_dir: Annotated[Path | None, typer.Option(help="Data folder to look at.")] = None,
) -> None:
    """Say what is wrong with this machine, if anything, and how to mend it."""
    from gateway.doctor import examine

    raise typer.Exit(examine(port, data_dir))


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version

    typer.echo(version("replicast"))
