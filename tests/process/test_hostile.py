"""Whatever arrives on the workers' socket, the gateway serves on; and no secret of theirs is seen anywhere."""

from __future__ import annotations

import os
import random
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgpack
import psutil
import pytest
import zmq

from shared import wire
from shared.messages import (
    Ack,
    Bye,
    Device,
    Done,
    Hello,
    ImageFacts,
    Message,
    Progress,
    Reject,
    Timings,
    Wanted,
    Welcome,
)
from tests.server import Serve, Server, until

DEVICE = Device(kind="stub", names=("0",))
STAMP = {"stamp": [0, "", "", 1], "parts": []}


@pytest.fixture(scope="module")
def server(serve_for_all: Serve) -> Server:
    """One server that all the tests below attack, one after the other."""
    return serve_for_all(
        "--device", "stub:2", restart_limit=50, restart_backoff_seconds=0.05, log_level="debug", ping_seconds=0.2
    )


@pytest.fixture(autouse=True)
def _serves_on(server: Server) -> Iterator[None]:
    """Whatever a test has done: the server answers and draws, and its log is free of tracebacks."""
    yield
    until(server.whole, "every worker is ready")
    server.draw(prompt="still here")
    assert "Traceback" not in server.log
    assert server.event("task_restarted") == 0


def hub(server: Server) -> Path:
    """The socket that its workers dial."""
    [path] = server.runtime.glob("replicast-*/hub")
    return path


