"""Who is let in: by which header, with which key, after which change of the file, and after how many tries."""

from __future__ import annotations

import base64
import hmac
import os
from pathlib import Path

import pytest

from gateway.auth import TRIES_PER_MINUTE, Auth, Caller, neighbourhood
from gateway.keys import KeyFile, Role
from gateway.rates import Rates
from shared.errors import ConfigError, InvalidKey, RateLimited, ReplicastError, WrongRole
from tests.unit.clock import Clock

HERE = "192.0.2.1"


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def made(file: KeyFile, clock: Clock | None = None, *, allow_anonymous: bool = False) -> Auth:
    return Auth(file, Rates(clock.time) if clock else Rates(), allow_anonymous=allow_anonymous)


def bearer(secret: str) -> list[bytes]:
    return [b"Bearer " + secret.encode()]


def basic(user: str, password: str) -> list[bytes]:
    return [b"Basic " + base64.b64encode(f"{user}:{password}".encode())]


def refusal(auth: Auth, shown: list[bytes], address: str = HERE) -> ReplicastError:
    with pytest.raises(ReplicastError) as refused:
        auth.caller(shown, address)
    return refused.value


# Which headers


def test_a_key_is_known_by_bearer_and_by_basic(file: KeyFile) -> None:
    key, secret = file.create(Role.INFERENCE, "laptop", max_requests=3)
    auth = made(file)
    expected = Caller(key.id, "laptop", Role.INFERENCE, key.id, 3, None)
    shown = secret.encode()
    spellings = [
        bearer(secret),
        [b"bearer " + shown],
        [b"BEARER   " + shown + b"  "],
        [b"Bearer\t" + shown],
        basic("", secret),
        basic("anybody", secret),
        basic(secret, ""),
        [b"Basic " + base64.b64encode(shown)],
        [b"", b"Bearer " + shown],
    ]
    for headers in spellings:
        assert auth.caller(headers, HERE) == expected, headers


@pytest.mark.parametrize("shown", [[], [b""], [b"  "], [b"Bearer"], [b"Bearer  "], [b"basic"], basic("", "")])
def test_a_header_with_no_key_in_it_is_no_try(file: KeyFile, shown: list[bytes]) -> None:
    file.create(Role.INFERENCE)
    for _ in range(2 * TRIES_PER_MINUTE):
        error = refusal(made(file), shown)
        assert isinstance(error, InvalidKey)
        assert "is needed" in error.message
    assert made(file, allow_anonymous=True).caller(shown, HERE).role is Role.INFERENCE


def test_what_is_not_exactly_one_right_key_is_wrong(file: KeyFile) -> None:
    _, secret = file.create(Role.INFERENCE)
    shown = secret.encode()
    wrong = [
        bearer("none"),
        bearer(secret[:-1]),
        bearer(secret + "x"),
        bearer(secret.swapcase()),
        bearer(f"{secret} {secret}"),
        bearer(f"{secret}, {secret}"),
        bearer(f'"{secret}"'),
        bearer("é"),
        ["Bearer é".encode("latin-1")],
        [b"Bearer \xff\xfe\x00"],
        [b"Bearer " + b"x" * 60_000],
        [b"Bearer " + b"0" * 64],
        [shown],
        [b"Digest " + shown],
        [b"Token " + shown],
        [b"Bearer:" + shown],
        basic(secret, "other"),
        basic("user", "é"),
        [b"Basic " + shown],
        [b"Basic \xff"],
        [b"Basic ===="],
        [*bearer(secret), *bearer(secret)],
        [*bearer("none"), *bearer(secret)],
        [*bearer(secret), b"Bearer"],
    ]
    for headers in wrong:
        # A new one each time: nobody runs out of tries.
        error = refusal(made(file, allow_anonymous=True), headers)
        assert isinstance(error, InvalidKey), headers
        assert error.message == "The API key is not valid."


def test_secrets_are_compared_as_bytes_in_constant_time(file: KeyFile, monkeypatch: pytest.MonkeyPatch) -> None:
    _, secret = file.create(Role.INFERENCE)
    auth = made(file)
    compared: list[tuple[object, object]] = []
    real = hmac.compare_digest

    def compare(left: bytes, right: bytes) -> bool:
        compared.append((left, right))
        return real(left, right)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    auth.caller(bearer(secret), HERE)
    refusal(auth, bearer("é"))
    assert len(compared) == 2
    assert all(isinstance(side, bytes) for pair in compared for side in pair)
    assert len(compared[0][0]) == 32  # type: ignore[arg-type]


# Which keys, and when


def test_before_the_first_key_everybody_may_do_everything(file: KeyFile) -> None:
    auth = made(file)
    for shown in ([], bearer("none"), [b"nonsense", b"twice"]):
        assert auth.caller(shown, HERE) == Caller(None, "anonymous", Role.ADMIN, HERE)


def test_a_key_that_is_made_or_revoked_counts_from_the_next_request_on(file: KeyFile) -> None:
    auth = made(file)
    assert auth.caller([], HERE).role is Role.ADMIN
    first, secret = file.create(Role.INFERENCE)
    assert isinstance(refusal(auth, []), InvalidKey)
    assert auth.caller(bearer(secret), HERE).key_id == first.id
    second, other = file.create(Role.METRICS)
    assert auth.caller(bearer(other), HERE).key_id == second.id
    file.revoke(first.id)
    assert refusal(auth, bearer(secret)).message == refusal(auth, bearer("none")).message
    assert auth.caller(bearer(other), HERE).role is Role.METRICS


