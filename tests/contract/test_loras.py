"""LoRAs on real tiny pipelines: a picture follows from the state alone, and the base comes back to the bit."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shared.errors import AdapterMisfit, InvalidAdapter, ReplicastError
from shared.loras import LoraState
from tests.adapters import kohya, old_diffusers, packed, peft, shelved
from tests.contract.lora_rooms import BUILDERS, Replica, run, silent
from worker.loras.state import Limits

pytestmark = [
    pytest.mark.model,
    # What Diffusers' own schedulers do with NumPy 2.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


@pytest.fixture(scope="module", params=BUILDERS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Replica, Replica]]:
    """Two replicas of one model."""
    folder = BUILDERS[request.param](tmp_path_factory.mktemp(request.param))
    shelf = tmp_path_factory.mktemp("shelf")
    both = Replica(folder, shelf), Replica(folder, shelf)
    yield both
    for each in both:
        each.close()


@pytest.fixture
def one(pair: tuple[Replica, Replica]) -> Replica:
    pair[0].adopt()
    return pair[0]


@pytest.fixture
def other(pair: tuple[Replica, Replica]) -> Replica:
    pair[1].adopt()
    return pair[1]


def level(first: bytes, second: bytes) -> int:
    """The greatest difference of two pictures."""
    both = [np.frombuffer(each, np.uint8).astype(int) for each in (first, second)]
    return int(np.abs(both[0] - both[1]).max())


def test_a_picture_follows_from_the_state_alone(one: Replica, other: Replica) -> None:
    ink, oil = one.adapter(1, "ink"), one.adapter(2, "oil", rank=3)
    base, bare = one.picture(), one.adopt()
    marks = {"ink": one.adopt(ink)}
    pictures = {"ink": one.picture()}
    assert level(base, pictures["ink"]) > 9
    marks["oil"], pictures["oil"] = one.adopt(oil), one.picture()
    assert (other.adopt(oil), other.picture()) == (marks["oil"], pictures["oil"]), "history made a difference"
    assert (one.adopt(ink), one.picture()) == (marks["ink"], pictures["ink"])
    assert (one.adopt(ink.model_copy(update={"scale": 0.0})), one.picture()) == (bare, base)
    assert (one.adopt(), one.picture()) == (bare, base)
    assert len({bare, *marks.values()}) == 3


def test_scales_are_absolute(one: Replica, other: Replica) -> None:
    half = one.adapter(1, scale=0.5)
    for scale in (0.5, 2.0, -1.0, 0.5):
        mark = one.adopt(half.model_copy(update={"scale": scale}))
    assert (other.adopt(half), other.picture()) == (mark, one.picture())


def test_several_at_once_are_all_there_in_whatever_order(one: Replica, other: Replica) -> None:
    ink, oil = one.adapter(1), one.adapter(2, scale=0.7)
    alone = []
    for each in (ink, oil):
        one.adopt(each)
        alone.append(one.picture())
    assert one.adopt(ink, oil) == other.adopt(oil, ink)
    assert one.picture() == other.picture()
    assert min(level(one.picture(), each) for each in alone) > 9
    twice = ink.model_copy(update={"scale": 0.25})
    one.adopt(twice, twice)
    other.adopt(ink.model_copy(update={"scale": 0.5}))
    assert one.picture() == other.picture()


def test_merging_is_setting_and_merging_twice_is_merging_once(one: Replica, other: Replica) -> None:
    ink, oil = one.adapter(1), one.adapter(2, scale=0.6)
    base = one.picture()
    mark = one.adopt(ink, oil, mode="merged", merge_scale=0.5)
    merged = one.picture()
    other.adopt(*(each.model_copy(update={"scale": each.scale * 0.5}) for each in (ink, oil)))
    assert level(merged, other.picture()) <= 2
    assert (one.adopt(ink, oil, mode="merged", merge_scale=0.5), one.picture()) == (mark, merged)
    other.adopt(oil, mode="merged")
    assert (other.adopt(oil, ink, mode="merged", merge_scale=0.5), other.picture()) == (mark, merged)
    one.adopt()
    assert one.picture() == base


def test_the_base_comes_back_to_the_bit(one: Replica) -> None:
    before, base, bare = one.weights(), one.picture(), one.adopt()
    states = np.random.default_rng(0)
    adapters = [one.adapter(seed, rank=rank) for seed, rank in ((1, 4), (2, 3), (3, 1))]
    for _ in range(20):
        chosen = [each.model_copy(update={"scale": float(states.uniform(-2, 2))}) for each in adapters]
        used = chosen[: states.integers(0, 4)]
        one.adopt(*used, mode=("attached", "merged")[states.integers(2)] if used else "attached")
    assert (one.adopt(), one.weights(), one.picture()) == (bare, before, base)


def test_a_part_alone_can_be_changed_or_merged(one: Replica, other: Replica) -> None:
    ink = one.adapter(1)
    [match] = one.prepare(ink)
    [main, *others] = match.matched
    aimed = ink.model_copy(update={"target": main})
    [part] = one.prepare(aimed)
    assert part.matched == {main: match.matched[main]}
    alone = shelved(one.shelf, peft(one.halves(1, parts=(main,))))
    if not others:
        with pytest.raises(AdapterMisfit, match="has no text_encoder that takes LoRAs"):
            one.prepare(ink.model_copy(update={"target": "text_encoder"}))
        with pytest.raises(AdapterMisfit, match="can be merged into"):
            one.prepare(ink, mode="merged", merge_target="text_encoder")
        return
    one.adopt(aimed)
    [main_alone] = one.prepare(alone)
    assert main_alone.matched == {main: match.matched[main]}
    picture = one.picture()
    one.adopt(ink)
    assert picture != one.picture()
    attached = one.picture()
    one.adopt(ink, mode="merged", merge_target=main)
    assert level(one.picture(), attached) <= 2
    touched = {place for place, _ in one.backend._loras._merged.touched}
    assert touched == {main}, "the others stay attached"


def test_every_format_of_one_lora_is_the_same_lora(one: Replica) -> None:
    halves = one.halves(1)
    main = next(iter(halves))[0]
    starts = {main: "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
    one.adopt(shelved(one.shelf, peft(halves)))
    picture = one.picture()
    for data in (old_diffusers(halves), kohya(halves, starts, alpha=2.0), kohya(halves, starts, alpha=1.0)):
        adapter = shelved(one.shelf, data)
        [match] = one.prepare(adapter)
        assert (match.unmatched, sum(match.matched.values())) == (0, len(halves))
        one.adopt(adapter)
        assert one.picture() == picture
    inside = {name: pair for (part, name), pair in halves.items() if part == main}
    pictures = set()
    for start in (main, "base_model.model", "diffusion_model"):
        one.adopt(shelved(one.shelf, peft({(start, name): pair for name, pair in inside.items()})))
        pictures.add(one.picture())
    assert len(pictures) == 1


def unfit(one: Replica) -> list[tuple[bytes, type[ReplicastError], str]]:
    """Files that are refused, and why."""
    halves = one.halves(1)
    good = peft(halves)
    place, (down, up) = next(iter(halves.items()))
    name = ".".join(place)
    stranger = {("transformer", f"blocks.{number}.attn"): (down, up) for number in range(9)}
    return [
        (good[: len(good) // 2], InvalidAdapter, "cut off"),
        (peft(halves | {place: (down, up * np.float32(np.nan))}), InvalidAdapter, "NaN or infinity"),
        (peft(stranger), AdapterMisfit, "changes nothing here"),
        (peft({place: (down, up), **stranger}), AdapterMisfit, "another family's|changes nothing"),
        (peft(halves | {place: (down, up[:-1])}), AdapterMisfit, "another family's"),
        (peft(halves | {place: (down[:, :-1], up)}), AdapterMisfit, "another family's"),
        (peft(halves | {place: (down[:-1], up)}), AdapterMisfit, "another family's"),
        (packed({f"{name}.lora_A.weight": down}), InvalidAdapter, "one half"),
        (
            packed({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up, f"{name}.dora_scale": up}),
            AdapterMisfit,
            "a DoRA",
        ),
        (packed({f"{name}.hada_w1_a": down}), AdapterMisfit, "a LoHa"),
        (packed({f"{name}.lokr_w1": down}), AdapterMisfit, "a LoKr"),
        (packed({f"{name}.weight": down}), AdapterMisfit, "changes nothing here"),
    ]


def test_what_does_not_fit_is_refused_and_moves_nothing(one: Replica) -> None:
    ink = one.adapter(1)
    mark, picture = one.adopt(ink), one.picture()
    for data, error, words in unfit(one):
        bad = shelved(one.shelf, data, "bad")
        for ask in (one.prepare, one.adopt):
            with pytest.raises(error, match=words):
                ask(ink, bad)
        assert one.backend._loras.fingerprint() == mark
    assert one.picture() == picture


def test_another_file_under_the_same_hash_is_refused(one: Replica) -> None:
    ink, oil = one.adapter(11), one.adapter(12)
    path = one.shelf / f"{ink.sha256}.safetensors"
    path.write_bytes((one.shelf / f"{oil.sha256}.safetensors").read_bytes())
    with pytest.raises(InvalidAdapter, match="not that of its hash"):
        one.prepare(ink)
    path.unlink()


def test_of_another_family_each_lora_is_refused(tmp_path: Path, one: Replica) -> None:
    for name, build in BUILDERS.items():
        stranger = Replica(build(tmp_path / name), one.shelf)
        fits = stranger.backend._family == one.backend._family
        foreign = stranger.adapter(1)
        stranger.close()
        if fits:
            one.prepare(foreign)
            continue
        with pytest.raises(AdapterMisfit):
            one.prepare(foreign)


class Nobody(Exception):
    """Stands for the engine's Stopped."""


