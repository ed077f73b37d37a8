"""What every test may count on: no settings of the developer's own, a data folder of its own, no GPU test without one.

The markers and what they stand for are in pyproject.toml; tests/README.md says which kind of test goes where.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Before anything is imported: a developer's REPLICAST_*, OTEL_* or AWS_* would otherwise change what is tested."""
    for name in [name for name in os.environ if name.startswith(("REPLICAST_", "OTEL_", "AWS_"))]:
        del os.environ[name]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if shutil.which("nvidia-smi") or Path("/dev/nvidiactl").exists():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU on this machine"))


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A new, private folder for one gateway; its path is short enough for a socket inside it."""
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def data_dirs(tmp_path: Path) -> Callable[[], Path]:
    """A maker of such folders, for a test that runs several gateways."""
    made: list[Path] = []

    def make() -> Path:
        made.append(tmp_path / f"data{len(made)}")
        made[-1].mkdir(mode=0o700)
        return made[-1]

    return make
