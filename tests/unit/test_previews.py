"""Previews: when they are due, that they show what the picture becomes, and that they cost next to nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode

from shared.cards import Size, Task
from shared.messages import Device, Parameters, Run
from shared.sources import wanted
from tests import tiny
from worker import backends, embedded, images
from worker.backends import Inputs, preview_steps
from worker.backends.previews import Map, Watched

pytestmark = pytest.mark.model
Pixels = NDArray[np.uint8]
CPU = Device(kind="cpu", names=("cpu",), threads=1)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.integers(1, 1000), st.integers(0, 3))
def test_they_are_evenly_spaced_and_never_after_the_last_step(steps: int, previews: int) -> None:
    due = preview_steps(steps, previews)
    assert list(due.values()) == list(range(len(due)))
    assert list(due) == sorted(due)
    assert set(due) <= set(range(1, steps))
    assert len(due) == min(previews, steps - 1)
    for step, number in due.items():
        if len(due) == previews:
            assert abs(step - steps * (number + 1) / (previews + 1)) <= 0.5


@pytest.fixture(scope="module")
def shapes() -> Iterator[Any]:
    """The embedded model."""
    made = backends.create(wanted("shapes"), CPU)
    made.load()
    yield made
    made.unload()


def photo(seed: int = 5) -> Pixels:
    """Something that a model draws, and not noise: soft patches of colour."""
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return images.resize(small, Size(width=64, height=64))


def alike(one: Pixels, other: Pixels) -> float:
    """How the colours of two pictures go together, the larger one brought to the size of the smaller."""
    small = min(one, other, key=lambda pixels: pixels.size)
    size = Size(width=small.shape[1], height=small.shape[0])
    a, b = (images.resize(pixels, size).astype(float).ravel() for pixels in (one, other))
    return float(np.corrcoef(a, b)[0, 1])


def encoded(vae: Any, pixels: Pixels) -> Any:
    """A picture's latents, as the decoder takes them."""
    with torch.inference_mode():
        picture = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].to(next(vae.parameters()).dtype) / 127.5 - 1
        return vae.encode(picture).latent_dist.mode()[0]


def test_the_fitted_map_shows_what_an_autoencoder_holds(shapes: Any) -> None:
    vae = shapes._pipeline.vae
    fitted, said = Map.fitted(vae), Map.of(embedded.manifest("shapes"))
    assert said is not None
    for each in (fitted, said):
        for seed in range(3):
            shown = each.colours(encoded(vae, photo(seed)))
            assert (shown.shape, shown.dtype) == ((16, 16, 3), np.uint8)
            assert alike(shown, photo(seed)) > 0.95
            size = Size(width=16, height=16)
            assert np.abs(shown.astype(int) - images.resize(photo(seed), size)).mean() < 12


def test_a_fit_draws_nothing_from_anybodys_dice(shapes: Any) -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    one, two = (Map.fitted(shapes._pipeline.vae) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one._matrix, two._matrix)
    assert torch.equal(one._offset, two._offset)


def test_any_autoencoder_has_a_map(tmp_path: Path) -> None:
    """A random one too, in the dtype of an accelerator, though there is nothing in it to be seen."""
    said = tiny.manifest(multiples=(1,)).model_copy(update={"cpu_dtype": "bfloat16"})
    made: Any = backends.create(wanted(str(tiny.klein(tmp_path, said))), CPU)
    made.load()
    latents = encoded(made._pipeline.vae, photo())
    assert latents.dtype == torch.bfloat16
    assert made._preview.colours(latents).shape == (*latents.shape[1:], 3)
    assert bool(made._preview._matrix.isfinite().all())


def test_the_clean_latents_are_those_that_the_last_step_arrives_at() -> None:
    """A model whose velocity always points from the noise to one picture is seen through from the first step on."""
    scheduler = Watched(shift=3.0)
    drawn = torch.Generator().manual_seed(0)
    target, noise = (torch.randn(1, 16, 8, generator=drawn) for _ in range(2))
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.25, 4))
    for begin in (0, 2):
        scheduler.set_begin_index(begin)
        scheduler._step_index = None
        sigma = scheduler.sigmas[begin]
        latents = sigma * noise + (1 - sigma) * target
        for timestep in scheduler.timesteps[begin:]:
            latents = scheduler.step(noise - target, timestep, latents, return_dict=False)[0]
            assert torch.allclose(scheduler.clean(), target, atol=1e-5)
        assert torch.allclose(scheduler.clean(), latents, atol=1e-5)


