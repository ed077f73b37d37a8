"""`replicast lora` against a scripted server: what it sends for what is typed, and how it shows what comes back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from gateway.cli import app
from shared.errors import BadInput, InvalidKey, NotReady
from tests.elsewhere import Answer, Asked, playing

ROW = {"worker": "gpu0", "state": "READY", "behind": False, "epoch": 12, "quarantined": False, "problem": None}
LATE = ROW | {"worker": "lab\x1b[2J", "behind": True, "epoch": 11}
LOST = ROW | {
    "worker": "gpu3",
    "state": "gone",
    "epoch": None,
    "behind": True,
    "quarantined": True,
    "problem": {"code": "out_of_memory", "detail": "layer 41"},
}
VIEW = {
    "model": "sdxl",
    "wanted": {
        "epoch": 12,
        "digest": "9f",
        "mode": "merged",
        "merge_scale": 0.5,
        "adapters": [{"name": "ink", "sha256": "ab" * 32, "scale": 0.7, "target": "all"}],
    },
    "converged": False,
    "replicas": [ROW, LATE, LOST],
    "pending": None,
    "last_command": {"epoch": 13, "status": "aborted", "reasons": {"gpu0": "NaN in lora_B of block 7"}},
}
DONE = {"message": "Loaded LoRA adapter(s): ink", "converged": True, "replicas": [ROW]}
RECORD = {
    "id": "imported/ink",
    "name": "Ink",
    "family": "sdxl",
    "rank": 4,
    "compatible_models": ["sdxl"],
    "trigger_words": [],
}
SEEN = {
    "family_guess": "sdxl",
    "confidence": 0.9,
    "rank": 4,
    "targets": ["to_k", "to_q"],
    "detected_modules": ["unet"],
    "trigger_words": ["ink"],
    "size_bytes": 1234,
    "sha256": "ab" * 32,
    "compatible_model_suggestions": ["sdxl"],
    "warnings": ["It names no trigger words."],
}


class Server:
    """Answers by method and path, and keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.asked: list[tuple[str, Any]] = []
        self.status = 200

    def __call__(self, asked: Asked) -> Answer:
        name = f"{asked.method} {asked.path}"
        self.asked.append((name, json.loads(asked.body) if asked.body else None))
        return Answer(self.status, json.dumps(self.answers.get(name, DONE)).encode())


@pytest.fixture
def server() -> Server:
    return Server()


Run = Callable[..., str]


@pytest.fixture
def lora(server: Server) -> Iterator[Run]:
    """Runs the command to its good end; what it printed."""
    with playing(server) as address:

        def run(*args: str) -> str:
            ended = CliRunner().invoke(app, ["lora", *args, "--url", address])
            if ended.exception is not None and not isinstance(ended.exception, SystemExit):
                raise ended.exception
            assert ended.exit_code == 0, ended.output
            return str(ended.output)

        yield run


@pytest.mark.parametrize(
    ("args", "names", "paths", "strengths"),
    [
        (["ink"], ["ink"], [None], [1.0]),
        (["ink@0.7"], ["ink"], [None], [0.7]),
        (["ink=styles/ink.safetensors"], ["ink"], ["styles/ink.safetensors"], [1.0]),
        (
            ["ink=a.safetensors@-0.5", "oil=s3://b/k.safetensors@2"],
            ["ink", "oil"],
            ["a.safetensors", "s3://b/k.safetensors"],
            [-0.5, 2.0],
        ),
        (["a b=x@y/z.safetensors"], ["a b"], ["x@y/z.safetensors"], [1.0]),
        (["ink=org/name:a=b.safetensors@1.25"], ["ink"], ["org/name:a=b.safetensors"], [1.25]),
        (["ink@0"], ["ink"], [None], [0.0]),
        (["imported/ink@1"], ["imported/ink"], [None], [1.0]),
        (["--none"], [], [], []),
    ],
)
def test_what_is_set(
    server: Server, lora: Run, args: list[str], names: list[str], paths: list[str | None], strengths: list[float]
) -> None:
    assert lora("set", *args) == "Loaded LoRA adapter(s): ink\n"
    body = {"lora_nickname": names, "lora_path": paths, "strength": strengths, "wait": "all"}
    assert server.asked == [("POST /v1/set_lora", body)]


def test_what_may_be_said_besides(server: Server, lora: Run) -> None:
    lora("set", "a", "b", "--model", "org/m", "--target", "unet", "--if-epoch", "7", "--wait", "none")
    [(_, body)] = server.asked
    assert body["target"] == ["unet", "unet"]
    assert (body["model"], body["if_epoch"], body["wait"]) == ("org/m", 7, "none")


@pytest.mark.parametrize("args", [["set"], ["set", "ink", "--none"], ["set", "=x"], ["set", ""]])
def test_what_makes_no_sense_is_not_sent(server: Server, args: list[str]) -> None:
    ended = CliRunner().invoke(app, ["lora", *args, "--url", "http://127.0.0.1:1"])
    assert ended.exit_code == 2
    assert "Usage" in ended.output


