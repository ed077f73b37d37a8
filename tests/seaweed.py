"""A real S3 server on this machine: SeaweedFS, with one bucket, for one key."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

KEY, SECRET, BUCKET = "replicast", "a-secret-of-tests", "loras"
_START_SECONDS = 60.0
# Each listens besides at 10000 above its own.
_PORTS = ("master.port", "volume.port", "filer.port", "s3.port", "s3.port.iceberg", "s3.port.lance", "admin.port")
_GRPC_OFFSET = 10_000


@dataclass(frozen=True)
class Seaweed:
    """A running server: its address, and what a client of it has in its environment."""

    address: str

    @property
    def environment(self) -> dict[str, str]:
        return {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"}


@contextmanager
def seaweed(folder: Path) -> Iterator[Seaweed]:
    """A server whose files lie in `folder`, gone when the block ends."""
    ports = dict(zip(_PORTS, _free_ports(len(_PORTS)), strict=True))
    program = [str(Path(sys.executable).with_name("weed")), f"-logdir={folder}", "mini"]
    program += [f"-dir={folder}", f"-bucket={BUCKET}"]
    program += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-webdav=false", "-admin.ui=false"]
    program += [f"-{name}={port}" for name, port in ports.items()]
    server = Seaweed(f"http://127.0.0.1:{ports['s3.port']}")
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            program,
            cwd=folder,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**os.environ, **server.environment},
        )
        try:
            _wait(server, process, log)
            yield server
        finally:
            process.kill()
            process.wait()
            # Its parts talk to each other by these, and it has no way to put them elsewhere.
            for port in {port + more for port in ports.values() for more in (0, _GRPC_OFFSET)}:
                for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                    left.unlink(missing_ok=True)


def _wait(server: Seaweed, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < end:
        try:
            urllib.request.urlopen(f"{server.address}/{BUCKET}/none", timeout=1).close()
        except urllib.error.HTTPError as error:
            error.close()
            # Nobody is let in without a key, once the bucket is there.
            if error.code == 403:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"SeaweedFS does not answer: {log.read_text()[-2000:]}")


def _free_ports(count: int) -> list[int]:
    """Ports that are free, as are those that SeaweedFS takes besides."""
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            if port + _GRPC_OFFSET > 65_535:
                port -= 2 * _GRPC_OFFSET
            try:
                other.bind(("127.0.0.1", port + _GRPC_OFFSET))
            except OSError:
                continue
        found.append(port)
    return found
