"""What a change of LoRAs takes over several replicas, through HTTP: `python -m tests.bench.broadcast [--replicas 4]`.

On tiny random SDXL, in turns with plain pictures and with pictures that bring their own LoRA, so that each figure has
its picture beside it. Wall-clock times: the replicas share this machine's cores.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from tests import tiny
from tests.adapters import peft
from tests.contract.lora_rooms import STEPS, Replica
from tests.server import Server


def main() -> None:
    """Measure, and print a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=20)
    asked = parser.parse_args()
    warnings.filterwarnings("ignore", message="__array__", category=DeprecationWarning)
    with tempfile.TemporaryDirectory(prefix="rb") as folder:
        path = Path(folder)
        model = tiny.sdxl(path / "sdxl")
        room = Replica(model, path)
        for seed, name in enumerate(("ink", "oil", "own")):
            (path / f"{name}.safetensors").write_bytes(peft(room.halves(seed)))
        room.close()
        flags = ("--model", f"m={model}", "--device", "cpu", "--num-gpus", str(asked.replicas), "--lora-root", folder)
        with Server(path, path, *flags) as server:
            _measure(server.wait_ready(), asked.replicas, asked.rounds)


def _measure(server: Server, replicas: int, rounds: int) -> None:
    def put(name: str) -> None:
        body = {"lora_nickname": name, "lora_path": f"{name}.safetensors"}
        answer = server.http.post("/v1/set_lora", json=body)
        assert (answer.status_code, answer.json()["converged"]) == (200, True), answer.text

    def draw(**more: object) -> None:
        answer = server.post(prompt="a cat", seed=1, size="64x64", steps=STEPS, **more)
        assert answer.status_code == 200, answer.text

    own = [{"path": "own.safetensors"}]
    acts: dict[str, Callable[[], object]] = {
        "a picture": draw,
        "set_lora, resident": lambda: put("oil"),
        "set_lora back": lambda: put("ink"),
        "a picture with its own LoRA": lambda: draw(loras=own),
        "list_loras": lambda: server.http.get("/v1/list_loras").raise_for_status(),
    }
    for name in ("ink", "oil"):
        put(name)
    times: dict[str, list[float]] = {name: [] for name in acts}
    for turn in range(rounds + 2):
        for name, act in acts.items():
            began = time.perf_counter()
            act()
            if turn >= 2:
                times[name].append((time.perf_counter() - began) * 1000)
    plain = statistics.median(times["a picture"])
    print(f"{replicas} replicas, {rounds} rounds, medians; a picture has {STEPS} steps")
    for name, each in times.items():
        median = statistics.median(each)
        print(f"{name:30} {median:8.1f} ms  {median / plain:6.2f} pictures  {median / plain * STEPS:6.2f} steps")


if __name__ == "__main__":
    main()