PROMPTS = ("a red circle on a blue background", "a yellow star on a black background", "a green square")


def run(
    task: Task = "generate", *seeds: int, previews: int = 0, steps: int = 6, side: int = 64, prompt: str = PROMPTS[0]
) -> Run:
    asked = Parameters(
        prompt=prompt,
        width=side,
        height=side,
        steps=steps,
        guidance=2.0,
        strength=0.8 if task in ("inpaint", "variation") else None,
    )
    return Run(
        job="j",
        attempt=1,
        model="shapes",
        task=task,
        seeds=seeds or (1,),
        parameters=asked,
        epoch=0,
        digest="d",
        previews=previews,
    )


def watched(shapes: Any, asked: Run, given: Inputs) -> tuple[list[Pixels], Pixels]:
    """Its previews, and the picture."""
    shown: list[Pixels] = []
    [picture] = shapes.generate(asked, given, lambda step, total: None, lambda number, pixels: shown.append(pixels))
    return shown, picture.pixels


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_last_preview_is_like_the_picture(shapes: Any, prompt: str) -> None:
    for seed in (1, 2):
        shown, picture = watched(shapes, run("generate", seed, previews=3, prompt=prompt), Inputs())
        likeness = [alike(preview, picture) for preview in shown]
        assert len(likeness) == 3
        assert likeness[-1] > 0.8, likeness
        assert likeness[-1] > likeness[0], likeness
        # And not like any picture of this model.
        assert alike(shown[-1], watched(shapes, run(prompt=PROMPTS[0][::-1]), Inputs())[1]) < likeness[-1]


@pytest.mark.parametrize("task", ["edit", "variation", "inpaint"])
def test_the_previews_of_every_task_are_like_its_picture(shapes: Any, task: Task) -> None:
    _, ground = watched(shapes, run(prompt=PROMPTS[1]), Inputs())
    mask = np.full((64, 64), 255, np.uint8) if task == "inpaint" else None
    shown, picture = watched(shapes, run(task, previews=2), Inputs((ground,), mask))
    assert len(shown) == 2
    assert alike(shown[-1], picture) > 0.8


class Operations(TorchDispatchMode):
    """Counts what torch is asked to compute, and the elements that come out of it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        self.calls[str(function)] += 1
        self.elements += out.numel() if isinstance(out, torch.Tensor) else 0
        return out


def cost(shapes: Any, asked: Run) -> Operations:
    with Operations() as counted:
        watched(shapes, asked, Inputs())
    return counted


def test_a_preview_costs_a_handful_of_operations_and_no_run_of_a_network(shapes: Any) -> None:
    plain, shown = (cost(shapes, run(previews=previews)) for previews in (0, 3))
    extra = shown.calls - plain.calls
    assert 0 < extra.total() <= 3 * 60, extra
    assert not any("conv" in name or "attention" in name or "addmm" in name for name in extra), extra
    assert shown.elements - plain.elements < 0.03 * plain.elements


def test_who_wants_no_preview_pays_nothing(shapes: Any) -> None:
    fitted = shapes._preview
    with_map = cost(shapes, run())
    shapes._preview = None
    try:
        without = cost(shapes, run())
    finally:
        shapes._preview = fitted
    assert with_map.calls == without.calls


def test_a_family_without_a_map_shows_nothing(shapes: Any) -> None:
    fitted, shapes._preview = shapes._preview, None
    try:
        assert watched(shapes, run(previews=3), Inputs())[0] == []
    finally:
        shapes._preview = fitted


def test_the_latents_are_unpacked_row_by_row() -> None:
    """Their place in the sequence is their place in the picture, whatever its shape."""
    from worker.backends.previews import UNPACK

    rows, columns = 2, 3
    norm = SimpleNamespace(running_mean=torch.zeros(4), running_var=torch.ones(4))
    pipeline = SimpleNamespace(
        vae_scale_factor=8,
        vae=SimpleNamespace(bn=norm, config=SimpleNamespace(batch_norm_eps=0.0)),
        _unpatchify_latents=lambda grid: grid,
    )
    packed = torch.arange(rows * columns * 4, dtype=torch.float32).view(rows * columns, 4)
    grid = UNPACK["flux2"](pipeline, packed, Size(width=columns * 16, height=rows * 16))
    assert grid.shape == (4, rows, columns)
    assert grid[0].tolist() == [[0, 4, 8], [12, 16, 20]]
