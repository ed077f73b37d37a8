"""The gateway starts where there is no torch, and the three generic package names are really ours."""

import importlib.metadata
import json
import subprocess
import sys

import pytest

from tests.house.tree import PACKAGES, ROOT, expect_none

HEAVY = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "PIL", "numpy", "worker")
# Only where it is asked for.
ON_USE = (
    "httpx2",
    "httpcore2",
    "fastapi_swagger",
    "requests",
    "google",
    "sqlalchemy",
    "alembic",
    "aiosqlite",
    "obstore",
    "huggingface_hub",
)


def test_importing_the_gateway_pulls_in_nothing_heavy() -> None:
    ours = "gateway.app, gateway.cli, gateway.store.epochs, gateway.loras.finder"
    program = f"import {ours}, json, sys; print(json.dumps(sorted(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    loaded = {name.split(".")[0] for name in json.loads(ran.stdout)}
    expect_none(loaded & {*HEAVY, *ON_USE}, "pulled in by importing the gateway")
    # FastAPI takes its interface; what sends is there only for who has a collector.
    sends = [
        name for name in json.loads(ran.stdout) if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))
    ]
    expect_none(sends, "pulled in by importing the gateway")


def test_importing_shared_pulls_in_nothing_heavy() -> None:
    names = sorted(path.stem for path in (ROOT / "shared").glob("*.py") if path.stem != "__init__")
    program = (
        f"import {', '.join(f'shared.{name}' for name in names)}, json, sys; print(json.dumps(sorted(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    loaded = {name.split(".")[0] for name in json.loads(ran.stdout)}
    expect_none(loaded & {*HEAVY, "fastapi", "zmq", "gateway"}, "pulled in by importing shared")


@pytest.mark.parametrize("name", PACKAGES)
def test_the_package_is_ours_and_of_this_checkout(name: str) -> None:
    program = f"import {name}; print({name}.__file__)"
    ran = subprocess.run([sys.executable, "-I", "-c", program], cwd="/", capture_output=True, text=True, timeout=60)
    assert ran.stdout.strip() == str(ROOT / name / "__init__.py"), ran.stderr or "another distribution owns this name"
    assert set(importlib.metadata.packages_distributions().get(name, ["replicast"])) == {"replicast"}


def test_the_distribution_is_this_one() -> None:
    ours = importlib.metadata.distribution("replicast")
    commands = {entry.name: entry.value for entry in ours.entry_points if entry.group == "console_scripts"}
    assert commands == {"replicast": "gateway.cli:main"}
    assert {"gateway", "worker", "test", "check", "dev"} <= set(ours.metadata.get_all("Provides-Extra") or [])
