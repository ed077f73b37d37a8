"""`replicast lora`: the LoRAs of a running server, on every replica or on none, and its catalogue of them."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any
from urllib.parse import quote

import typer

from gateway.cli_table import lines

app = typer.Typer(
    no_args_is_help=True, help="Set, merge and list LoRAs on a running server; keep its catalogue of them."
)

Url = Annotated[str | None, typer.Option(help="Server to tell; the one at the usual address without it.")]
Model = Annotated[str | None, typer.Option(help="Model that is meant; the server's first without it.")]
Target = Annotated[
    str | None, typer.Option(help="Part to act on: all, transformer, unet, text_encoder or text_encoder_2.")
]
Json = Annotated[bool, typer.Option("--json", help="Print what the server answers, as it is.")]

_NAMED = re.compile(r"(?P<name>[^=]+?)(=(?P<path>.+?))?(@(?P<scale>[+-]?\d+(\.\d+)?))?")


@app.command("set")
def set_loras(
    named: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME[=PATH][@SCALE]...", help="A nickname, where its file is, and how strongly it acts."
        ),
    ] = None,
    model: Model = None,
    target: Target = None,
    none: Annotated[bool, typer.Option("--none", help="Have no LoRA active.")] = False,
    if_epoch: Annotated[int | None, typer.Option(help="Only if this epoch holds, as `list` tells it.")] = None,
    wait: Annotated[str, typer.Option(help="Whom to wait for: all replicas, the first, or none.")] = "all",
    url: Url = None,
) -> None:
    """Have these LoRAs active in place of all that were: on every replica, or on none if one of them cannot.

    PATH is one below the server's --lora-root, or what else it takes; without it the nickname is known, or is one.
    """
    if bool(named) == none:
        raise typer.BadParameter("name the LoRAs, or say --none")
    found = [_parsed(text) for text in named or ()]
    body = {
        "lora_nickname": [name for name, _, _ in found],
        "lora_path": [path for _, path, _ in found],
        "strength": [scale for _, _, scale in found],
        "wait": wait,
    }
    optional = {"model": model, "if_epoch": if_epoch, "target": target and [target] * len(found)}
    _tell("/v1/set_lora", body | optional, url)


@app.command()
def merge(
    model: Model = None,
    scale: Annotated[float, typer.Option(help="How strongly, times what each was set with.")] = 1.0,
    target: Target = None,
    url: Url = None,
) -> None:
    """Merge what is active into the weights. Said twice it is the same as once."""
    _tell("/v1/merge_lora_weights", {"model": model, "strength": scale, "target": target}, url)


@app.command()
def unmerge(model: Model = None, url: Url = None) -> None:
    """Take what is merged out of the weights again, to the last bit; it stays active."""
    _tell("/v1/unmerge_lora_weights", {"model": model}, url)


@app.command("list")
def list_loras(
    model: Model = None,
    imported: Annotated[bool, typer.Option("--imported", help="The catalogue, instead of what is active.")] = False,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Say what is active, and how far each replica has followed."""
    from gateway.client import ask

    if imported:
        answer = ask("GET", "/v1/admin/loras", None, url)
        _print(answer) if as_json else _echo(_catalogue(answer["data"]))
        return
    answer = ask("GET", "/v1/list_loras" + (f"?model={quote(model, safe='')}" if model else ""), None, url)
    if as_json:
        _print(answer)
        return
    for view in answer.get("models") or [answer]:
        _echo(_state(view))


