"""The wire: golden bytes for every message, and nothing that is no message gets through."""

from __future__ import annotations

import random
from pathlib import Path

import msgpack
import pytest

from shared import messages as m
from shared import wire
from shared.errors import WireError
from shared.loras import Adapter, LoraState
from tests.unit.world import CARD

GOLDEN = Path(__file__).parent / "golden"
STAMP = wire.Stamp(term=3, incarnation="life", session="3-1", seq=9)
ADAPTER = Adapter(name="ink", sha256="ab" * 32, scale=0.5, target="unet")
LORAS = LoraState(mode="merged", adapters=(ADAPTER,), merge_scale=0.5)
MODEL = m.WantedModel(id="a/b", source="stub", backend="stub", options={"steps": 2}, epoch=2, loras=LORAS)
WANTED = m.Wanted(version=4, models=(MODEL,), shelf="/data/loras")
PARAMETERS = m.Parameters(prompt="naïve 猫 🐈", width=64, height=128, steps=4, guidance=1.5)
FACTS = m.ImageFacts(seed=7, width=64, height=128, format="png", bytes=3)

# One of every message, with every field that has a value of its own.
EXAMPLES: dict[type[m.Message], m.Message] = {
    type(message): message
    for message in (
        m.Hello(
            protocol=1,
            name="gpu0",
            token="t",
            incarnation="life",
            slots=1,
            pid=5,
            host="here",
            device=m.Device(kind="cuda", names=("0", "GPU-1"), memory_bytes=1 << 40, threads=2),
            resident=(m.Resident(model="a/b", epoch=2, digest="d", fingerprint="f"),),
            running=(m.InHand(job="j", attempt=2),),
        ),
        m.Reject(code="forbidden", message="no"),
        m.Welcome(session="3-1", wanted=WANTED, ping_seconds=0.5),
        m.Want(wanted=WANTED),
        m.Prepare(model="a/b", epoch=3, loras=LORAS),
        m.Prepared(
            model="a/b",
            epoch=3,
            digest="d",
            problem=m.Problem(code="adapter_does_not_fit", message="why"),
            matches=(m.Match(sha256="ab", matched={"unet": 3}, unmatched=1, unmatched_names=("x",), bytes=9),),
        ),
        m.Ack(
            version=4,
            outcomes=(
                m.Outcome(model="a/b", card=CARD, epoch=2, digest="d", memory_bytes=9, seconds=0.5),
                m.Outcome(model="c", problem=m.Problem(code="load_failed", message="why", param="model")),
            ),
        ),
        m.Run(
            job="j",
            attempt=2,
            model="a/b",
            task="generate",
            seeds=(7, 2**63 - 1),
            parameters=PARAMETERS,
            epoch=2,
            digest="d",
            request_id="r",
            loras=(ADAPTER,),
        ),
        m.Progress(job="j", attempt=2, step=1, total=4),
        m.Done(job="j", attempt=2, images=(FACTS,), timings=m.Timings(wait_ms=1, inference_ms=2, encode_ms=3)),
        m.Failed(job="j", attempt=2, problem=m.Problem(code="job_failed", message="why")),
        m.Cancel(job="j", attempt=2),
        m.Ping(count=3),
        m.Pong(count=3, steps=8, memory_bytes=1 << 33),
        m.Drain(reason="shutdown"),
        m.Bye(reason="drained"),
    )
}


@pytest.mark.parametrize("cls", m.Message.registry.values(), ids=lambda cls: cls.__name__)
def test_every_message_has_its_golden_bytes(cls: type[m.Message], request: pytest.FixtureRequest) -> None:
    """A change of a golden file is a change of the wire: PROTOCOL moves with it, or the field has a default."""
    path = GOLDEN / f"{cls.__name__}.hex"
    frames = wire.pack(EXAMPLES[cls], STAMP, [b"png"] if cls is m.Done else [])
    lines = [bytes(frame).hex() for frame in frames]
    assert path.read_text().split() == lines, f"the bytes of {cls.__name__} have changed"


@pytest.mark.parametrize("message", EXAMPLES.values(), ids=lambda message: type(message).__name__)
def test_a_message_arrives_as_it_was_sent(message: m.Message) -> None:
    attachments = [b"", b"x" * 10, bytes(wire.MAX_FRAME_BYTES + 1)]
    frames = wire.pack(message, STAMP, attachments)
    assert max(len(frame) for frame in frames) <= wire.MAX_FRAME_BYTES
    packet = wire.unpack(frames)
    assert packet.message == message
    assert packet.stamp == STAMP
    assert [bytes(attachment) for attachment in packet.attachments] == attachments


def test_an_attachment_is_not_copied_on_its_way_in_or_out() -> None:
    image = bytearray(1000)
    frames = wire.pack(EXAMPLES[m.Done], STAMP, [memoryview(image)])
    assert isinstance(frames[1], memoryview)
    assert frames[1].obj is image
    assert wire.unpack(frames).attachments[0] is frames[1]


def test_a_newer_peer_may_add_a_field() -> None:
    frames = wire.pack(m.Ping(count=1), STAMP)
    header = msgpack.unpackb(frames[0]) | {"colour": "red"}
    assert wire.unpack([msgpack.packb(header)]).message == m.Ping(count=1)


def test_what_cannot_be_packed_is_a_wire_error() -> None:
    with pytest.raises(WireError):
        wire.pack(m.Ping(count=2**70), STAMP)
    with pytest.raises(WireError):
        wire.pack(m.Bye(reason="\udcff"), STAMP)
    with pytest.raises(WireError):
        wire.pack(m.Bye(reason="x" * wire.MAX_HEADER_BYTES), STAMP)


def header(**changes: object) -> bytes:
    fields = msgpack.unpackb(wire.pack(m.Ping(count=1), STAMP)[0]) | changes
    return bytes(msgpack.packb({name: value for name, value in fields.items() if value is not ...}))


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b""],
        [b"\xc1"],
        [b"\x80"],
        [msgpack.packb([1])],
        [msgpack.packb({1: 2})],
        [b"x" * (wire.MAX_HEADER_BYTES + 1)],
        [b"\x91" * 100_000],
        [b"\xdd\xff\xff\xff\xff"],
        [b"\xc7\x04\x05abcd"],
        [header(type="Message")],
        [header(type=...)],
        [header(type=None)],
        [header(count="many")],
        [header(count=...)],
        [header(count=msgpack.Timestamp(1, 2))],
        [header(stamp=...)],
        [header(stamp=[1, 2, 3, 4])],
        [header(stamp=[1, "a", "b"])],
        [header(parts=...)],
        [header(parts=[1])],
        [header(parts=[-1, 1])],
        [header(parts=[True])],
        [header(parts=[1] * 65), *[b"x"] * 65],
        [header(), b"an attachment too many"],
    ],
    ids=range(25),
)
def test_what_is_no_message_is_refused(frames: list[bytes]) -> None:
    with pytest.raises(WireError):
        wire.unpack(frames)


def test_no_mutation_of_a_good_frame_raises_anything_else() -> None:
    chance = random.Random(20)
    good = [bytes(wire.pack(message, STAMP)[0]) for message in EXAMPLES.values()]
    refused = 0
    for _ in range(20_000):
        frame = bytearray(chance.choice(good))
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(frame))
            match chance.randrange(3):
                case 0:
                    frame[at] = chance.randrange(256)
                case 1:
                    del frame[at:]
                    frame += chance.randbytes(chance.randrange(1, 8))
                case 2:
                    frame[at:at] = chance.randbytes(1)
        try:
            wire.unpack([bytes(frame)])
        except WireError:
            refused += 1
    assert refused > 10_000
