"""Hub and link over a real socket: what the transport's settings promise."""

from __future__ import annotations

import asyncio
import shutil
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import zmq
import zmq.asyncio

from gateway.hub import Ears, Hub
from shared import messages as m
from shared import wire
from shared.errors import ConfigError
from shared.wire import Packet, Stamp
from worker.link import Link


class Heard:
    """What the hub told."""

    def __init__(self) -> None:
        self.packets: list[tuple[bytes, Packet]] = []
        self.garbage: list[str] = []
        self.ears = Ears(
            received=lambda peer, packet: self.packets.append((peer, packet)),
            garbage=lambda peer, problem: self.garbage.append(problem),
            undeliverable=lambda peer, reason: None,
        )


@pytest.fixture
def folder() -> Iterator[Path]:
    # Short: the path of a socket is limited.
    path = Path(tempfile.mkdtemp(prefix="h", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[tuple[Hub, Heard]]:
    hub, heard = Hub(folder / "s"), Heard()
    hub.open()
    listening = asyncio.create_task(hub.listen(heard.ears))
    try:
        yield hub, heard
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        hub.close()


async def until(condition: object) -> None:
    async with asyncio.timeout(10):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.005)


async def test_messages_and_large_attachments_go_both_ways(folder: Path) -> None:
    image = bytes(range(256)) * 40_000
    async with opened(folder) as (hub, heard):
        link = Link(hub.endpoint, "life")
        link.open()
        try:
            assert await link.send(m.Bye(reason="hello"), [image, b""])
            await until(lambda: heard.packets)
            peer, packet = heard.packets[0]
            assert packet.message == m.Bye(reason="hello")
            assert packet.stamp == Stamp(0, "life", "", 1)
            assert [bytes(part) for part in packet.attachments] == [image, b""]
            assert hub.send(peer, m.Ping(count=1), Stamp(1), (image,)) is None
            (answer,) = await link.receive(5)
            assert answer.message == m.Ping(count=1)
            assert bytes(answer.attachments[0]) == image
        finally:
            link.close()


async def test_a_message_to_nobody_is_told_and_not_dropped_in_silence(folder: Path) -> None:
    async with opened(folder) as (hub, heard):
        assert hub.send(b"nobody", m.Ping(count=1), Stamp()) == "unreachable"
        link = Link(hub.endpoint, "life")
        link.open()
        await link.send(m.Bye(reason=""))
        await until(lambda: heard.packets)
        link.close()
        await until(lambda: hub.send(heard.packets[0][0], m.Ping(count=1), Stamp()) == "unreachable")


async def test_a_peer_that_does_not_read_is_told_as_stuck_and_blocks_nobody(folder: Path) -> None:
    async with opened(folder) as (hub, heard):
        deaf, good = Link(hub.endpoint, "deaf"), Link(hub.endpoint, "good")
        for link in (deaf, good):
            link.open()
            await link.send(m.Bye(reason=""))
        await until(lambda: len(heard.packets) == 2)
        peers = {packet.stamp.incarnation: peer for peer, packet in heard.packets}
        # It reads nothing: what the two ends' queues and the kernel hold runs out.
        outcomes = {hub.send(peers["deaf"], m.Ping(count=1), Stamp(), (b"x" * 100_000,)) for _ in range(2000)}
        assert "stuck" in outcomes
        assert hub.send(peers["good"], m.Ping(count=1), Stamp()) is None
        assert await good.receive(5)
        for link in (deaf, good):
            link.close()


async def test_a_link_that_is_opened_anew_says_nothing_of_its_former_life(folder: Path) -> None:
    async with opened(folder) as (hub, heard):
        link = Link(hub.endpoint, "life")
        link.open()
        link.session = "1-1"
        await link.send(m.Bye(reason="one"))
        link.open()
        await link.send(m.Bye(reason="two"))
        await until(lambda: len(heard.packets) == 2)
        (first, one), (second, two) = heard.packets
        assert first != second
        assert (one.stamp.session, two.stamp.session) == ("1-1", "")
        link.close()


async def test_a_link_without_a_gateway_waits_and_does_not_queue(folder: Path) -> None:
    link = Link(f"ipc://{folder}/s/hub", "life")
    link.open()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await link.send(m.Bye(reason="lost"))
    async with opened(folder) as (_, heard):
        await link.send(m.Bye(reason="first"))
        await until(lambda: heard.packets)
        assert [packet.message for _, packet in heard.packets] == [m.Bye(reason="first")]
    link.close()


async def test_garbage_is_told_and_a_frame_over_the_limit_never_arrives(folder: Path) -> None:
    async with opened(folder) as (hub, heard):
        context = zmq.asyncio.Context()
        raw = context.socket(zmq.DEALER)
        raw.linger = 0
        raw.connect(hub.endpoint)
        await raw.send_multipart([b"nonsense", b"more"])
        await until(lambda: heard.garbage)
        await raw.send(bytes(wire.MAX_FRAME_BYTES + 1))
        await asyncio.sleep(0.2)
        await raw.send(b"after")
        await until(lambda: len(heard.garbage) == 2)
        assert heard.packets == []
        raw.close()
        context.term()


async def test_a_flood_does_not_starve_the_loop(folder: Path) -> None:
    async with opened(folder) as (hub, heard):
        link = Link(hub.endpoint, "life")
        link.open()
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        other = asyncio.create_task(others())
        for _ in range(2000):
            await link.send(m.Ping(count=1))
        await until(lambda: len(heard.packets) == 2000)
        other.cancel()
        assert turns > 30
        link.close()


async def test_the_socket_is_its_owners_alone_and_gone_after_close(folder: Path) -> None:
    async with opened(folder):
        assert stat.S_IMODE((folder / "s").stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "s" / "hub").stat().st_mode) & 0o077 == 0
    assert not (folder / "s" / "hub").exists()


def test_a_path_that_no_socket_can_have_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="XDG_RUNTIME_DIR"):
        Hub(tmp_path / ("x" * 100))
