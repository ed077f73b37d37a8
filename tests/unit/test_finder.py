"""What a client calls a LoRA: found where it may be, refused elsewhere in words that tell nothing of the machine."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.loras.catalogue import About, Catalogue
from gateway.loras.finder import Finder
from gateway.loras.places import open_file
from gateway.loras.shelf import Shelf
from shared.errors import BadInput, ConfigError, InvalidAdapter, SourceUnavailable, UnknownAdapter
from shared.store.hub import Hub
from shared.store.s3 import S3
from tests.elsewhere import Answer, Asked, playing
from tests.loras import lora, sha256, write

INK, OIL = lora("ink"), lora("oil")
ABOUT = About(name="My ink", family="sdxl", compatible_models=("sdxl",))


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "shelf", max_file_bytes=1 << 24, max_bytes=1 << 30)


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    return Catalogue(tmp_path / "catalogue", max_file_bytes=1 << 24, max_bytes=1 << 24)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    write(root / "ink.safetensors", INK)
    write(root / "bad.safetensors", b"nonsense" * 10)
    write(tmp_path / "outside.safetensors", OIL)
    return root


async def test_a_file_below_the_root_is_found_by_either_path(shelf: Shelf, catalogue: Catalogue, root: Path) -> None:
    finder = Finder(shelf, catalogue, root=root)
    for text in ("ink.safetensors", str(root / "ink.safetensors")):
        found = await finder.find(text, "lora_path")
        assert (found.sha256, found.path) == (sha256(INK), text)
        assert shelf.path(found.sha256).read_bytes() == INK


async def test_a_lora_of_the_catalogue_is_found_by_id_name_and_path(
    shelf: Shelf, catalogue: Catalogue, root: Path
) -> None:
    record = await catalogue.add(lambda: open_file(root / "ink.safetensors"), ABOUT, 0)
    finder = Finder(shelf, catalogue)
    for text in ("imported/my-ink", "My ink", str(catalogue.path(record))):
        assert (await finder.find(text, "lora_path")).sha256 == sha256(INK)
    await catalogue.add(lambda: open_file(root / "ink.safetensors"), ABOUT, 0)
    with pytest.raises(UnknownAdapter):
        await finder.find("My ink", "lora_path")


@pytest.mark.parametrize("text", ["../outside.safetensors", "{}/outside.safetensors", "{}/nothing.safetensors", "none"])
async def test_what_is_elsewhere_is_unknown_whether_it_is_there_or_not(
    shelf: Shelf, catalogue: Catalogue, root: Path, tmp_path: Path, text: str
) -> None:
    text = text.format(tmp_path)
    with pytest.raises(UnknownAdapter) as caught:
        await Finder(shelf, catalogue, root=root).find(text, "loras.0.path")
    assert caught.value.param == "loras.0.path"
    assert caught.value.message == (
        f"The LoRA '{text[:80]}' cannot be taken. There is no such LoRA file below the folder of LoRAs (lora_root)."
    )


async def test_a_file_that_is_none_is_told_by_name(shelf: Shelf, catalogue: Catalogue, root: Path) -> None:
    with pytest.raises(
        InvalidAdapter, match=r"^The LoRA 'bad.safetensors' cannot be taken. Its header claims"
    ) as caught:
        await Finder(shelf, catalogue, root=root).find("bad.safetensors", "lora_path")
    assert caught.value.param == "lora_path"


@pytest.mark.parametrize("text", ["", "x" * 3000])
async def test_what_can_be_no_name_is_a_bad_value(shelf: Shelf, catalogue: Catalogue, text: str) -> None:
    with pytest.raises(BadInput):
        await Finder(shelf, catalogue).find(text, "lora_path")


@pytest.mark.parametrize(
    "text", ["ink.safetensors", "/etc/passwd", "s3://bucket/x.safetensors", "org/name", "\ud800", "a\0b"]
)
async def test_nothing_is_found_unless_a_setting_allows_it(shelf: Shelf, catalogue: Catalogue, text: str) -> None:
    with pytest.raises(UnknownAdapter, match=r"lora_root|lora_s3"):
        await Finder(shelf, catalogue).find(text, "lora_path")


def test_a_root_that_is_no_folder_keeps_it_from_starting(shelf: Shelf, catalogue: Catalogue, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--lora-root"):
        Finder(shelf, catalogue, root=tmp_path / "none")


def test_what_is_not_installed_is_told_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, made, extra in (("shared.store.s3", S3, "s3"), ("shared.store.hub", Hub, "hub")):
        monkeypatch.setattr(f"{name}.find_spec", lambda _: None)
        with pytest.raises(ConfigError, match=rf"replicast\[{extra}\]"):
            made()


# S3, played; the real protocol is in tests/process/test_lora_s3.py


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


class Bucket:
    """One object, by ranges, and what goes wrong with it."""

    def __init__(self, content: bytes) -> None:
        self.content, self.etag, self.asked = content, '"one"', list[Asked]()
        self.wrong: dict[int, Answer] = {}

    def __call__(self, asked: Asked) -> Answer:
        self.asked.append(asked)
        if (wrong := self.wrong.pop(len(self.asked), None)) is not None:
            return wrong
        headers = {"etag": self.etag, "last-modified": "Tue, 21 Oct 2025 07:28:00 GMT"}
        if asked.path != "/bucket/styles/ink.safetensors":
            return Answer(404)
        if asked.headers.get("if-match", self.etag) != self.etag:
            return Answer(412)
        if "range" not in asked.headers:
            return Answer(200, self.content, headers)
        begin, end = map(int, asked.headers["range"].removeprefix("bytes=").split("-"))
        headers["content-range"] = f"bytes {begin}-{end}/{len(self.content)}"
        return Answer(206, self.content[begin : end + 1], headers)


NAME = "s3://bucket/styles/ink.safetensors"
BIG = lora("big", filler=10 << 20)


@pytest.fixture
def bucket() -> Bucket:
    return Bucket(BIG)


@pytest.fixture
def s3(shelf: Shelf, catalogue: Catalogue, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Finder]:
    with playing(bucket) as address:
        finder = Finder(shelf, catalogue, s3_prefixes=("bucket/styles",), s3_endpoint=address)
        monkeypatch.setattr(finder._s3, "_stall_seconds", 0.3)
        yield finder


async def test_an_object_is_fetched_once_and_then_only_looked_at(s3: Finder, shelf: Shelf, bucket: Bucket) -> None:
    found = await asyncio.gather(*(s3.find(NAME, "lora_path") for _ in range(5)))
    assert {each.sha256 for each in found} == {sha256(BIG)}
    assert shelf.path(found[0].sha256).read_bytes() == BIG
    # Two parts.
    assert sorted(asked.method for asked in bucket.asked) == ["GET"] * 2 + ["HEAD"] * 5
    bucket.content, bucket.etag = OIL, '"two"'
    assert (await s3.find(NAME, "lora_path")).sha256 == sha256(OIL)


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/ink.safetensors",
        "s3://bucket/stylesmore/ink.safetensors",
        "s3://other/styles/ink.safetensors",
        "s3://bucket/styles/notes.txt",
        "s3://bucket/styles/../ink.safetensors",
        "s3://bucket/styles//ink.safetensors",
        "s3://bucket",
        "s3:///styles/ink.safetensors",
    ],
)
async def test_other_objects_are_never_asked_for(s3: Finder, bucket: Bucket, text: str) -> None:
    with pytest.raises(UnknownAdapter):
        await s3.find(text, "lora_path")
    assert bucket.asked == []


@pytest.mark.parametrize("status", [403, 404])
async def test_what_is_not_there_or_not_for_us_is_unknown(s3: Finder, bucket: Bucket, status: int) -> None:
    for place in (1, 3):
        bucket.wrong[place] = Answer(status)
        with pytest.raises(UnknownAdapter, match="not there, or may not be read") as caught:
            await s3.find(NAME, "lora_path")
        assert "127.0.0.1" not in caught.value.message
    assert (await s3.find(NAME, "lora_path")).sha256 == sha256(BIG)


async def test_a_server_that_errs_now_and_then_is_asked_again(s3: Finder, bucket: Bucket) -> None:
    bucket.wrong = {1: Answer(503), 3: Answer(500), 5: Answer(206, BIG[8 << 20 :], {"etag": '"one"'}, cut=100)}
    bucket.wrong[5].headers["content-range"] = f"bytes {8 << 20}-{len(BIG) - 1}/{len(BIG)}"
    assert (await s3.find(NAME, "lora_path")).sha256 == sha256(BIG)


async def test_one_that_always_errs_is_told_in_bounded_time(s3: Finder, shelf: Shelf, bucket: Bucket) -> None:
    bucket.wrong = {place: Answer(503) for place in range(1, 100)}
    async with asyncio.timeout(20):
        with pytest.raises(SourceUnavailable, match="try again later") as caught:
            await s3.find(NAME, "lora_path")
    assert "127.0.0.1" not in caught.value.message
    assert len(bucket.asked) == 4


async def test_one_that_stalls_is_told_in_bounded_time(s3: Finder, shelf: Shelf, bucket: Bucket) -> None:
    end = threading.Event()
    range_ = f"bytes 0-{(8 << 20) - 1}/{len(BIG)}"
    held = Answer(206, BIG[: 8 << 20], {"etag": '"one"', "content-range": range_}, cut=1000, stall=end)
    bucket.wrong = dict.fromkeys(range(2, 100), held)
    try:
        async with asyncio.timeout(20):
            with pytest.raises(SourceUnavailable):
                await s3.find(NAME, "lora_path")
    finally:
        end.set()
    assert list(shelf.folder.iterdir()) == []


async def test_an_object_that_changes_meanwhile_is_told(s3: Finder, shelf: Shelf, bucket: Bucket) -> None:
    def changing(asked: Asked) -> Answer:
        answer = Bucket.__call__(bucket, asked)
        if asked.method == "GET":
            bucket.etag = '"two"'
        return answer

    with playing(changing) as address:
        finder = Finder(shelf, s3._catalogue, s3_prefixes=("bucket",), s3_endpoint=address)
        with pytest.raises(SourceUnavailable, match="changed while it was fetched"):
            await finder.find(NAME, "lora_path")
    assert list(shelf.folder.iterdir()) == []


async def test_a_server_that_takes_no_notice_of_the_condition_is_seen_through(
    s3: Finder, shelf: Shelf, bucket: Bucket
) -> None:
    def careless(asked: Asked) -> Answer:
        asked.headers.pop("if-match", None)
        answer = Bucket.__call__(bucket, asked)
        if asked.method == "GET":
            bucket.etag = '"two"'
        return answer

    with playing(careless) as address:
        finder = Finder(shelf, s3._catalogue, s3_prefixes=("bucket",), s3_endpoint=address)
        with pytest.raises(SourceUnavailable, match="changed while it was fetched"):
            await finder.find(NAME, "lora_path")


async def test_an_object_that_is_too_large_is_not_fetched(s3: Finder, bucket: Bucket) -> None:
    bucket.content = bytes(1 << 25)
    with pytest.raises(InvalidAdapter, match="lora_max_bytes"):
        await s3.find(NAME, "lora_path")
    assert [asked.method for asked in bucket.asked] == ["HEAD"]


# The hub, played: the real one cannot be reached from a test


class Repository:
    """A repository's files as the hub lists and serves them."""

    def __init__(self, **files: bytes) -> None:
        self.files = {name.replace("__", "."): content for name, content in files.items()}
        self.asked = list[Asked]()
        self.lie: bytes | None = None

    def __call__(self, asked: Asked) -> Answer:
        self.asked.append(asked)
        if asked.path.startswith("/api/models/org/styles?"):
            return Answer(200, json.dumps(self.listing()).encode(), {"content-type": "application/json"})
        place = "/org/styles/resolve/" + "c" * 40 + "/"
        if asked.path.startswith(place) and asked.path.removeprefix(place) in self.files:
            # The bytes themselves are elsewhere.
            return Answer(302, b"", {"location": f"/cdn/{asked.path.removeprefix(place)}"})
        if asked.path.startswith("/cdn/"):
            return Answer(200, self.lie or self.files[asked.path.removeprefix("/cdn/")])
        if "gated" in asked.path:
            return Answer(403, b"{}", {"x-error-code": "GatedRepo"})
        return Answer(404, b"{}", {"x-error-code": "RepoNotFound"})

    def listing(self) -> dict[str, Any]:
        siblings = [
            {
                "rfilename": name,
                "size": len(content),
                "lfs": {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 1},
            }
            for name, content in self.files.items()
        ]
        return {"id": "org/styles", "sha": "c" * 40, "siblings": siblings}


