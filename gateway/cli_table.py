"""Rows of words as lines whose columns stand under each other, for commands that list."""

from __future__ import annotations

from collections.abc import Sequence


def lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """One line a row. What a terminal would take for an order stands as a question mark."""
    plain = [["".join(sign if sign.isprintable() else "?" for sign in word) for word in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*plain, strict=True)]
    return ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in plain]
