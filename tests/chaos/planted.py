"""A gateway with a mistake of tests/unit/mutants.py in it: `python -m tests.chaos.planted NAME serve ...`."""

from __future__ import annotations

import sys

from tests.unit.mutants import MUTANTS
from tests.unit.planted import plant

if __name__ == "__main__":
    plant(MUTANTS[sys.argv.pop(1)])
    from gateway.cli import main

    main()
