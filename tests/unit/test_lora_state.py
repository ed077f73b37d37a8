"""A LoRA state on a model of a few layers: bits that come back in every type, and failures at every step on the way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.errors import AdapterMisfit, LoraFailed, OutOfMemory, UnsupportedOperation
from shared.loras import Adapter, LoraState
from tests.adapters import drawn, packed, peft, shelved

torch = pytest.importorskip("torch")
from worker.loras import attached, merged  # noqa: E402
from worker.loras.state import Limits, Loras  # noqa: E402

pytestmark = pytest.mark.model
SIDE = 16
DTYPES = ("float32", "bfloat16", "float16")


class Net(torch.nn.Module):  # type: ignore[misc]
    """Two layers, one of them a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, SIDE, 3, padding=1)
        self.inner = torch.nn.ModuleDict({"to_q": torch.nn.Linear(SIDE, SIDE), "to_out": torch.nn.Linear(SIDE, SIDE)})
        self.to_q = torch.nn.Linear(SIDE, 4)

    @property
    def device(self) -> Any:
        return self.to_q.weight.device

    def forward(self, x: Any) -> Any:
        y = self.conv(x).flatten(2).transpose(1, 2)
        return self.to_q(self.inner["to_out"](torch.relu(self.inner["to_q"](y))))


class Pipeline:
    """What of a Diffusers pipeline LoRAs need."""

    _lora_loadable_modules = ("unet", "text_encoder")

    def __init__(self, dtype: str = "float32") -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.unet = Net().to(getattr(torch, dtype)).requires_grad_(False)
        self.text_encoder = None

    @classmethod
    def lora_state_dict(cls, tensors: Any, **more: Any) -> Any:
        raise ValueError("unknown")


SHAPES = {
    "unet": {
        "conv": (SIDE, 3, 3, 3),
        "inner.to_q": (SIDE, SIDE),
        "inner.to_out": (SIDE, SIDE),
        "to_q": (4, SIDE),
    }
}


class Room:
    """A pipeline with its LoRAs and its shelf."""

    def __init__(self, shelf: Path, dtype: str = "float32", limits: Limits | None = None, stored: bool = False) -> None:
        self.pipeline, self.shelf = Pipeline(dtype), shelf
        folder = shelf / "model" if stored else None
        if folder:
            (folder / "unet").mkdir(parents=True, exist_ok=True)
            from safetensors.torch import save_file

            save_file(self.pipeline.unet.state_dict(), folder / "unet" / "model.safetensors")
        self.loras = Loras(self.pipeline, folder, limits)
        self.seen = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(1)).to(getattr(torch, dtype))

    def adapter(self, seed: int, **said: Any) -> Adapter:
        return shelved(self.shelf, peft(drawn(SHAPES, seed, rank=3)), f"lora {seed}", **said)

    def set(self, *adapters: Adapter, **said: Any) -> str:
        return self.loras.set_state(LoraState(adapters=adapters, **said), str(self.shelf))

    def out(self) -> bytes:
        with torch.inference_mode():
            return self.pipeline.unet(self.seen).float().numpy().tobytes()  # type: ignore[no-any-return]

    def weights(self) -> list[bytes]:
        held = self.loras._merged.weights["unet"].values()
        return [weight.detach().reshape(-1).view(torch.uint8).numpy().tobytes() for weight in held]


@pytest.fixture(params=DTYPES)
def room(request: pytest.FixtureRequest, tmp_path: Path) -> Room:
    return Room(tmp_path, request.param)


