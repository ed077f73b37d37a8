"""On a card, in the type it computes in: states come and go without a trace, and two replicas agree to the bit."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.messages import Device
from tests.contract.lora_rooms import BUILDERS, Replica

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.model,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
CARD = Device(kind="cuda", names=("0",))


@pytest.fixture(params=BUILDERS)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Replica, Replica]]:
    folder = BUILDERS[request.param](tmp_path / "model")
    both = Replica(folder, tmp_path, device=CARD), Replica(folder, tmp_path, device=CARD)
    yield both
    for each in both:
        each.close()


def test_any_history_ends_in_the_bytes_of_its_last_state(pair: tuple[Replica, Replica]) -> None:
    one, other = pair
    base, weights = one.picture(), one.weights()
    adapters = [one.adapter(seed) for seed in range(3)]
    drawn = random.Random(5)
    for _ in range(30):
        used = drawn.sample(adapters, drawn.randint(0, 2))
        one.adopt(*used, mode=drawn.choice(["attached", "merged"]))
    last = one.adopt(adapters[0], mode="merged", merge_scale=0.5)
    assert other.adopt(adapters[0], mode="merged", merge_scale=0.5) == last
    assert one.picture() == other.picture() != base
    own = one.picture(loras=(adapters[1],))
    assert own == other.picture(loras=(adapters[1],)) != base
    one.adopt()
    assert one.weights() == weights
    assert one.picture() == base
