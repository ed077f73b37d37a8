"""Opens the files that clients name: regular ones, below a folder that was allowed, and nothing else in the machine.

What lies outside is refused in the same words whether it is there or not.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from shared.errors import UnknownAdapter

SUFFIX = ".safetensors"
# What Diffusers calls it in a folder.
USUAL = "pytorch_lora_weights.safetensors"
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_MOST_NAMES = 10_000


def unknown() -> UnknownAdapter:
    """The one answer to whoever asks for what there is not, or may not be asked for."""
    return UnknownAdapter("there is no such LoRA file below the folder of LoRAs (lora_root)")


def open_file(path: Path) -> BinaryIO:
    """A file of our own choice, opened to read. Blocks. Raises UnknownAdapter where there is no regular one."""
    try:
        return _opened(os.open(path, _FLAGS & ~os.O_NOFOLLOW | os.O_NONBLOCK))
    except (OSError, ValueError) as error:
        raise unknown() from error


def open_below(root: Path, name: str) -> BinaryIO:
    """The LoRA file that a client means by `name`, opened to read. Blocks. Raises UnknownAdapter for all else.

    `name` is relative to `root`, or absolute and in it; a folder stands for the one LoRA file in it. A link may lead
    from one place below `root` to another.
    """
    try:
        top = root.resolve(strict=True)
        # An absolute name takes the place of the root.
        given = root / name
        if ".." in Path(name).parts:
            raise unknown()
        inner = given.resolve(strict=True)
        if inner.is_dir() and inner.is_relative_to(top):
            given = given / _only(inner)
            inner = given.resolve(strict=True)
        if given.suffix != SUFFIX or not inner.is_relative_to(top):
            raise unknown()
        return _walked(top, inner.relative_to(top).parts)
    except (OSError, ValueError, RuntimeError) as error:
        raise unknown() from error


def _only(folder: Path) -> str:
    """The LoRA file of a folder, by the name that Diffusers uses or as the only one."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry, _ in zip(entries, range(_MOST_NAMES), strict=False)]
    found = [name for name in names if name.endswith(SUFFIX)]
    if USUAL in found:
        return USUAL
    if len(found) != 1:
        raise UnknownAdapter(f"the folder has {len(found)} {SUFFIX} files in it: name one")
    return found[0]


def _walked(top: Path, steps: tuple[str, ...]) -> BinaryIO:
    """Open a resolved path step by step from `top`, following no link: one that was laid since leads nowhere."""
    here = os.open(top, _FLAGS | os.O_DIRECTORY)
    try:
        for step in steps[:-1]:
            below = os.open(step, _FLAGS | os.O_DIRECTORY, dir_fd=here)
            os.close(here)
            here = below
        # A pipe would have us wait for whoever writes to it.
        return _opened(os.open(steps[-1], _FLAGS | os.O_NONBLOCK, dir_fd=here))
    finally:
        os.close(here)


def _opened(descriptor: int) -> BinaryIO:
    file = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise unknown()
    return file
