"""What is particular to a pipeline: the manifest's sizes, and what becomes of a device that fails."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.cards import Size, Task
from shared.errors import InvalidOutput, LoadFailed, OutOfMemory, UnsupportedSize
from shared.messages import Device, Option, Parameters, Run, WantedModel
from tests import tiny
from worker import backends
from worker.backends import Inputs
from worker.device import DeviceLost

pytestmark = pytest.mark.model
CPU = Device(kind="cpu", names=("cpu",), threads=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.klein(tmp_path_factory.mktemp("native"), tiny.manifest(multiples=(1, 3, 8, 16)))


def backend(folder: Path, device: Device = CPU, **options: Option) -> Any:
    return backends.create(WantedModel(id="m", source=str(folder), backend="diffusion", options=options), device)


@pytest.fixture
def loaded(folder: Path) -> Iterator[Any]:
    made = backend(folder)
    made.load()
    yield made
    made.unload()


def run(side: int = 64, height: int | None = None, task: Task = "generate", steps: int = 2) -> Run:
    asked = Parameters(prompt="a cat", width=side, height=height or side, steps=steps, guidance=1.5)
    return Run(job="j", attempt=1, model="m", task=task, seeds=(1,), parameters=asked, epoch=0, digest="d")


def silent(step: int, total: int) -> None:
    pass


def unseen(preview: int, pixels: object) -> None:
    pass


def test_the_manifest_goes_before_the_family(folder: Path) -> None:
    card = backend(folder).load()
    assert (card.steps, card.guidance) == (2, 1.5)
    assert card.sizes.native == Size(width=64, height=64)
    assert card.sizes.default == Size(width=512, height=512)
    assert [str(size) for size in card.sizes.allowed] == ["64x64", "192x192", "512x512", "1024x1024"]
    assert card.sizes.enlargement == "nearest"
    assert card.vocabulary == ("circle", "red", "top", "small")


def test_a_multiple_of_the_native_size_is_that_picture_enlarged(loaded: Any) -> None:
    small, large = (loaded.generate(run(side), Inputs(), silent, unseen)[0].pixels for side in (64, 192))
    assert np.array_equal(large, small.repeat(3, 0).repeat(3, 1))


def test_no_other_size_is_made(loaded: Any) -> None:
    with pytest.raises(UnsupportedSize, match="tiny does not make 128x128"):
        loaded.generate(run(128), Inputs(), silent, unseen)


@pytest.mark.parametrize(("stretch", "columns"), [(False, [128, 128, 128]), (True, [0, 128, 255])])
def test_a_picture_of_another_shape_is_cut_or_stretched(loaded: Any, stretch: bool, columns: list[int]) -> None:
    thirds = np.repeat(np.array([0, 128, 255], np.uint8), 64)[None, :, None].repeat(64, 0).repeat(3, 2)
    asked = run().parameters.model_copy(update={"strength": 0.5, "stretch": stretch})
    call = loaded._caller.call("variation", asked, Inputs((thirds,)))
    given = np.asarray(call.arguments["image"])
    assert given.shape == (64, 64, 3)
    assert given[32, [4, 32, 60], 0].tolist() == columns


def test_options_are_bounds_of_loras(folder: Path) -> None:
    with pytest.raises(LoadFailed, match="step_seconds: not options of a pipeline"):
        backend(folder, step_seconds=1.0).load()
    made = backend(folder, max_adapter_bytes=7)
    made.load()
    assert made._loras._limits.max_adapter_bytes == 7
    made.unload()


def test_a_worker_for_the_stub_runs_no_pipeline(folder: Path) -> None:
    with pytest.raises(LoadFailed, match="a pipeline needs cuda, mps or cpu"):
        backend(folder, Device(kind="stub", names=("stub",))).load()


def test_a_picture_that_is_not_finite_is_no_picture(loaded: Any) -> None:
    next(loaded._pipeline.vae.decoder.parameters()).data.fill_(float("nan"))
    with pytest.raises(InvalidOutput, match="NaN"):
        loaded.generate(run(), Inputs(), silent, unseen)


@pytest.mark.parametrize("words", ["CUDA out of memory. Tried to allocate 2 GiB", "CUDA error: out of memory"])
def test_out_of_memory_leaves_no_tensor_behind(loaded: Any, words: str) -> None:
    import torch

    seen = []

    def fail(module: Any, inputs: Any) -> None:
        large = torch.zeros(1000)
        seen.append(weakref.ref(large))
        raise (torch.OutOfMemoryError if "Tried" in words else RuntimeError)(words)

    hook = loaded._pipeline.transformer.register_forward_pre_hook(fail)
    with pytest.raises(OutOfMemory) as caught:
        loaded.generate(run(), Inputs(), silent, unseen)
    assert caught.value.__context__ is None
    assert seen[0]() is None
    hook.remove()
    assert len(loaded.generate(run(), Inputs(), silent, unseen)) == 1


@pytest.mark.parametrize(
    ("words", "error"), [("CUDA error: device-side assert triggered", DeviceLost), ("shapes differ", RuntimeError)]
)
def test_only_an_error_that_stays_loses_the_device(loaded: Any, words: str, error: type[Exception]) -> None:
    def fail(module: Any, inputs: Any) -> None:
        raise RuntimeError(words)

    loaded._pipeline.transformer.register_forward_pre_hook(fail)
    with pytest.raises(error, match=words):
        loaded.generate(run(), Inputs(), silent, unseen)


def masked(width: int, height: int) -> Inputs:
    """A picture whose left half is to be painted."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    mask = np.zeros((height, width), np.uint8)
    mask[:, : width // 2] = 255
    return Inputs((pixels,), mask)


@pytest.mark.parametrize("size", [(64, 64), (500, 333), (8, 8), (1000, 40)], ids=str)
def test_under_a_mask_a_model_of_few_sizes_paints_any(loaded: Any, size: tuple[int, int]) -> None:
    given = masked(*size)
    [picture] = loaded.generate(run(*size, task="inpaint"), given, silent, unseen)
    width = size[0] // 2
    assert np.array_equal(picture.pixels[:, width:], given.images[0][:, width:])
    assert not np.array_equal(picture.pixels[:, :width], given.images[0][:, :width])


def test_a_small_model_edits_a_picture_of_another_shape(loaded: Any) -> None:
    given = Inputs(masked(300, 90).images)
    for task in ("edit", "variation"):
        [picture] = loaded.generate(run(192, task=task), given, silent, unseen)
        assert picture.pixels.shape == (192, 192, 3)
        assert picture.tokens.image_in == picture.tokens.image_out == 4 * 4


def test_more_than_a_pipeline_paints_at_once_is_painted_smaller(folder: Path, tmp_path: Path) -> None:
    made = backend(tiny.klein(tmp_path))
    made.load()
    given = masked(1400, 1000)
    [picture] = made.generate(run(1400, 1000, task="inpaint", steps=1), given, silent, unseen)
    assert np.array_equal(picture.pixels[:, 700:], given.images[0][:, 700:])
    assert picture.tokens.image_out * 256 <= 1024 * 1024
    made.unload()


def test_the_pipeline_for_masks_is_made_of_the_same_modules_and_changes_none(tmp_path: Path) -> None:
    import torch

    said = tiny.manifest(multiples=(1,)).model_copy(update={"cpu_dtype": "bfloat16"})
    made = backend(tiny.klein(tmp_path, said))
    made.load()
    parts = made._pipeline.components
    assert all(part is parts[name] for name, part in made._inpainting.components.items())
    modules = [part for part in parts.values() if isinstance(part, torch.nn.Module)]
    assert len(modules) == 3

    def dtypes() -> set[Any]:
        return {tensor.dtype for module in modules for tensor in module.parameters()}

    assert dtypes() == {torch.bfloat16}
    weights = made.memory_bytes()
    for task in ("inpaint", "variation", "edit", "generate"):
        [picture] = made.generate(run(task=task), Inputs() if task == "generate" else masked(64, 64), silent, unseen)
        assert picture.pixels.shape == (64, 64, 3)
        assert dtypes() == {torch.bfloat16}
    assert made.memory_bytes() == weights
    made.unload()
