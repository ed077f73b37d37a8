"""The checkout as the house tests see it: its files, and its Python sources parsed once."""

import ast
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("gateway", "worker", "shared")
MADE = {".venv", ".git", ".train", ".cache", "build", "dist", "__pycache__"}


@dataclass(frozen=True)
class Source:
    """One Python file: `path` is relative to the root, with forward slashes."""

    path: str
    text: str
    tree: ast.Module

    def imports(self) -> Iterator[tuple[str, int]]:
        """Each imported module by its full name, with its line; `from a import b` gives `a` and `a.b`."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((alias.name, node.lineno) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield node.module, node.lineno
                yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


@cache
def files() -> tuple[str, ...]:
    """Every file that is part of the project: what git holds or would hold; without git, what nothing here made."""
    asked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if asked.returncode == 0:
        names = [name for name in asked.stdout.split("\0") if name]
    else:
        paths = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
        names = [path.as_posix() for path in paths if not MADE & set(path.parts) and "_cache" not in path.parts[0]]
    return tuple(sorted({name for name in names if (ROOT / name).is_file()}))


@cache
def sources() -> tuple[Source, ...]:
    """Every Python file of the three packages."""
    paths = [name for name in files() if name.endswith(".py") and name.split("/")[0] in PACKAGES]
    texts = [(ROOT / path).read_text(encoding="utf-8") for path in paths]
    return tuple(Source(path, text, ast.parse(text, path)) for path, text in zip(paths, texts, strict=True))


def read(path: str) -> str:
    if path not in files():
        pytest.fail(f"{path} is missing", pytrace=False)
    return (ROOT / path).read_text(encoding="utf-8")


def expect_none(wrong: Iterable[object], rule: str) -> None:
    """Fails with the rule and then each thing that breaks it on a line of its own."""
    lines = sorted(map(str, wrong))
    if lines:
        pytest.fail("\n  ".join([f"{rule}:", *lines]), pytrace=False)