def stop(step: int, total: int) -> None:
    raise Nobody


@pytest.mark.parametrize("mode", ["attached", "merged"])
def test_a_runs_own_loras_are_gone_with_it(one: Replica, other: Replica, mode: str) -> None:
    ink, oil, new = one.adapter(1), one.adapter(2), one.adapter(21)
    base = one.picture()
    mark = one.adopt(ink, mode=mode)
    picture = one.picture()
    for own in ((oil,), (), (new, ink), (ink.model_copy(update={"scale": 0.3}),)):
        other.adopt(*own)
        assert one.picture(own) == other.picture()
        assert (one.backend._loras.fingerprint(), one.picture()) == (mark, picture)
    assert one.picture(()) == base
    with pytest.raises(Nobody):
        one.picture((oil,), on_step=stop)
    with pytest.raises(AdapterMisfit):
        one.picture(
            (oil, shelved(one.shelf, packed({"x.lora_A.weight": np.ones((1, 1)), "x.lora_B.weight": np.ones((1, 1))})))
        )
    assert (one.backend._loras.fingerprint(), one.picture()) == (mark, picture)


def test_those_made_together_have_the_loras_of_their_runs(one: Replica) -> None:
    oil = one.adapter(2)
    runs = [run(seed, (oil,)) for seed in (1, 2)]
    together = one.backend.generate_together(runs, silent)
    for seed, made in zip((1, 2), together, strict=True):
        assert level(one.picture((oil,), seed=seed), made.pixels.tobytes()) <= 1
    assert one.backend._loras._sound


