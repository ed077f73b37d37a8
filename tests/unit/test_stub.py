"""The stub: its pictures tell what they were made from, and each fault comes when it was asked for."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.cards import ImageFormat
from shared.errors import JobFailed, LoadFailed, OutOfMemory
from shared.messages import Device, Option, Parameters, Run, WantedModel
from worker import images
from worker.backends import Inputs
from worker.backends.stub import Stub, read_back, sha256

DEVICE = Device(kind="stub", names=("stub",))


def stub(**options: Option) -> Stub:
    made = Stub(WantedModel(id="stub", source="stub", backend="stub", options=options), DEVICE)
    made.load()
    return made


def run(*seeds: int, epoch: int = 0, output_format: ImageFormat = "png", **changes: Any) -> Run:
    asked = {"prompt": "a cat", "width": 64, "height": 64, "steps": 4, "guidance": 3.0} | changes
    parameters = Parameters(**asked, output_format=output_format)
    return Run(
        job="j", attempt=1, model="stub", task="generate", seeds=seeds, parameters=parameters, epoch=epoch, digest="d"
    )


def silent(step: int, total: int) -> None:
    pass


def unseen(preview: int, pixels: object) -> None:
    pass


def png(made: Stub, asked: Run) -> bytes:
    (picture,) = made.generate(asked, Inputs(), silent, unseen)
    assert picture.pixels is not None
    return images.encode(picture.pixels, "png")


@pytest.mark.parametrize("prompt", ["a cat", "", "🐈" * 4000, '\\"\n\x01' * 300], ids=["short", "empty", "long", "odd"])
def test_a_picture_tells_what_it_was_made_from(prompt: str) -> None:
    facts = read_back(png(stub(), run(2**63 - 1, epoch=3, prompt=prompt, negative_prompt=prompt)))
    assert facts == {
        "model": "stub",
        "task": "generate",
        "epoch": 3,
        "digest": "d",
        "seed": 2**63 - 1,
        "width": 64,
        "height": 64,
        "steps": 4,
        "guidance": 3.0,
        "prompt": prompt[:200],
        "prompt_sha256": sha256(prompt),
        "negative_prompt": prompt[:200],
        "negative_prompt_sha256": sha256(prompt),
        "loras": {"mode": "attached", "adapters": [], "merge_target": "all", "overlay": False},
    }


@pytest.mark.parametrize("size", [(64, 64), (2048, 2048), (72, 64), (512, 768)])
def test_any_size_of_the_card_can_be_read_back(size: tuple[int, int]) -> None:
    facts = read_back(png(stub(), run(1, width=size[0], height=size[1])))
    assert (facts["width"], facts["height"]) == size


def test_a_picture_that_was_changed_or_is_of_another_is_not_read() -> None:
    pixels = images.decode(png(stub(), run(1))).copy()
    pixels[0, 5] += 1
    for other in (pixels, np.zeros((64, 64, 3), np.uint8) + np.uint8(255)):
        with pytest.raises(ValueError, match="not as the stub made them"):
            read_back(images.encode(other, "png"))


def test_the_constant_picture_is_encoded_once() -> None:
    made = stub(constant=True)
    first, second = made.generate(run(1, 2, width=512, height=512), Inputs(), silent, unseen)
    assert first.encoded is not None
    assert first.encoded is second.encoded
    assert 350_000 < len(first.encoded) < 450_000
    assert images.decode(first.encoded).shape == (512, 512, 3)
    assert made.memory_bytes() == len(first.encoded)


def test_the_constant_picture_comes_as_pixels_when_no_png_is_asked_for() -> None:
    (picture,) = stub(constant=True).generate(
        run(1, width=512, height=512, output_format="webp"), Inputs(), silent, unseen
    )
    assert picture.encoded is None
    assert picture.pixels is not None


def test_steps_is_the_default_of_the_card() -> None:
    made = Stub(WantedModel(id="stub", source="stub", backend="stub", options={"steps": 9}), DEVICE)
    assert made.load().steps == 9


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"step_second": 1.0}, "option 'step_second' is unknown; did you mean 'step_seconds'?"),
        ({"zebra": 1}, "option 'zebra' is unknown; known are steps, "),
        ({"steps": 0}, "option 'steps': .*greater than or equal to 1"),
        ({"steps": "4"}, "option 'steps': .*integer"),
        ({"step_seconds": True}, "option 'step_seconds': .*number"),
        ({"constant": 1}, "option 'constant': .*boolean"),
        ({"fail_load": True}, "told to fail"),
    ],
)
def test_a_wrong_option_fails_the_load(options: dict[str, Option], words: str) -> None:
    with pytest.raises(LoadFailed, match=words):
        stub(**options)


def test_a_step_takes_its_time_and_stays_cancellable() -> None:
    told: list[int] = []
    began = time.monotonic()
    stub(step_seconds=0.12).generate(run(1, steps=2), Inputs(), lambda step, total: told.append(step), unseen)
    assert 0.24 <= time.monotonic() - began < 2
    assert told == sorted(told)
    assert sorted(set(told)) == [0, 1, 2]


def test_loading_takes_its_time() -> None:
    began = time.monotonic()
    stub(load_seconds=0.05)
    assert time.monotonic() - began >= 0.05


def test_a_gate_holds_each_step_until_it_opens(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    told: list[int] = []
    opener = threading.Timer(0.2, gate.touch)
    opener.start()
    stub(gate=str(gate)).generate(run(1), Inputs(), lambda step, total: told.append(step), unseen)
    opener.join()
    assert told[0] == 0
    assert [step for step in told if step] == [1, 2, 3, 4]


def test_a_run_before_a_gate_can_be_stopped(tmp_path: Path) -> None:
    class Nobody(Exception):
        pass

    def stop(step: int, total: int) -> None:
        raise Nobody

    with pytest.raises(Nobody):
        stub(gate=str(tmp_path / "never")).generate(run(1), Inputs(), stop, unseen)


@pytest.mark.parametrize(
    ("option", "error"), [("fail_at_step", JobFailed), ("oom_at_step", OutOfMemory)], ids=["fail", "oom"]
)
def test_a_fault_comes_at_its_step_and_not_before(option: str, error: type[Exception]) -> None:
    told: list[int] = []
    with pytest.raises(error, match="at step 3"):
        stub(**{option: 3}).generate(run(1), Inputs(), lambda step, total: told.append(step), unseen)
    assert told == [1, 2]


@pytest.mark.parametrize(
    ("options", "steps"), [({"hang_at_step": 2}, [1]), ({"hang": "cat"}, [])], ids=["step", "word"]
)
def test_a_hung_step_gives_no_sign_of_life(options: dict[str, Option], steps: list[int]) -> None:
    told: list[int] = []
    made = stub(**options)
    given = (run(1), Inputs(), lambda step, total: told.append(step), unseen)
    hung = threading.Thread(target=made.generate, args=given, daemon=True)
    hung.start()
    hung.join(0.3)
    assert hung.is_alive()
    assert told == steps


def test_a_word_brings_its_fault_and_spares_all_other_prompts() -> None:
    made = stub(oom="stone", garbage="dust", slow="snail", step_seconds=0.01)
    with pytest.raises(OutOfMemory):
        made.generate(run(1, prompt="a stone"), Inputs(), silent, unseen)
    (dust,) = made.generate(run(1, prompt="dust"), Inputs(), silent, unseen)
    assert dust.encoded == b"no picture"

    def seconds(prompt: str) -> float:
        began = time.monotonic()
        (picture,) = made.generate(run(1, prompt=prompt), Inputs(), silent, unseen)
        assert picture.pixels is not None
        return time.monotonic() - began

    assert seconds("a snail") >= 0.4
    # The machine may be busy with other things: the best of a few tries counts.
    assert min(seconds("a cat") for _ in range(5)) < 0.4


EXITS = """
import sys
from tests.unit.test_stub import run, stub, unseen
from worker.backends import Inputs
made = stub(**{option})
made.generate(run(1, prompt="has poison in it"), Inputs(), lambda step, total: print(step, flush=True), unseen)
"""


@pytest.mark.parametrize(
    ("option", "steps"),
    [({"exit_at_step": 3}, "1 2"), ({"exit_load": True}, ""), ({"poison": "poison"}, ""), ({"poison": "other"}, None)],
    ids=["step", "load", "poison", "spared"],
)
def test_an_exit_ends_the_process(option: dict[str, Option], steps: str | None) -> None:
    program = EXITS.format(option=option)
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ran.returncode == (0 if steps is None else 70), ran.stderr
    assert ran.stdout.split() == ("1 2 3 4" if steps is None else steps).split()


def test_the_stub_meets_no_torch() -> None:
    program = "import sys, worker.backends as b, worker.backends.stub, worker.images; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ran.stdout.strip() == "False", ran.stderr


def test_a_transparent_drawing_under_a_mask_is_clear_there_and_nowhere_else() -> None:
    ground = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 255
    asked = run(1, transparent=True).model_copy(update={"task": "inpaint"})
    (picture,) = stub().generate(asked, Inputs((ground,), mask), silent, unseen)
    assert picture.pixels is not None
    assert picture.pixels.shape == (64, 64, 4)
    assert np.array_equal(picture.pixels[:, :32, :3], ground[:, :32])
    assert (picture.pixels[:, :32, 3] == 255).all()
    assert (picture.pixels[:, 32:, 3] == 0).any()
