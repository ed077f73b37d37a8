"""An exact checksum over the bytes of tensors, the same whatever order a device adds them up in.

Each word of the bytes is multiplied by an odd number that follows from its place, and all are summed modulo 2^64: no
float is added up, so that equal bytes have equal sums on every device, and one changed bit changes the sum.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable

import torch

_MASK = (1 << 64) - 1
# 2^64 divided by the golden ratio, and odd; as torch has it, with a sign.
_STRIDE = 0x9E3779B97F4A7C15 - (1 << 64)
_CHUNK = 1 << 22
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Checksum:
    """Keeps the factors of each device that it was asked about."""

    def __init__(self) -> None:
        self._factors: dict[torch.device, torch.Tensor] = {}

    def of(self, named: Iterable[tuple[str, torch.Tensor]]) -> dict[str, int]:
        """A number of 64 bits for each tensor, which follows from its bytes and its name."""
        names, sums = [], []
        for name, tensor in named:
            names.append(name)
            sums.append(self._sum(tensor))
        # One wait for the device for all of them.
        totals = torch.stack([each.cpu() for each in sums]).tolist() if sums else []
        return {name: (total * _odd(name)) & _MASK for name, total in zip(names, totals, strict=True)}

    def together(self, name: str, tensors: list[torch.Tensor]) -> int:
        """One number for small tensors of one type, in this order: far quicker than one for each."""
        if not tensors:
            return 0
        device = tensors[0].device
        words = torch.cat([_words(tensor).to(device) for tensor in tensors])
        return (int(self._sum(words)) * _odd(name)) & _MASK

    def _sum(self, tensor: torch.Tensor) -> torch.Tensor:
        words = _words(tensor)
        total = torch.zeros((), dtype=torch.int64, device=words.device)
        for place, chunk in enumerate(words.split(_CHUNK)):
            chunk = chunk.to(torch.int64)
            total += (chunk * self._of(words.device, chunk.numel())).sum()
            # The factors go on from where those of the chunk before have ended.
            total += chunk.sum() * _signed(2 * place * _CHUNK * _STRIDE)
        return total

    def _of(self, device: torch.device, count: int) -> torch.Tensor:
        known = self._factors.get(device)
        if known is None or known.numel() < count:
            known = (torch.arange(count, dtype=torch.int64, device=device) * 2 + 1) * _STRIDE
            self._factors[device] = known
        return known[:count]


def _signed(number: int) -> int:
    """The number modulo 2^64 as torch's int64 has it."""
    number &= _MASK
    return number - (1 << 64) if number >> 63 else number


def _words(tensor: torch.Tensor) -> torch.Tensor:
    # Of a quantized weight, too, the bytes count: what its class makes of them does not.
    plain = tensor.detach().as_subclass(torch.Tensor).contiguous().reshape(-1)
    return plain.view(_WORDS[plain.element_size()])


def _odd(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") | 1


def of_number(name: str, number: float) -> int:
    """The same for one number."""
    return (int.from_bytes(struct.pack("<d", number), "little") * _odd(name)) & _MASK


def total(numbers: Iterable[int]) -> str:
    """All of them as one, in hexadecimal digits."""
    return f"{sum(numbers) & _MASK:016x}"
