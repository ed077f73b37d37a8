"""The data folder: one owner at a time, and a term that only grows."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.home import Home
from shared.errors import ConfigError


def test_a_second_owner_is_refused_and_told_who_has_it(tmp_path: Path) -> None:
    with Home(tmp_path), pytest.raises(ConfigError, match=r"in use by a running gateway \(process \d+\)"):
        Home(tmp_path).__enter__()
    with Home(tmp_path):
        pass


def test_each_start_has_a_higher_number(tmp_path: Path) -> None:
    terms = []
    for _ in range(3):
        with Home(tmp_path / "new") as home:
            terms.append(home.next_term())
    assert terms == [1, 2, 3]
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"lock", "term"}


def test_a_broken_number_is_told_and_not_guessed(tmp_path: Path) -> None:
    (tmp_path / "term").write_text("many")
    with Home(tmp_path) as home, pytest.raises(ConfigError, match="does not hold a number"):
        home.next_term()


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--data-dir"):
        Home(tmp_path / "file" / "data").__enter__()


def test_each_data_folder_has_a_socket_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    a, b = Home(tmp_path / "a").socket_folder(), Home(tmp_path / "b").socket_folder()
    assert a != b
    assert a.parent == b.parent == Path("/run/user/7")
    assert a == Home(tmp_path / "a").socket_folder()


def test_the_secret_is_made_once_and_is_for_us_alone(tmp_path: Path) -> None:
    with Home(tmp_path / "a") as home:
        secret = home.secret()
        assert len(secret) == 32
        assert home.secret() == secret
    with Home(tmp_path / "a") as home:
        assert home.secret() == secret
        assert (home.folder / "secret").stat().st_mode & 0o777 == 0o600
    with Home(tmp_path / "b") as other:
        assert other.secret() != secret


def test_a_secret_that_lost_a_byte_is_told_and_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"s" * 31)
    with Home(tmp_path) as home, pytest.raises(ConfigError, match="restore it"):
        home.secret()
    assert (tmp_path / "secret").read_bytes() == b"s" * 31
