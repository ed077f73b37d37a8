"""`make chaos`: a storm by a seed against a live server; exit status 1, and the command again, if something broke."""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from tests.chaos.storm import Storm, replay
from tests.chaos.target import Failed
from tests.guard import guarded


def main() -> int:
    """Let the storm blow that the command line describes, and print what it brought."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--seed", type=int, help="decides which faults come in which order  [drawn, and said]")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long faults are injected  [60]")
    parser.add_argument("--gateway", action="store_true", help="kill and restart the gateway itself, too")
    parser.add_argument(
        "--planted", help="with this mistake of tests/unit/mutants.py or lora_mutants.py in the gateway  [none]"
    )
    told = parser.parse_args()
    seed = secrets.randbelow(1_000_000) if told.seed is None else told.seed
    for name in [name for name in os.environ if name.startswith(("REPLICAST_", "OTEL_"))]:
        del os.environ[name]
    again = replay(seed, told.seconds, gateway=told.gateway)
    program = ("tests.chaos.planted", told.planted) if told.planted else ("gateway",)
    print(f"chaos: {again}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    try:
        with guarded() as runtime:
            storm = Storm(seed, told.seconds, folder, runtime, gateway=told.gateway, program=program)
            report = asyncio.run(storm.run())
    except (Failed, AssertionError, pytest.fail.Exception) as failed:
        print(f"broken: {failed}\n  what was said is in {folder}\n  again: {again}")
        return 1
    print(report, flush=True)
    if report.violations:
        print(f"  what was said is in {folder}\n  again: {again}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