class Peer:
    """Somebody who has found the socket."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], server: Server) -> None:
        self._socket = context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 1000)
        self._socket.connect(f"ipc://{hub(server)}")
        self.session, self._seq = "", 0

    def send(self, *frames: bytes) -> None:
        self._socket.send_multipart(frames)

    def say(self, message: Message, *attachments: bytes, seq: int | None = None) -> None:
        self._seq += 1
        stamp = wire.Stamp(0, "f00d", self.session, self._seq if seq is None else seq)
        self._socket.send_multipart(wire.pack(message, stamp, attachments))

    def hear(self) -> Message:
        assert self._socket.poll(10_000), "no answer"
        return wire.unpack(self._socket.recv_multipart()).message

    def close(self) -> None:
        self._socket.close()


@contextmanager
def peers(server: Server, count: int = 1) -> Iterator[list[Peer]]:
    with zmq.Context() as context:
        made = [Peer(context, server) for _ in range(count)]
        try:
            yield made
        finally:
            for peer in made:
                peer.close()


def hello(name: str = "stub0", token: str = "wrong", protocol: int = 1) -> Hello:
    return Hello(protocol=protocol, name=name, token=token, incarnation="f00d", slots=1, pid=1, host="x", device=DEVICE)


def token_of(server: Server, name: str) -> str:
    """The token that a worker was started with, which only its own user can look up."""
    return psutil.Process(server.workers()[name]).environ()["REPLICAST_WORKER_TOKEN"]


GARBAGE = {
    "nothing": [b""],
    "noise": [bytes(range(256))],
    "a nil": [msgpack.packb(None)],
    "a list": [msgpack.packb([1, 2, 3])],
    "an empty map": [msgpack.packb({})],
    "no such type": [msgpack.packb({"type": "Nonsense", **STAMP})],
    "a type of a type": [msgpack.packb({"type": ["Hello"], **STAMP})],
    "no fields": [msgpack.packb({"type": "Done", **STAMP})],
    "no stamp": [msgpack.packb({"type": "Bye", "reason": "x", "parts": []})],
    "a stamp of words": [msgpack.packb({"type": "Bye", "reason": "x", "stamp": ["a"] * 4, "parts": []})],
    "parts that are not there": [msgpack.packb({"type": "Bye", "reason": "x", "stamp": [0, "", "", 1], "parts": [9]})],
    "parts below nothing": [msgpack.packb({"type": "Bye", "reason": "x", "stamp": [0, "", "", 1], "parts": [-1]}), b""],
    "frames nobody spoke of": [msgpack.packb({"type": "Bye", "reason": "x", **STAMP}), b"x", b"y"],
    "numbers as keys": [msgpack.packb({1: 2})],
    "bytes as keys": [msgpack.packb({b"type": b"Bye"})],
    "an extension": [msgpack.packb({"type": msgpack.ExtType(42, b"x" * 100)})],
    "a moment": [msgpack.packb({"type": msgpack.Timestamp(1)})],
    "bad text": [b"\x81\xa4type\xa3\xff\xfe\xfd"],
    "a promise of four billion entries": [b"\xdf\xff\xff\xff\xff"],
    "a promise of four gigabytes": [b"\xc6\xff\xff\xff\xff"],
    "a deep list": [b"\x91" * 100_000],
    "a deep map": [b"\x81\xa1a" * 100_000],
    "a header over its limit": [msgpack.packb({"type": "Bye", "reason": "x" * (2 << 20), **STAMP})],
    "ten thousand frames": [msgpack.packb({"type": "Bye", "reason": "x", **STAMP})] + [b""] * 10_000,
    "eight megabytes": [b"\0" * (8 << 20)],
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_what_is_no_message_is_counted_and_forgotten(server: Server, kind: str) -> None:
    workers, before = server.workers(), server.event("wire_error")
    with peers(server) as [peer]:
        peer.send(*GARBAGE[kind])
        until(lambda: server.event("wire_error") == before + 1, "it is counted")
    assert server.workers() == workers


def test_a_flood_of_noise_does_not_deafen_the_gateway(server: Server) -> None:
    dice, before = random.Random(0), server.event("wire_error")
    with peers(server, 10) as crowd:
        for _ in range(200):
            for peer in crowd:
                peer.send(*(dice.randbytes(dice.randrange(200)) for _ in range(dice.randrange(1, 4))))
        server.draw(prompt="in the noise")
        until(lambda: server.event("wire_error") == before + 2000, "all of it is counted")
    assert server.whole()


def test_what_does_not_even_speak_zmq_is_let_go(server: Server) -> None:
    dice = random.Random(0)
    for _ in range(100):
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(str(hub(server)))
            # It may hang up in the middle of what it is told.
            try:
                raw.sendall(dice.randbytes(dice.randrange(1, 300)))
            except (BrokenPipeError, ConnectionResetError):
                continue
    assert server.whole()


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (hello(token="wrong"), "forbidden"),
        (hello(token=""), "forbidden"),
        (hello(token="f\u00fcr dich"), "forbidden"),
        (hello(name="nobody"), "forbidden"),
        (hello(name="\x1b[31m" + "n" * 100_000), "forbidden"),
        (hello(protocol=0), "protocol"),
        (hello(protocol=2**63), "protocol"),
    ],
    ids=["wrong-token", "no-token", "strange-token", "unknown-name", "endless-name", "old", "new"],
)
def test_a_stranger_is_rejected_and_told_why(server: Server, said: Hello, code: str) -> None:
    workers, before = server.workers(), server.event("worker_rejected")
    with peers(server) as [peer]:
        peer.say(said)
        answer = peer.hear()
    assert isinstance(answer, Reject)
    assert answer.code == code
    if code == "protocol":
        assert "1" in answer.message
        assert str(said.protocol) in answer.message
    assert server.event("worker_rejected") == before + 1
    assert server.workers() == workers


def test_what_a_stranger_says_of_others_changes_nothing(server: Server) -> None:
    facts = ImageFacts(seed=1, width=512, height=512, format="png", bytes=4)
    messages = [
        Done(job="any", attempt=1, images=(facts,), timings=Timings()),
        Ack(version=1, outcomes=()),
        Progress(job="any", attempt=1, step=1, total=4),
        Bye(reason="now"),
        Welcome(session="1-1", wanted=Wanted(version=99, models=()), ping_seconds=0.001),
    ]
    workers, before = server.workers(), server.event("stranger_message")
    with peers(server) as [peer]:
        # The sessions of the workers that are there can be guessed: they are counted.
        for peer.session in ("", "1-1", "1-2"):
            for message in messages:
                peer.say(message, *([b"\x89PNG"] if isinstance(message, Done) else []))
        until(lambda: server.event("stranger_message") == before + 15, "all of it is counted")
    assert server.workers() == workers


def test_a_worker_that_says_what_it_may_not_is_replaced(server: Server) -> None:
    """With the right token: a worker of ours that has gone mad, or a program of the same user."""
    pid, before = server.workers()["stub0"], server.event("worker_lost")
    with peers(server) as [peer]:
        peer.say(hello("stub0", token_of(server, "stub0")))
        welcome = peer.hear()
        assert isinstance(welcome, Welcome)
        peer.session = welcome.session
        # Of a job that is not its own: dropped. The same number again: dropped. What only a gateway says: enough.
        done = Done(job="any", attempt=1, images=(), timings=Timings())
        stale, replayed = server.event("stale_result"), server.event("replayed_message")
        # In one go: the honest worker has been told to leave, and when it has, its name's session is over.
        peer.say(done)
        peer.say(done, seq=1)
        peer.say(Welcome(session="x", wanted=Wanted(version=9, models=()), ping_seconds=1))
        until(lambda: server.event("illegal_message") == 1, "it is found out")
        assert (server.event("stale_result"), server.event("replayed_message")) == (stale + 1, replayed + 1)
    until(lambda: server.workers().get("stub0", pid) != pid and server.whole(), "an honest one takes its place")
    # The honest one that was superseded, and the mad one.
    assert server.event("worker_lost") == before + 2


def test_a_worker_that_answers_with_no_picture_is_replaced(server: Server) -> None:
    before = server.event("worker_lost")
    with peers(server) as [peer]:
        peer.say(hello("stub1", token_of(server, "stub1")))
        welcome = peer.hear()
        assert isinstance(welcome, Welcome)
        peer.session = welcome.session
        peer.send(b"not a message")
        until(lambda: server.event("worker_lost") == before + 2, "its session is over")
    until(server.whole, "an honest one takes its place")


def test_the_socket_is_for_its_own_user(server: Server) -> None:
    path = hub(server)
    assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert path.parent.stat().st_uid == os.getuid()


def test_no_token_is_seen_outside_its_worker(server: Server) -> None:
    for name, pid in server.workers().items():
        token = token_of(server, name)
        assert len(token) >= 32
        for process in (psutil.Process(pid), psutil.Process(server.pid)):
            assert token not in " ".join(process.cmdline())
            assert token not in process.name()
        assert token not in psutil.Process(server.pid).environ().values()
        answers = [server.http.get(path).text for path in ("/readyz", "/metrics", "/v1/models", "/")]
        assert token not in "".join((server.log, server.output, *answers))


def test_a_worker_inherits_no_secret_of_its_gateway(serve: Serve) -> None:
    secrets = {"AWS_SECRET_ACCESS_KEY": "much-secret", "OPENAI_API_KEY": "very-secret"}
    server = serve("--device", "stub:1", env=secrets)
    environment = psutil.Process(server.workers()["stub0"]).environ()
    assert not secrets.keys() & environment.keys()
    assert not set(secrets.values()) & set(environment.values())