def hub(shelf: Shelf, catalogue: Catalogue, address: str, *repositories: str) -> Finder:
    return Finder(shelf, catalogue, repositories=repositories or ("org",), hub_endpoint=address)


async def test_a_repository_with_one_lora_is_its_name(shelf: Shelf, catalogue: Catalogue) -> None:
    repository = Repository(ink__safetensors=INK, README__md=b"text")
    with playing(repository) as address:
        finder = hub(shelf, catalogue, address)
        found = await finder.find("org/styles", "lora_path")
        assert found.sha256 == sha256(INK)
        before = len(repository.asked)
        # Its hash is known before a byte of it is fetched.
        await finder.find("org/styles:ink.safetensors", "lora_path")
    assert len(repository.asked) == before + 1
    assert shelf.path(found.sha256).read_bytes() == INK


async def test_of_several_the_usual_one_or_the_one_that_is_named(shelf: Shelf, catalogue: Catalogue) -> None:
    repository = Repository(a__safetensors=INK, b__safetensors=OIL)
    with playing(repository) as address:
        finder = hub(shelf, catalogue, address, "org/styles")
        with pytest.raises(UnknownAdapter, match="has 2 such"):
            await finder.find("org/styles", "lora_path")
        assert (await finder.find("org/styles:b.safetensors", "lora_path")).sha256 == sha256(OIL)
        repository.files["pytorch_lora_weights.safetensors"] = INK
        assert (await finder.find("org/styles", "lora_path")).sha256 == sha256(INK)
        with pytest.raises(UnknownAdapter):
            await finder.find("org/styles:c.safetensors", "lora_path")


