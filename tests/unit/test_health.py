"""What readiness says: of each model, why it cannot be served; of each worker, how it is."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.health import STATES, readiness
from gateway.keeper import Facts, Standing
from gateway.launchers import Slot
from shared import messages as m
from tests.unit.world import CARD, MODEL, World

OTHER = m.WantedModel(id="other", source="other", backend="stub")


def facts(*names: str, standing: Standing = Standing.RUNNING, last_error: str = "") -> dict[str, Facts]:
    return {
        name: Facts(Slot(name, "stub", ("0",), 1), standing=standing, pid=1, last_error=last_error) for name in names
    }


def story(world: World, known: dict[str, Facts]) -> dict[str, Any]:
    ready, told = readiness(world.pool, known)
    assert ready == (told["status"] in ("ready", "degraded"))
    for model in told["models"].values():
        assert model["ready"] == (model["replicas_ready"] > 0) == ("reason" not in model)
    assert {worker["state"] for worker in told["workers"].values()} <= set(STATES)
    return told


def reason(world: World, known: dict[str, Facts]) -> str:
    told = story(world, known)
    assert told["status"] == "not_ready"
    return str(told["models"]["stub"]["reason"])


@pytest.fixture
def world() -> World:
    return World()


def test_ready_needs_one_replica_and_no_reason(world: World) -> None:
    world.ready("a")
    told = story(world, facts("a", "b"))
    assert told["status"] == "ready"
    assert told["models"] == {"stub": {"ready": True, "replicas_ready": 1, "replicas": 2}}
    assert [worker["state"] for worker in told["workers"].values()] == ["ready", "starting"]


def test_a_process_that_said_nothing_is_starting_and_one_that_did_is_loading(world: World) -> None:
    assert reason(world, facts("a")) == "no replica in step: workers are starting"
    world.boot("a")
    assert reason(world, facts("a", "b")) == "no replica in step: workers are loading, starting"


def test_without_workers_it_says_so(world: World) -> None:
    assert reason(world, {}) == "no replica in step: there are no workers"


@pytest.mark.parametrize("standing", [Standing.BACKING_OFF, Standing.QUARANTINED])
def test_what_died_is_told_with_its_end(world: World, standing: Standing) -> None:
    known = facts("a", standing=standing, last_error="exit status 70")
    assert reason(world, known) == f"no replica in step: workers are {standing.value} (exit status 70)"
    assert story(world, known)["workers"]["a"] == {
        "state": standing.value,
        "restarts": 0,
        "last_error": "exit status 70",
    }


def test_quarantine_of_one_takes_nothing_from_the_others(world: World) -> None:
    world.ready("a")
    known = facts("a") | facts("b", standing=Standing.QUARANTINED, last_error="signal SIGSEGV")
    told = story(world, known)
    assert (told["status"], told["models"]["stub"]["replicas_ready"]) == ("ready", 1)
    assert told["workers"]["b"]["state"] == "quarantined"


def test_a_worker_that_is_not_in_step_is_behind(world: World) -> None:
    world.ready("a")
    world.do(world.pool.want((MODEL.model_copy(update={"epoch": 1}),), world.now))
    assert reason(world, facts("a")) == "no replica in step: workers are behind the wanted state"


def test_a_worker_that_misses_pings_is_silent(world: World) -> None:
    world.ready("a")
    world.tick(world.pool.limits.suspect_after + 1)
    assert reason(world, facts("a")) == "no replica in step: workers are silent"


def test_a_model_that_cannot_be_loaded_says_why_and_the_rest_serves() -> None:
    world = World(models=(MODEL, OTHER))
    a = world.boot("a")
    version = world.pool.wanted.version
    good = m.Outcome(model="stub", card=CARD, epoch=MODEL.epoch, digest=MODEL.digest)
    bad = m.Outcome(model="other", problem=m.Problem(code="load_failed", message="there is no such folder"))
    world.say(a, m.Ack(version=version, outcomes=(good, bad)))
    told = story(world, facts("a"))
    assert told["status"] == "degraded"
    assert told["models"]["other"] == {
        "ready": False,
        "replicas_ready": 0,
        "replicas": 1,
        "problems": {"a": "there is no such folder"},
        "reason": "there is no such folder",
    }


def test_draining_is_not_ready_whatever_could_be_served(world: World) -> None:
    world.ready("a")
    world.do(world.pool.drain(world.now))
    ready, told = readiness(world.pool, facts("a"))
    assert not ready
    assert told["status"] == "draining"
