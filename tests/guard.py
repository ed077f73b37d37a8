"""The guard: a folder for the sockets of servers, and the promise that nothing which was started with it is left."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.server import processes, until

_GONE_SECONDS = 5.0
_SHARED_MEMORY = Path("/dev/shm")


@contextmanager
def guarded() -> Iterator[Path]:
    """A runtime folder with a short path, since a socket's is limited to 107 bytes.

    Fails if a process that was started with it, a socket or shared memory outlives the block; processes are ended then.
    """
    folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    before = _shared_memory()
    try:
        yield folder
        until(lambda: not processes(folder), "no process of the test is left", _GONE_SECONDS)
        assert not list(folder.iterdir()), "a socket folder is left"
        if left := _orphans(_shared_memory() - before):
            until(lambda: not _orphans(left & _shared_memory()), f"{left} are gone from shared memory", _GONE_SECONDS)
    finally:
        for process in processes(folder):
            process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _orphans(names: set[str]) -> set[str]:
    """Those of shared memory that no living process has mapped: what others are using right now is not ours."""
    inodes = {}
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            inodes[str((_SHARED_MEMORY / name).stat().st_ino)] = name
    for maps in Path("/proc").glob("[0-9]*/maps") if inodes else ():
        with contextlib.suppress(OSError):
            for mapped in maps.read_text(errors="replace").splitlines():
                # By inode: a semaphore is mapped under the name that it had before it was linked.
                if str(_SHARED_MEMORY) in mapped:
                    inodes.pop(mapped.split()[4], None)
    return set(inodes.values())


def _shared_memory() -> set[str]:
    return {path.name for path in _SHARED_MEMORY.iterdir()} if _SHARED_MEMORY.is_dir() else set()
