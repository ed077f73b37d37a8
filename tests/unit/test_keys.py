"""The keys' file: what is kept in it, who may read it, and what becomes of it when two change it or it is broken."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gateway.keys import Key, KeyFile, Role, may
from shared.errors import BadInput, ConfigError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_key_is_kept_without_its_secret(tmp_path: Path) -> None:
    file = KeyFile(tmp_path)
    key, secret = file.create(Role.INFERENCE, "laptop", max_requests=2, images_per_minute=30)
    assert secret.startswith("rc_")
    assert len(secret) >= 46
    assert key.sha256 == hashlib.sha256(secret.encode()).hexdigest()
    assert file.read() == (key,)
    assert (key.name, key.role, key.max_requests, key.images_per_minute) == ("laptop", Role.INFERENCE, 2, 30)
    assert secret not in file.path.read_text()
    assert secret.removeprefix("rc_") not in file.path.read_text()


def test_only_the_owner_may_read_what_is_made(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        KeyFile(tmp_path / "new" / "folder").create(Role.ADMIN)
    finally:
        os.umask(old)
    folder = tmp_path / "new" / "folder"
    assert mode(folder) == 0o700
    assert {path.name: mode(path) for path in folder.iterdir()} == {"keys.json": 0o600, "keys.lock": 0o600}


def test_keys_are_listed_in_the_order_they_were_made_and_revoked_one_by_one(tmp_path: Path) -> None:
    file = KeyFile(tmp_path)
    first, second, third = (file.create(role)[0] for role in (Role.INFERENCE, Role.ADMIN, Role.METRICS))
    assert file.read() == (first, second, third)
    assert len({first.id, second.id, third.id}) == 3
    assert file.revoke(second.id) == file.read() == (first, third)
    with pytest.raises(BadInput, match="there is no key"):
        file.revoke(second.id)
    assert file.read() == (first, third)


def test_where_no_key_was_made_there_is_none(tmp_path: Path) -> None:
    assert KeyFile(tmp_path / "nowhere").read() == ()
    with pytest.raises(BadInput, match="there is no key"):
        KeyFile(tmp_path).revoke("key_1")


def test_a_change_replaces_the_file_whole(tmp_path: Path) -> None:
    file = KeyFile(tmp_path)
    file.create(Role.INFERENCE)
    before = file.path.stat().st_ino
    with file.path.open("rb") as reader:
        file.create(Role.INFERENCE)
        # Whoever had it open still reads the old one to its end.
        assert len(json.loads(reader.read())["keys"]) == 1
    assert file.path.stat().st_ino != before
    assert len(file.read()) == 2


def test_a_change_that_fails_leaves_the_keys_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = KeyFile(tmp_path)
    key, _ = file.create(Role.INFERENCE)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="No space left"):
        file.create(Role.INFERENCE)
    assert file.read() == (key,)
    assert {path.name for path in tmp_path.iterdir()} == {"keys.json", "keys.lock"}


def test_two_that_change_it_at_once_lose_nothing(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: KeyFile(tmp_path).create(Role.INFERENCE)[0].id, range(40)))
    assert sorted(key.id for key in KeyFile(tmp_path).read()) == sorted(made)


KEY = {"id": "key_1", "name": "", "role": "inference", "sha256": "0" * 64, "created": 1}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"keys": 1}',
        json.dumps({"keys": [KEY | {"role": "root"}]}).encode(),
        json.dumps({"keys": [KEY | {"sha256": "abc"}]}).encode(),
        json.dumps({"keys": [KEY | {"max_requests": 0}]}).encode(),
        json.dumps({"keys": [KEY | {"secret": "rc_very-secret"}]}).encode(),
        json.dumps({"keys": [{"id": "key_1"}]}).encode(),
    ],
)
def test_a_broken_file_is_told_and_never_overwritten(tmp_path: Path, content: bytes) -> None:
    file = KeyFile(tmp_path)
    file.path.write_bytes(content)
    for change in (file.read, lambda: file.create(Role.ADMIN), lambda: file.revoke("key_1")):
        with pytest.raises(ConfigError, match="does not hold keys: restore it") as told:
            change()
        assert "secret" not in told.value.message
    assert file.path.read_bytes() == content


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    file = KeyFile(tmp_path)
    file.path.mkdir()
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        file.read()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be changed"):
        KeyFile(tmp_path / "file").create(Role.ADMIN)


def test_nobody_leads_the_lock_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "keys.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="cannot be changed"):
        KeyFile(tmp_path).create(Role.ADMIN)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("name", ["x" * 65, "two\nlines", "\x1b[31m"])
def test_a_name_that_would_spoil_the_list_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match="--name"):
        KeyFile(tmp_path).create(Role.ADMIN, name)
    assert not KeyFile(tmp_path).read()


def test_roles_may_do_what_is_written_here() -> None:
    allowed = {(role.value, need.value) for role in Role for need in Role if may(role, need)}
    assert allowed == {
        ("inference", "inference"),
        ("metrics", "metrics"),
        ("worker", "worker"),
        ("admin", "admin"),
        ("admin", "inference"),
        ("admin", "metrics"),
    }


def test_a_key_cannot_be_changed(tmp_path: Path) -> None:
    key, _ = KeyFile(tmp_path).create(Role.INFERENCE)
    with pytest.raises(ValueError, match="frozen"):
        key.role = Role.ADMIN  # type: ignore[misc]
    assert isinstance(key, Key)