@app.command()
def inspect(
    path: Annotated[str, typer.Argument(help="A LoRA file below the server's --lora-root.")],
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Say what a LoRA file is: its rank, what it changes, whose family it is."""
    from gateway.client import ask

    answer = ask("POST", "/v1/admin/loras/inspect", {"source_path": path}, url)
    if as_json:
        _print(answer)
        return
    fields = (
        "family_guess",
        "confidence",
        "rank",
        "targets",
        "detected_modules",
        "trigger_words",
        "size_bytes",
        "sha256",
    )
    rows = [(name.replace("_", " "), _words(answer[name])) for name in fields]
    rows.append(("may fit", _words(answer["compatible_model_suggestions"])))
    _echo(lines(rows) + [f"! {warning}" for warning in answer["warnings"]])


@app.command("import")
def import_lora(
    path: Annotated[str, typer.Argument(help="A LoRA file below the server's --lora-root.")],
    name: Annotated[str, typer.Option(help="What it is to be called.")],
    family: Annotated[str | None, typer.Option(help="Its family; as `inspect` guesses without it.")] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="A model it fits, repeatable; as `inspect` suggests without it.")
    ] = None,
    trigger_word: Annotated[list[str] | None, typer.Option(help="A word that calls it up, repeatable.")] = None,
    scale: Annotated[float | None, typer.Option(help="How strongly it is meant to act.")] = None,
    description: Annotated[str, typer.Option(help="What it does.")] = "",
    source_url: Annotated[str, typer.Option(help="Where it comes from.")] = "",
    url: Url = None,
) -> None:
    """Copy a LoRA file into the server's catalogue, and print the id that it has there."""
    from gateway.client import ask

    if not family or not model or not trigger_word:
        seen = ask("POST", "/v1/admin/loras/inspect", {"source_path": path}, url)
        family = family or seen["family_guess"]
        model = model or seen["compatible_model_suggestions"]
        trigger_word = trigger_word or seen["trigger_words"]
    if not family or not model:
        raise typer.BadParameter("its family or a model it fits cannot be told from the file: say --family and --model")
    body = {
        "source_path": path,
        "name": name,
        "family": family,
        "compatible_models": model,
        "trigger_words": trigger_word,
        "default_strength": scale,
        "description": description,
        "source_url": source_url,
    }
    typer.echo(ask("POST", "/v1/admin/loras/import", body, url)["lora"]["id"])


@app.command("rm")
def remove(
    lora_id: Annotated[str, typer.Argument(metavar="ID", help="Its id, from `list --imported`.")], url: Url = None
) -> None:
    """Remove a LoRA from the server's catalogue, unless it is active."""
    from gateway.client import ask

    answer = ask("DELETE", f"/v1/admin/loras/{quote(lora_id, safe='')}", None, url)
    typer.echo(f"{answer['id']} is removed.")


def _parsed(text: str) -> tuple[str, str | None, float]:
    match = _NAMED.fullmatch(text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is no NAME, NAME=PATH or NAME=PATH@SCALE")
    return match["name"], match["path"], float(match["scale"] or 1.0)


def _tell(path: str, body: dict[str, Any], url: str | None) -> None:
    """Give an order and say what came of it."""
    from gateway.client import ask

    answer = ask("POST", path, {name: value for name, value in body.items() if value is not None}, url)
    typer.echo(answer["message"])
    if not answer["converged"]:
        late = [row["worker"] for row in answer["replicas"] if row["behind"]]
        typer.echo(f"Not every replica has it yet: {', '.join(late) or 'there is none'}; see `replicast lora list`")


def _state(view: dict[str, Any]) -> list[str]:
    """A model's LoRAs and its replicas, as a page to read."""
    wanted = view["wanted"]
    agreed = "every replica has it" if view["converged"] else "not every replica has it"
    said = [f"{view['model']}: epoch {wanted['epoch']}, {wanted['mode']}, {agreed}"]
    if wanted["adapters"]:
        factor = wanted.get("merge_scale", 1.0)
        active = [("  LORA", "SCALE", "TARGET", "SHA256")]
        active += [
            (f"  {each['name']}", f"{each['scale'] * factor:g}", each["target"], each["sha256"][:12])
            for each in wanted["adapters"]
        ]
        said += lines(active)
    else:
        said.append("  no LoRA is active")
    rows = [("  REPLICA", "STATE", "EPOCH", "FOLLOWED", "PROBLEM")]
    for row in view["replicas"]:
        problem = row.get("problem")
        rows.append(
            (
                f"  {row['worker']}",
                "quarantined" if row.get("quarantined") else row["state"].lower(),
                "-" if row["epoch"] is None else str(row["epoch"]),
                "no" if row["behind"] else "yes",
                f"{problem['code']}: {problem['detail']}" if problem else "-",
            )
        )
    said += lines(rows)
    if (last := view.get("last_command")) and last["status"] == "aborted":
        reasons = "; ".join(f"{worker}: {reason}" for worker, reason in last["reasons"].items())
        said += lines([(f"  epoch {last['epoch']} was called off: {reasons or 'nobody was there to ask'}",)])
    return said


def _catalogue(records: list[dict[str, Any]]) -> list[str]:
    if not records:
        return ["The catalogue is empty."]
    rows = [("ID", "NAME", "FAMILY", "RANK", "MODELS", "TRIGGER WORDS")]
    for record in records:
        models, words = _words(record["compatible_models"]), _words(record["trigger_words"])
        rows.append((record["id"], record["name"], record["family"], str(record["rank"]), models, words))
    return lines(rows)


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) or "-" if isinstance(value, list) else str(value) or "-"


def _echo(said: list[str]) -> None:
    for line in said:
        typer.echo(line)


def _print(answer: dict[str, Any]) -> None:
    typer.echo(json.dumps(answer, indent=2))