def test_a_state_is_prepared_while_a_picture_is_made(one: Replica) -> None:
    ink = one.adapter(31)
    before = one.picture()
    told: list[object] = []

    def prepare(step: int, total: int) -> None:
        asking = threading.Thread(target=lambda: told.append(one.prepare(ink)))
        asking.start()
        asking.join()

    assert one.picture(on_step=prepare) == before
    assert len(told) == 2
    one.adopt(ink)
    assert one.picture() != before


def test_fifty_in_turn_stay_within_the_bound(one: Replica) -> None:
    size = one.prepare(one.adapter(1))[0].bytes
    limits = Limits(max_adapter_bytes=3 * size, max_host_bytes=5 * size)
    made = Replica(one.folder, one.shelf, limits)
    made.adopt()
    loras = made.backend._loras
    names = ["transformer", "unet"]
    [main] = [getattr(made.backend._pipeline, name) for name in names if hasattr(made.backend._pipeline, name)]
    weights = sum(tensor.nbytes for tensor in main.parameters())
    for seed in range(50 if one.backend._family.name == "z-image" else 8):
        adapter = made.adapter(100 + seed)
        if seed % 3:
            made.adopt(adapter)
        else:
            made.picture((adapter,))
        assert loras.bytes <= limits.max_adapter_bytes
        assert loras._cache.bytes <= limits.max_host_bytes
    attached = sum(tensor.nbytes for tensor in main.parameters()) - weights
    assert 0 < attached <= limits.max_adapter_bytes, "what is deleted is not given back"
    with pytest.raises(ReplicastError, match="bytes; at most"):
        made.prepare(*(made.adapter(200 + seed) for seed in range(4)))
    made.close()


def test_the_state_of_a_fresh_start_is_the_state(one: Replica, other: Replica) -> None:
    state = LoraState(adapters=(one.adapter(1), one.adapter(2)), mode="merged")
    assert one.backend.adopt(state, str(one.shelf)) == other.backend.adopt(state, str(one.shelf))
    assert one.weights() == other.weights()


def test_a_runs_own_loras_keep_the_bound_too(tmp_path: Path) -> None:
    folder = BUILDERS["zimage"](tmp_path / "model")
    free = Replica(folder, tmp_path)
    adapters = [free.adapter(seed) for seed in range(3)]
    size = sum(match.bytes for match in free.prepare(*adapters))
    free.close()
    bound = Replica(folder, tmp_path, Limits(max_adapter_bytes=size - 1))
    try:
        bound.adopt()
        before = bound.picture()
        with pytest.raises(ReplicastError) as refused:
            bound.picture(loras=tuple(adapters))
        assert refused.value.code == "out_of_memory"
        assert bound.picture() == before
    finally:
        bound.close()
