"""Plants one mistake in a module as it is imported: `python -m tests.unit.planted NAME` looks whether it is noticed.

A mutant that nobody notices is a promise that nobody holds us to. Each is one exact piece of source text and what
stands there instead; the source is changed while it is imported, never on disk.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType

NOTICED, NOT_NOTICED, BROKEN = 10, 11, 12
_EXAMPLES = 220
# By the machine that has to notice them: where its mutants are listed, and where it is.
MACHINES = {
    "pool": ("tests.unit.mutants", "tests.unit.test_pool_machine"),
    "loras": ("tests.unit.lora_mutants", "tests.unit.test_broadcast_machine"),
}


@dataclass(frozen=True)
class Mutant:
    """In `module` `old`, which stands there once, becomes `new`."""

    name: str
    module: str
    old: str
    new: str


class _Planted(MetaPathFinder):
    """Finds one module, with the mistake in it."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._mutant.module:
            return None
        spec = PathFinder.find_spec(fullname, path)
        assert spec
        assert spec.origin
        spec.loader = _Loader(self._mutant, spec.origin)
        return spec


class _Loader(SourceFileLoader):
    def __init__(self, mutant: Mutant, path: str) -> None:
        super().__init__(mutant.module, path)
        self._mutant = mutant

    def get_code(self, fullname: str) -> CodeType:
        source = self.get_data(self.path).decode()
        if source.count(self._mutant.old) != 1:
            raise ImportError(f"{self._mutant.name} does not stand in {fullname} exactly once")
        return compile(source.replace(self._mutant.old, self._mutant.new), self.path, "exec", dont_inherit=True)


def plant(mutant: Mutant) -> None:
    """Have this mistake in this process; nothing of its module may have been imported yet."""
    sys.meta_path.insert(0, _Planted(mutant))


def main(name: str) -> int:
    """Let a machine loose on us with this mistake planted, MACHINE:NAME; the name "none" plants none."""
    machine, _, name = name.partition(":")
    mutants, explorer = MACHINES[machine]
    if name != "none":
        plant(import_module(mutants).MUTANTS[name])
    explore = import_module(explorer).explore

    try:
        explore(_EXAMPLES)
    except (NameError, AttributeError, TypeError, ImportError) as error:
        sys.stdout.write(f"it does not run: {error!r}\n")
        return BROKEN
    except Exception as error:
        sys.stdout.write(f"noticed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}\n")
        return NOTICED
    sys.stdout.write("not noticed\n")
    return NOT_NOTICED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