def test_the_last_key_that_is_revoked_opens_nothing(file: KeyFile) -> None:
    auth = made(file)
    key, secret = file.create(Role.INFERENCE)
    auth.caller(bearer(secret), HERE)
    file.revoke(key.id)
    for seen in (auth, made(file)):
        assert isinstance(refusal(seen, []), InvalidKey)
        assert isinstance(refusal(seen, bearer(secret)), InvalidKey)
    file.path.unlink()
    # Gone, say, with the disk it was on: only a new start believes it.
    assert isinstance(refusal(auth, []), InvalidKey)
    assert made(file).caller([], HERE).role is Role.ADMIN


def test_a_file_that_breaks_while_we_run_changes_nothing(file: KeyFile) -> None:
    _, secret = file.create(Role.INFERENCE)
    auth = made(file)
    content = file.path.read_bytes()
    file.path.write_bytes(b"{")
    assert auth.caller(bearer(secret), HERE).role is Role.INFERENCE
    assert isinstance(refusal(auth, []), InvalidKey)
    file.path.write_bytes(content.replace(b"inference", b"metrics"))
    assert auth.caller(bearer(secret), HERE).role is Role.METRICS
    file.path.write_bytes(b"{")
    with pytest.raises(ConfigError):
        made(file)


def test_a_change_that_could_not_be_read_at_first_is_read_later(file: KeyFile, monkeypatch: pytest.MonkeyPatch) -> None:
    key, secret = file.create(Role.INFERENCE)
    auth = made(file)
    file.revoke(key.id)

    def out_of_descriptors(_: Path) -> bytes:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", out_of_descriptors)
        for _ in range(3):
            assert auth.caller(bearer(secret), HERE).key_id == key.id
    assert isinstance(refusal(auth, bearer(secret)), InvalidKey)


def test_the_file_is_read_when_it_has_changed_and_not_otherwise(file: KeyFile) -> None:
    class Counted(KeyFile):
        reads = 0

        def read(self):  # type: ignore[no-untyped-def]
            Counted.reads += 1
            return super().read()

    _, secret = file.create(Role.INFERENCE)
    auth = made(Counted(file.path.parent))
    for _ in range(10):
        auth.caller(bearer(secret), HERE)
    assert Counted.reads == 1
    os.utime(file.path, ns=(1, 1))
    auth.caller(bearer(secret), HERE)
    assert Counted.reads == 2


# Which roles


def test_a_role_that_may_not_is_told_so_and_who_shows_no_key_is_asked_for_one(file: KeyFile) -> None:
    secrets = {role: file.create(role)[1] for role in Role}
    auth = made(file, allow_anonymous=True)
    assert auth.admit(bearer(secrets[Role.ADMIN]), HERE, Role.METRICS).role is Role.ADMIN
    for role, need in ((Role.INFERENCE, Role.METRICS), (Role.WORKER, Role.INFERENCE), (Role.ADMIN, Role.WORKER)):
        with pytest.raises(WrongRole, match=need.value):
            auth.admit(bearer(secrets[role]), HERE, need)
    assert auth.admit([], HERE, Role.INFERENCE).role is Role.INFERENCE
    with pytest.raises(InvalidKey, match="metrics"):
        auth.admit([], HERE, Role.METRICS)


# How many tries


def test_wrong_keys_from_one_address_are_limited_and_right_ones_never(file: KeyFile, clock: Clock) -> None:
    _, secret = file.create(Role.INFERENCE)
    auth = made(file, clock)
    errors = [refusal(auth, bearer(f"guess{number}")) for number in range(1000)]
    assert all(isinstance(error, InvalidKey) for error in errors[:TRIES_PER_MINUTE])
    assert all(isinstance(error, RateLimited) for error in errors[TRIES_PER_MINUTE:])
    assert errors[-1].retry_after_seconds == 60
    # Whoever shares its address, behind a proxy for example, is not locked out; nor is any other address.
    assert auth.caller(bearer(secret), HERE).role is Role.INFERENCE
    assert isinstance(refusal(auth, []), InvalidKey)
    assert isinstance(refusal(auth, bearer("x"), "192.0.2.2"), InvalidKey)
    clock.now += 45
    assert refusal(auth, bearer("x")).retry_after_seconds == 15
    clock.now += 16
    assert isinstance(refusal(auth, bearer("x")), InvalidKey)


def test_the_addresses_of_one_network_try_together(file: KeyFile, clock: Clock) -> None:
    file.create(Role.INFERENCE)
    auth = made(file, clock)
    for number in range(TRIES_PER_MINUTE):
        refusal(auth, bearer("x"), f"2001:db8::{number:x}")
    assert isinstance(refusal(auth, bearer("x"), "2001:db8::ffff"), RateLimited)
    assert isinstance(refusal(auth, bearer("x"), "2001:db8:0:1::1"), InvalidKey)


@pytest.mark.parametrize(
    ("address", "counted_as"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::1", "::/64"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unknown", "unknown"),
        ("no:address", "no:address"),
    ],
)
def test_a_network_is_counted_as_one(address: str, counted_as: str) -> None:
    assert neighbourhood(address) == counted_as
