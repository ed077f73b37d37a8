"""The documents tell the truth: links, targets, commands, flags, settings, and code that is run."""

import ast
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.house.readme import blocks
from tests.house.tree import ROOT, expect_none, files, read

ROOMS = (
    "README.md",
    "gateway/README.md",
    "worker/README.md",
    "shared/README.md",
    "tests/README.md",
    "deploy/README.md",
)
RUN = {"bash", "sh", "console", "shell", "python", "py"}
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")


def prose(text: str) -> str:
    return re.sub(r"^\s*(```|~~~).*?^\s*\1", "", text, flags=re.M | re.S)


def spans(text: str) -> list[str]:
    """What stands between backticks in running text."""
    return re.findall(r"`([^`\n]+)`", prose(text))


def commands(document: str) -> list[str]:
    """Each command line a document shows, in a block or between backticks, without its comment."""
    shown = [line for each in blocks(document) if each.language in RUN - {"python", "py"} for line in joined(each.code)]
    return [re.sub(r"(^|\s)#.*$", "", line).strip().removeprefix("$ ") for line in [*shown, *spans(read(document))]]


def joined(code: str) -> list[str]:
    return code.replace("\\\n", " ").splitlines()


@cache
def options(command: str = "") -> frozenset[str]:
    """The flags that `replicast COMMAND --help` prints, and the commands below it, of which most have none."""
    environment = {**os.environ, "COLUMNS": "400", "NO_COLOR": "1", "TERM": "dumb"}
    program = [str(Path(sys.executable).with_name("replicast")), *command.split(), "--help"]
    ran = subprocess.run(program, capture_output=True, text=True, timeout=60, env=environment, cwd=ROOT)
    assert ran.returncode == 0, f"replicast {command} --help: {ran.stderr or ran.stdout}"
    listed = ran.stdout.partition("Commands:")[2]
    words = set(re.findall(r"^[ │|]{1,4}([a-z][a-z-]+)\s", listed, flags=re.M))
    return frozenset(words | set(FLAG.findall(ran.stdout)))


def below(command: str = "") -> list[str]:
    """Every command below this one, `token create` too."""
    found = [f"{command} {word}".strip() for word in sorted(options(command)) if not word.startswith("-")]
    return found + [deeper for each in found for deeper in below(each)]


def slug(heading: str) -> str:
    plain = re.sub(r"[`*_]|\[([^\]]*)\]\([^)]*\)", r"\1", heading.strip().lower())
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def test_each_room_says_what_it_is() -> None:
    expect_none(set(ROOMS) - set(files()), "missing")


def test_each_relative_link_leads_somewhere() -> None:
    broken = []
    for document in (name for name in files() if name.endswith(".md")):
        for target in re.findall(r"\]\(<?([^)\s>]+)>?[^)]*\)", prose(read(document))):
            path, _, anchor = unquote(target).partition("#")
            if re.match(r"[a-z]+:", target):
                continue
            there = (ROOT / document).parent / path if path else ROOT / document
            if not there.exists():
                broken.append(f"{document}: {target}")
            elif anchor and there.suffix == ".md":
                headings = re.findall(r"^#+\s+(.*)$", prose(there.read_text(encoding="utf-8")), flags=re.M)
                if anchor not in map(slug, headings):
                    broken.append(f"{document}: {target}")
    expect_none(broken, "leads nowhere")


@pytest.mark.parametrize("document", ROOMS)
def test_each_make_target_it_names_exists(document: str) -> None:
    known = set(re.findall(r"^([a-z][a-z-]*):", read("Makefile"), flags=re.M))
    named = {word for line in commands(document) for word in re.findall(r"(?:^|[;&|]\s*)make ([a-z][a-z-]*)", line)}
    expect_none(named - known, f"{document} names a make target that does not exist")


@pytest.mark.parametrize("document", ["README.md", "gateway/README.md", "deploy/README.md"])
def test_each_command_and_flag_it_names_exists(document: str) -> None:
    wrong = []
    for line in commands(document):
        ours = re.search(r"(?:^|[;&|/]\s*)replicast(?:\s+([a-z][a-z-]*))?(.*)$", line)
        served = re.search(r"^make serve.*\sARGS=[\"'](.*?)[\"']", line)
        if ours:
            command, rest = ours.groups(default="")
            if command and command not in options():
                wrong.append(f"replicast {command}")
                continue
            deeper = re.match(r"\s+([a-z][a-z-]*)(.*)$", rest)
            if deeper and any(name.startswith(f"{command} ") for name in below()):
                command, rest = f"{command} {deeper[1]}", deeper[2]
                if command not in below():
                    wrong.append(f"replicast {command}")
                    continue
        elif served:
            command, rest = "serve", served[1]
        else:
            continue
        rest = re.split(r"\s[|;&]", rest)[0]
        wrong += [f"replicast {command} {flag}" for flag in FLAG.findall(rest) if flag not in options(command)]
    expect_none(wrong, f"{document} names what does not exist")


def test_each_flag_that_stands_alone_exists_in_some_command() -> None:
    alone = {span.split()[0].split("=")[0] for span in spans(read("README.md")) if FLAG.match(span)}
    known = {flag for command in ("", *below()) for flag in options(command)}
    expect_none(alone - known, "README.md names a flag that no command has")


def test_each_block_names_its_language_and_the_test_that_runs_it() -> None:
    wrong = []
    for each in blocks():
        path, _, name = each.test.partition("::")
        if not each.language:
            wrong.append(f"README.md:{each.line} names no language")
        elif each.language in RUN and not each.test:
            wrong.append(f"README.md:{each.line} names no test")
        elif each.test and name.split("::")[-1].split("[")[0] not in names_in(path):
            wrong.append(f"README.md:{each.line} names a test that does not exist: {each.test}")
    expect_none(wrong, "a block that nothing tests")


def names_in(path: str) -> set[str]:
    if path not in files():
        return set()
    defined = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(ast.parse(read(path))) if isinstance(node, defined)}


def test_each_setting_is_documented() -> None:
    from gateway.settings import Settings

    text = read("README.md") + read("gateway/README.md")
    fields = getattr(Settings, "model_fields", None) or Settings.__dataclass_fields__
    unknown = []
    for field in fields:
        names = {field, field.removesuffix("s")}
        shown = [f"--{name.replace('_', '-')}" for name in names] + [f"`{field}`"]
        if not any(re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text) for word in shown):
            unknown.append(field)
    expect_none(unknown, "a setting that neither README.md nor gateway/README.md names")
