"""A gateway with a mistake of tests/unit/mutants.py or lora_mutants.py: `python -m tests.chaos.planted NAME serve`."""

from __future__ import annotations

import sys

from tests.unit import lora_mutants, mutants
from tests.unit.planted import plant

if __name__ == "__main__":
    plant((mutants.MUTANTS | lora_mutants.MUTANTS)[sys.argv.pop(1)])
    from gateway.cli import main

    main()