async def test_only_what_may_be_named_is_asked_for(shelf: Shelf, catalogue: Catalogue) -> None:
    repository = Repository()
    with playing(repository) as address:
        finder = hub(shelf, catalogue, address, "org/other", "another")
        for text in ("org/styles", "else/styles", "org", "org/styles/more"):
            with pytest.raises(UnknownAdapter):
                await finder.find(text, "lora_path")
    assert repository.asked == []


@pytest.mark.parametrize("name", ["none", "gated"])
async def test_a_repository_that_is_not_there_or_not_for_us_is_unknown(
    shelf: Shelf, catalogue: Catalogue, name: str
) -> None:
    with playing(Repository()) as address, pytest.raises(UnknownAdapter, match="not there, or may not be read"):
        await hub(shelf, catalogue, address).find(f"org/{name}", "lora_path")


async def test_what_is_not_what_the_hub_announced_is_not_taken(shelf: Shelf, catalogue: Catalogue) -> None:
    repository = Repository(ink__safetensors=INK)
    with playing(repository) as address:
        for lie, error in ((OIL, SourceUnavailable), (INK[:-1], InvalidAdapter), (INK + b"x", InvalidAdapter)):
            repository.lie = lie
            with pytest.raises(error):
                await hub(shelf, catalogue, address).find("org/styles", "lora_path")
    assert sha256(INK) not in shelf


async def test_a_hub_that_cannot_be_reached_is_told(
    shelf: Shelf, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    with playing(Repository()) as address:
        pass
    with pytest.raises(SourceUnavailable, match="The hub cannot be reached"):
        await hub(shelf, catalogue, address).find("org/styles", "lora_path")
    with playing(lambda _: Answer(500)) as address:
        finder = hub(shelf, catalogue, address)
        with pytest.raises(SourceUnavailable, match="does not answer as it should"):
            await finder.find("org/styles", "lora_path")


async def test_being_offline_is_told(shelf: Shelf, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with playing(Repository(ink__safetensors=INK)) as address:
        finder = hub(shelf, catalogue, address)
        with pytest.raises(SourceUnavailable, match="HF_HUB_OFFLINE"):
            await finder.find("org/styles", "lora_path")
