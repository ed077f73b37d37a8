"""What lies where, how long a file may be, and that each says what it is for."""

import ast
import os

from tests.house.tree import PACKAGES, ROOT, expect_none, files, sources

TOP = {
    *("gateway", "worker", "shared", "deploy", "tests"),
    *("pyproject.toml", "Makefile", "README.md", "LICENSE", "CHANGELOG.md", "constraints.txt"),
}
MAX_LINES = 350


def test_the_top_level_holds_what_it_should_and_nothing_else() -> None:
    names = {name.split("/")[0] for name in files()}
    expect_none(TOP - names, "missing at the top level")
    expect_none((name for name in names - TOP if not name.startswith(".")), "not for the top level")


def test_no_source_file_is_too_long() -> None:
    lines = {source.path: len(source.text.splitlines()) for source in sources()}
    expect_none((f"{path} {n}" for path, n in lines.items() if n > MAX_LINES), f"longer than {MAX_LINES} lines")


def test_each_source_file_says_in_its_first_line_what_it_is_for() -> None:
    silent = [
        source.path
        for source in sources()
        if len((ast.get_docstring(source.tree, clean=True) or "").partition("\n")[0]) < 15
        or not source.text.startswith(('"""', 'r"""', "#!"))
    ]
    expect_none(silent, "its first line does not say what it is for")


def test_each_package_is_typed_and_each_folder_of_sources_is_a_package() -> None:
    here = set(files())
    folders = {os.path.dirname(source.path) for source in sources()}
    expect_none({f"{name}/py.typed" for name in PACKAGES} - here, "missing")
    expect_none({f"{folder}/__init__.py" for folder in folders} - here, "missing")


def test_the_gate_can_be_run() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
