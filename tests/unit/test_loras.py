"""A LoRA state is content: what makes a difference to weights makes one to its digest, and nothing else does."""

from __future__ import annotations

import pytest

from shared.loras import NO_LORAS, Adapter, LoraState

INK = Adapter(name="ink", sha256="a" * 64, scale=0.5)
OIL = Adapter(name="oil", sha256="b" * 64)


def test_names_and_the_order_of_asking_make_no_difference() -> None:
    renamed = INK.model_copy(update={"name": "other"})
    assert LoraState(adapters=(INK, OIL)).digest == LoraState(adapters=(OIL, renamed)).digest


@pytest.mark.parametrize(
    "other",
    [
        NO_LORAS,
        LoraState(adapters=(INK, OIL)),
        LoraState(adapters=(INK.model_copy(update={"scale": 0.6}),)),
        LoraState(adapters=(INK.model_copy(update={"target": "unet"}),)),
        LoraState(adapters=(OIL.model_copy(update={"scale": 0.5}),)),
        LoraState(adapters=(INK,), mode="merged"),
        LoraState(adapters=(INK,), mode="merged", merge_scale=0.5),
        LoraState(adapters=(INK,), mode="merged", merge_target="unet"),
    ],
)
def test_whatever_makes_another_picture_makes_another_digest(other: LoraState) -> None:
    assert other.digest != LoraState(adapters=(INK,)).digest