def test_merge_and_unmerge(server: Server, lora: Run) -> None:
    lora("merge")
    lora("merge", "--scale", "0.5", "--target", "unet", "--model", "m")
    lora("unmerge", "--model", "m")
    assert server.asked == [
        ("POST /v1/merge_lora_weights", {"strength": 1.0}),
        ("POST /v1/merge_lora_weights", {"strength": 0.5, "target": "unet", "model": "m"}),
        ("POST /v1/unmerge_lora_weights", {"model": "m"}),
    ]


def test_who_is_late_is_told(server: Server, lora: Run) -> None:
    server.answers["POST /v1/set_lora"] = DONE | {"converged": False, "replicas": [ROW, LOST]}
    assert "Not every replica has it yet: gpu3" in lora("set", "ink")


def test_the_list_is_a_table_to_read(server: Server, lora: Run) -> None:
    server.answers["GET /v1/list_loras?model=org%2Fm"] = VIEW
    assert lora("list", "--model", "org/m").splitlines() == [
        "sdxl: epoch 12, merged, not every replica has it",
        "  LORA  SCALE  TARGET  SHA256",
        "  ink   0.35   all     abababababab",
        "  REPLICA  STATE        EPOCH  FOLLOWED  PROBLEM",
        "  gpu0     ready        12     yes       -",
        "  lab?[2J  ready        11     no        -",
        "  gpu3     quarantined  -      no        out_of_memory: layer 41",
        "  epoch 13 was called off: gpu0: NaN in lora_B of block 7",
    ]


def test_several_models_are_listed_each_and_json_as_it_came(server: Server, lora: Run) -> None:
    bare = VIEW | {"model": "b", "converged": True, "last_command": None, "replicas": [ROW]}
    bare["wanted"] = {"epoch": 0, "digest": "", "mode": "attached", "adapters": []}
    whole = VIEW | {"models": [VIEW, bare]}
    server.answers["GET /v1/list_loras"] = whole
    assert lora("list").splitlines()[-4:] == [
        "b: epoch 0, attached, every replica has it",
        "  no LoRA is active",
        "  REPLICA  STATE  EPOCH  FOLLOWED  PROBLEM",
        "  gpu0     ready  12     yes       -",
    ]
    assert json.loads(lora("list", "--json")) == whole


def test_the_catalogue(server: Server, lora: Run) -> None:
    server.answers |= {"GET /v1/admin/loras": {"data": []}}
    assert lora("list", "--imported") == "The catalogue is empty.\n"
    server.answers |= {"GET /v1/admin/loras": {"data": [RECORD]}}
    assert lora("list", "--imported").splitlines() == [
        "ID            NAME  FAMILY  RANK  MODELS  TRIGGER WORDS",
        "imported/ink  Ink   sdxl    4     sdxl    -",
    ]
    server.answers |= {"DELETE /v1/admin/loras/imported%2Fink": {"id": "imported/ink"}}
    assert lora("rm", "imported/ink") == "imported/ink is removed.\n"


def test_a_file_is_inspected(server: Server, lora: Run) -> None:
    server.answers["POST /v1/admin/loras/inspect"] = SEEN
    said = lora("inspect", "a.safetensors").splitlines()
    assert said[0].split() == ["family", "guess", "sdxl"]
    assert "targets           to_k, to_q" in said
    assert said[-1] == "! It names no trigger words."
    assert json.loads(lora("inspect", "a.safetensors", "--json")) == SEEN
    assert server.asked[0] == ("POST /v1/admin/loras/inspect", {"source_path": "a.safetensors"})


def test_what_is_not_said_of_an_import_is_looked_up(server: Server, lora: Run) -> None:
    server.answers["POST /v1/admin/loras/inspect"] = SEEN
    server.answers["POST /v1/admin/loras/import"] = {"lora": RECORD}
    assert lora("import", "a.safetensors", "--name", "Ink", "--scale", "0.8") == "imported/ink\n"
    body = {
        "source_path": "a.safetensors",
        "name": "Ink",
        "family": "sdxl",
        "compatible_models": ["sdxl"],
        "trigger_words": ["ink"],
        "default_strength": 0.8,
        "description": "",
        "source_url": "",
    }
    assert server.asked[-1] == ("POST /v1/admin/loras/import", body)
    more = ("--family", "z-image", "--model", "a", "--model", "b", "--trigger-word", "x", "--description", "d")
    lora("import", "a.safetensors", "--name", "Ink", *more)
    assert len(server.asked) == 3
    assert server.asked[-1][1]["compatible_models"] == ["a", "b"]


def test_what_cannot_be_looked_up_has_to_be_said(server: Server) -> None:
    server.answers["POST /v1/admin/loras/inspect"] = SEEN | {"family_guess": ""}
    with playing(server) as address:
        ended = CliRunner().invoke(app, ["lora", "import", "a", "--name", "x", "--url", address])
    assert ended.exit_code == 2
    assert "--family" in ended.output


@pytest.mark.parametrize(("status", "error"), [(409, BadInput), (401, InvalidKey), (503, NotReady)])
def test_a_refusal_is_told_in_the_servers_words(server: Server, lora: Run, status: int, error: type[Exception]) -> None:
    server.status = status
    server.answers["POST /v1/set_lora"] = {"error": {"message": "gpu0 cannot take it: NaN"}}
    with pytest.raises(error, match="key" if status == 401 else "gpu0 cannot take it: NaN"):
        lora("set", "ink")
