"""The Makefile lists what it offers, and each target it promises is there."""

import re
import subprocess

from tests.house.tree import ROOT, read

PROMISED = {
    *("serve", "test", "test-all", "check", "fmt", "bench", "chaos", "train-embedded", "web", "clean", "help"),
}


def test_plain_make_lists_every_target_in_one_line_each() -> None:
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert listed.returncode == 0, listed.stderr
    assert {line.split()[1] for line in listed.stdout.splitlines()} == PROMISED
    assert [line for line in listed.stdout.splitlines() if len(line.split()) < 4] == []


def test_every_target_is_phony() -> None:
    phony = set(re.findall(r"^\.PHONY: (.*)$", read("Makefile"), flags=re.M)[0].split())
    assert phony == PROMISED


def test_the_gate_runs_the_checks_and_the_tests() -> None:
    assert re.findall(r"^make .*$", read(".ci/run"), flags=re.M) == ["make check", "make test"]