@pytest.mark.parametrize("bound", [1 << 30, 0], ids=["kept aside", "read again"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_after_two_hundred_states_the_base_is_there_to_the_bit(tmp_path: Path, dtype: str, bound: int) -> None:
    room = Room(tmp_path, dtype, Limits(max_pristine_bytes=bound), stored=True)
    before, base, bare = room.weights(), room.out(), room.set()
    states = np.random.default_rng(7)
    adapters = [room.adapter(seed) for seed in range(4)]
    moved = 0
    for _ in range(200):
        used = [
            each.model_copy(update={"scale": float(states.uniform(-2, 2))}) for each in adapters[: states.integers(5)]
        ]
        room.set(*used, mode=("attached", "merged")[states.integers(2)], merge_scale=float(states.uniform(0, 1)))
        moved += room.weights() != before
        assert room.loras._merged.kept_bytes <= bound
    assert moved > 50
    assert (room.set(), room.weights(), room.out()) == (bare, before, base)


def test_merged_is_rounded_once_from_the_first_bytes(room: Room) -> None:
    first = [weight.detach().float().clone() for weight in room.loras._merged.weights["unet"].values()]
    room.set(*(room.adapter(seed, scale=0.5) for seed in (1, 2)), mode="merged", merge_scale=0.5)
    states = LoraState(adapters=tuple(room.adapter(seed) for seed in (1, 2)))
    halves = {each.sha256: drawn(SHAPES, seed, rank=3) for seed, each in zip((1, 2), states.adapters, strict=True)}
    for (name, weight), total in zip(room.loras._merged.weights["unet"].items(), first, strict=True):
        for each in states.canonical():
            down, up = (torch.from_numpy(half).flatten(1) for half in halves[each.sha256]["unet", name])
            total.add_((up @ down).view(total.shape), alpha=0.25)
        assert torch.equal(weight.detach(), total.to(weight.dtype))


def test_what_is_off_costs_not_a_bit(room: Room) -> None:
    base = room.out()
    room.set(room.adapter(1))
    assert room.out() != base
    room.set(room.adapter(1, scale=0.0), room.adapter(2, scale=0.0))
    assert room.out() == base


def test_two_layers_that_end_alike_keep_their_own(tmp_path: Path) -> None:
    """`to_q` is the end of `inner.to_q`, and has another rank here."""
    room, other = Room(tmp_path), Room(tmp_path)
    layers = drawn({"unet": {"to_q": (4, SIDE)}}, rank=2) | drawn({"unet": {"inner.to_q": (SIDE, SIDE)}}, rank=5)
    mixed = shelved(tmp_path, peft(layers))
    alone = shelved(tmp_path, peft({place: pair for place, pair in layers.items() if place[1] == "to_q"}))
    assert room.loras.prepare(LoraState(adapters=(mixed,)), str(tmp_path))[0].matched == {"unet": 2}
    room.set(mixed)
    room.set(alone)
    other.set(alone)
    assert room.out() == other.out()
    other.set(mixed)
    assert room.out() != other.out()


def broken(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, place: int, error: Exception) -> None:
    """The call of this number fails, and those after it."""
    real, calls = getattr(owner, name), [0]

    def act(*args: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] > place:
            raise error
        return real(*args, **named)

    monkeypatch.setattr(owner, name, act)


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize(
    ("owner", "name"),
    [(merged.Merged, "_write"), (attached.Attached, "_fill"), (attached, "inject_adapter_in_model")],
    ids=["write", "fill", "inject"],
)
@pytest.mark.parametrize("before", ["base", "attached", "merged"])
def test_what_fails_on_the_way_leaves_the_base_and_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, place: int, before: str
) -> None:
    room, fresh = Room(tmp_path), Room(tmp_path)
    ink, oil = room.adapter(1), room.adapter(2)
    weights, base = room.weights(), room.out()
    if before != "base":
        room.set(ink, mode=before)
    wanted = LoraState(adapters=(ink, oil), mode="merged" if name == "_write" else "attached")
    with monkeypatch.context() as patch:
        broken(patch, owner, name, place, RuntimeError("out of luck"))
        try:
            room.loras.set_state(wanted, str(tmp_path))
        except RuntimeError:
            assert (room.weights(), room.out()) == (weights, base)
            with pytest.raises(LoraFailed, match="in doubt"), room.loras.overlay(None):
                pass
    assert room.loras.set_state(wanted, str(tmp_path)) == fresh.loras.set_state(wanted, str(tmp_path))
    assert room.out() == fresh.out()
    with room.loras.overlay(None):
        pass


def test_an_overlay_that_fails_on_its_way_in_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = Room(tmp_path)
    mark = room.set(room.adapter(1), mode="merged")
    out = room.out()
    with monkeypatch.context() as patch:
        broken(patch, attached.Attached, "_fill", 2, RuntimeError("out of memory"))
        with pytest.raises(RuntimeError, match="out of memory"), room.loras.overlay([room.adapter(2)]):
            raise AssertionError("it was not attached")
    assert (room.loras.fingerprint(), room.out()) == (mark, out)
    with room.loras.overlay([room.adapter(2)]):
        assert room.out() != out
    assert (room.loras.fingerprint(), room.out()) == (mark, out)


def test_an_overlay_that_cannot_be_taken_back_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = Room(tmp_path)
    room.set(room.adapter(1), mode="merged")
    out = room.out()
    with monkeypatch.context() as patch:  # noqa: SIM117
        with pytest.raises(LoraFailed, match="could not be taken back"), room.loras.overlay([room.adapter(2)]):
            broken(patch, merged.Merged, "_write", 1, RuntimeError("out of luck"))
    with pytest.raises(LoraFailed, match="in doubt"), room.loras.overlay(None):
        pass
    room.set(room.adapter(1), mode="merged")
    assert room.out() == out


def test_a_run_that_changed_a_weight_is_found_out(tmp_path: Path) -> None:
    room = Room(tmp_path)
    room.set(room.adapter(1))
    [layer] = [each for name, each in room.loras._attached._layers["unet"].items() if name == "conv"]
    key = next(iter(layer.lora_A))
    with pytest.raises(LoraFailed, match="not what they were"), room.loras.overlay([room.adapter(2)]):
        layer.lora_A[key].weight.data.view(torch.int32)[0, 0, 0, 0] ^= 1
    base = Room(tmp_path)
    base.set()
    next(iter(base.loras._merged.weights["unet"].values())).data.view(torch.int32)[0, 0, 0, 0] ^= 1
    base.loras._sound = False
    with pytest.raises(LoraFailed, match="not what it was when the model was loaded"):
        base.set()


def test_a_file_that_has_changed_does_not_bring_the_base_back(tmp_path: Path) -> None:
    room = Room(tmp_path, limits=Limits(max_pristine_bytes=0), stored=True)
    room.set(room.adapter(1), mode="merged")
    from safetensors.torch import save_file

    changed = {name: tensor + 1 for name, tensor in Pipeline().unet.state_dict().items()}
    save_file(changed, tmp_path / "model" / "unet" / "model.safetensors")
    with pytest.raises(LoraFailed, match="not what it was when the model was loaded"):
        room.set()


def test_without_room_to_keep_weights_aside_merging_is_refused(tmp_path: Path) -> None:
    room = Room(tmp_path, limits=Limits(max_pristine_bytes=100))
    state = LoraState(adapters=(room.adapter(1),), mode="merged")
    with pytest.raises(OutOfMemory, match="kept aside"):
        room.loras.prepare(state, str(tmp_path))
    room.loras.prepare(state.model_copy(update={"mode": "attached"}), str(tmp_path))


def test_to_a_quantized_layer_a_lora_is_attached_and_not_merged(tmp_path: Path) -> None:
    class Quantized(torch.nn.Parameter):  # type: ignore[misc]
        """As GGUF's are: a subclass."""

    room = Room(tmp_path)
    layer = room.pipeline.unet.to_q
    layer.weight = Quantized(layer.weight.data, requires_grad=False)
    layer.compute_dtype = torch.float32
    room.loras = Loras(room.pipeline, None)
    state = LoraState(adapters=(room.adapter(1),), mode="merged")
    with pytest.raises(UnsupportedOperation, match="quantized: LoRAs can be attached"):
        room.loras.prepare(state, str(tmp_path))
    out = room.out()
    room.set(room.adapter(1))
    assert room.out() != out
    room.set()
    assert room.out() == out


def test_a_scale_that_is_no_number_is_refused(tmp_path: Path) -> None:
    room = Room(tmp_path)
    for scale in (float("nan"), float("inf"), 8.5):
        with pytest.raises(AdapterMisfit, match="its scale is not between"):
            room.loras.prepare(LoraState(adapters=(room.adapter(1, scale=scale),)), str(tmp_path))


def test_a_pipeline_without_loras_says_so(tmp_path: Path) -> None:
    loras = Loras(object(), None)
    assert loras.set_state(LoraState(), str(tmp_path)) == "0" * 16
    with pytest.raises(AdapterMisfit, match="takes no LoRAs"):
        loras.prepare(LoraState(adapters=(Adapter(name="x", sha256="0" * 64),)), str(tmp_path))


def test_the_checksum_sees_every_bit_and_every_place() -> None:
    from worker.loras.checksum import Checksum

    checksum = Checksum()
    words = torch.arange(5 << 20, dtype=torch.int32)
    [first] = checksum.of([("a", words)]).values()
    for place in (0, 1, (4 << 20) + 3):
        changed = words.clone()
        changed[place] ^= 1 << 30
        swapped = words.clone()
        swapped[[place, 7]] = swapped[[7, place]]
        for other in (changed, swapped):
            assert checksum.of([("a", other)]) != {"a": first}
    assert checksum.of([("b", words)]) != {"b": first}
    assert checksum.of([("a", words.view(torch.uint8).view(torch.int32))]) == {"a": first}


def test_alphas_of_every_kind_are_in_the_scale(tmp_path: Path) -> None:
    import json

    room = Room(tmp_path)
    halves = drawn({"unet": {"to_q": (4, SIDE), "inner.to_q": (SIDE, SIDE)}}, rank=2)
    plain = {f"{part}.{name}": pair for (part, name), pair in halves.items()}
    tensors = {f"{name}.lora_{x}.weight": t for name, p in plain.items() for x, t in zip("AB", p, strict=True)}
    doubled = tensors | {name: t * 2 for name, t in tensors.items() if ".lora_B." in name}
    written = {"unet.lora_alpha": 4, "unet.r": 2, "unet.alpha_pattern": {"^to_q": 1}}
    by_layer = tensors | {
        "unet.inner.to_q.lora_B.weight": tensors["unet.inner.to_q.lora_B.weight"] * 2,
        "unet.to_q.lora_B.weight": tensors["unet.to_q.lora_B.weight"] * np.float32(0.5),
    }

    def made(data: bytes) -> bytes:
        room.set(shelved(tmp_path, data))
        return room.out()

    alphas = {f"{name}.alpha": np.float32(4.0).reshape(()) for name in plain}
    assert made(packed(tensors | alphas)) == made(packed(doubled))
    settings = {"lora_adapter_metadata": json.dumps(written)}
    assert made(packed(tensors, settings)) == made(packed(by_layer))
    assert made(packed(tensors, {"lora_adapter_metadata": "[]"})) == made(packed(tensors))


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
