"""The fenced blocks of a document, each with the test that runs it.

A block that a reader would paste names its test in the line above it, in a comment that a browser does not show:

    <!-- tested: tests/process/test_readme.py::test_first_picture -->
    ```bash
    curl ...
    ```

That test takes the text from here and runs it: `block("test_first_picture").code`. So what is printed is what is run.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from tests.house.tree import read

MARK = re.compile(r"<!-- tested: (?P<test>\S+::\S+) -->")
FENCE = re.compile(r"^\s*(?P<fence>```+|~~~+)\s*(?P<language>[\w+-]*)")


@dataclass(frozen=True)
class Block:
    """One fenced block; `test` is empty when no line above names one."""

    line: int
    language: str
    code: str
    test: str


def blocks(document: str = "README.md") -> list[Block]:
    return list(_parse(read(document)))


def block(test: str, document: str = "README.md") -> Block:
    """The one block whose test has this name; AssertionError when there is none or more than one."""
    named = [each for each in blocks(document) if each.test.rpartition("::")[2] == test]
    assert len(named) == 1, f"{document} has {len(named)} blocks tested by {test}"
    return named[0]


def _parse(text: str) -> Iterator[Block]:
    lines = text.splitlines()
    fences = [number for number, line in enumerate(lines) if FENCE.match(line)]
    for start, end in list(pairwise(fences))[::2]:
        opening = FENCE.match(lines[start])
        mark = MARK.search(next((line for line in reversed(lines[:start]) if line.strip()), ""))
        assert opening
        yield Block(
            start + 1, opening["language"], "\n".join(lines[start + 1 : end]) + "\n", mark["test"] if mark else ""
        )
