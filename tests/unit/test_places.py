"""The files that clients may name: below the folder of LoRAs, and nothing else in the machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gateway.loras.places import open_below
from shared.errors import UnknownAdapter


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "loras"
    for name in ("ink.safetensors", "styles/oil.safetensors", "one/some.safetensors", "two/a.safetensors"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / "two/b.safetensors").write_text("b")
    (root / "usual").mkdir()
    for name in ("pytorch_lora_weights.safetensors", "other.safetensors"):
        (root / "usual" / name).write_text(name)
    (root / "notes.txt").write_text("notes")
    (root / "empty").mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.safetensors").write_text("secret")
    (tmp_path / "loras2").mkdir()
    (tmp_path / "loras2" / "ink.safetensors").write_text("a folder that begins with the same letters")
    # As the cache of the hub lays its files out.
    (root / "blobs").mkdir()
    (root / "blobs" / "abc").write_text("blob")
    (root / "within.safetensors").symlink_to("blobs/abc")
    (root / "out.safetensors").symlink_to(outside / "secret.safetensors")
    (root / "out").symlink_to(outside)
    (root / "loop.safetensors").symlink_to("loop.safetensors")
    os.mkfifo(root / "pipe.safetensors")
    (root / "folder.safetensors").mkdir()
    return root


def read(root: Path, name: str) -> str:
    with open_below(root, name) as file:
        return file.read().decode()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("ink.safetensors", "ink.safetensors"),
        ("./styles//oil.safetensors", "styles/oil.safetensors"),
        ("one", "one/some.safetensors"),
        ("one/", "one/some.safetensors"),
        ("usual", "pytorch_lora_weights.safetensors"),
        ("within.safetensors", "blob"),
    ],
)
def test_what_lies_below_is_opened(root: Path, name: str, content: str) -> None:
    assert read(root, name) == content
    assert read(root, str(root / name)) == content


def test_the_folder_itself_may_be_reached_by_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(root)
    assert read(tmp_path / "linked", "ink.safetensors") == "ink.safetensors"
    assert read(tmp_path / "linked", str(root / "ink.safetensors")) == "ink.safetensors"


OUTSIDE = (
    "../outside/secret.safetensors",
    "styles/../../outside/secret.safetensors",
    "../loras2/ink.safetensors",
    "{}/outside/secret.safetensors",
    "{}/outside/nothing.safetensors",
    "{}/outside",
    "{}/loras2/ink.safetensors",
    "out.safetensors",
    "out/secret.safetensors",
    "out/nothing.safetensors",
    "out",
    "/etc/passwd",
    "/nowhere.safetensors",
    "~/x.safetensors",
)
WRONG = (
    "",
    ".",
    "styles/../ink.safetensors",
    "ink",
    "notes.txt",
    "blobs/abc",
    "loop.safetensors",
    "pipe.safetensors",
    "folder.safetensors",
    "empty",
    "ink.safetensors\0.txt",
    "\0",
    "x" * 5000,
    "ink.safetensors/../../outside/secret.safetensors",
    "\udcff.safetensors",
)


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_lies_outside_is_refused_whether_it_is_there_or_not(root: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UnknownAdapter) as caught:
        read(root, name.format(tmp_path))
    assert caught.value.message == "there is no such LoRA file below the folder of LoRAs (lora_root)"


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_lora_file_is_refused(root: Path, name: str) -> None:
    with pytest.raises(UnknownAdapter):
        read(root, name)


def test_a_folder_with_several_asks_which(root: Path) -> None:
    with pytest.raises(UnknownAdapter, match="has 2"):
        read(root, "two")


def test_a_root_that_is_gone_holds_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnknownAdapter):
        read(tmp_path / "none", "ink.safetensors")


def test_a_link_that_is_laid_after_the_look_leads_nowhere(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the check and the opening somebody puts a link to elsewhere in the place of a folder."""
    real = Path.resolve

    def swapped(path: Path, strict: bool = False) -> Path:
        found = real(path, strict)
        if path.name == "oil.safetensors" and (root / "styles").is_dir() and not (root / "styles").is_symlink():
            (root / "styles").rename(root / "moved")
            (root / "styles").symlink_to(root.parent / "outside")
            (root.parent / "outside" / "oil.safetensors").write_text("secret")
        return found

    monkeypatch.setattr(Path, "resolve", swapped)
    with pytest.raises(UnknownAdapter):
        read(root, "styles/oil.safetensors")
    assert (root / "styles" / "oil.safetensors").read_text() == "secret"
