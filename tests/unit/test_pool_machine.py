"""The pool in random order: whatever happens in whatever order, its invariants hold, and work is really done meanwhile.

A flat choice of rules would hardly ever finish a job, and then a broken pool passes. So the counts of what was reached
are asserted at the end: a machine that did nothing proves nothing.
"""

from __future__ import annotations

from collections import Counter

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from gateway.backlog import order
from gateway.dispatch import AHEAD
from gateway.jobs.job import Job, JobState, Result
from gateway.limits import Limits
from gateway.workers import State
from shared import messages as m
from shared.errors import Poison, ReplicastError
from tests.unit.world import MODEL, PNG, Puppet, World

NAMES = ("a", "b", "c")
REACHED: Counter[str] = Counter()


class PoolMachine(RuleBasedStateMachine):
    """Clients, workers, processes and time, each doing what they like."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(limits=Limits(max_queue=6, max_attempts=3))
        self.accepted: list[Job] = []
        self.epoch = 0
        for name in NAMES[:2]:
            self.world.ready(name)

    @property
    def alive(self) -> list[Puppet]:
        return sorted(self.world.puppets.values(), key=lambda puppet: puppet.name)

    def current(self) -> list[tuple[Puppet, m.Run]]:
        """The runs in the workers' hands, as the pool sees them."""
        return [
            (puppet, run)
            for puppet in self.alive
            if (worker := self.world.pool.workers.get(puppet.name)) and worker.peer == puppet.peer
            for run in puppet.runs()
            if run.job in worker.jobs and worker.jobs[run.job].attempt == run.attempt
        ]

    @rule(count=st.integers(1, 3), priority=st.sampled_from([0, 0, 0, 5, -5]))
    def clients_submit(self, count: int, priority: int) -> None:
        for _ in range(count):
            try:
                job = self.world.submit(deadline=self.world.now + 40, priority=priority, previews=2)
                self.accepted.append(job)
                REACHED["accepted"] += 1
            except ReplicastError as error:
                REACHED[f"refused {error.code}"] += 1

    @precondition(lambda self: self.current())
    @rule(data=st.data())
    def a_device_starts(self, data: st.DataObject) -> None:
        self.world.start(*data.draw(st.sampled_from(self.current())))

    @precondition(lambda self: self.current())
    @rule(data=st.data())
    def a_worker_works(self, data: st.DataObject) -> None:
        puppet, run = data.draw(st.sampled_from(self.current()))
        self.world.start(puppet, run)
        self.world.done(puppet, run)

    @precondition(lambda self: self.current())
    @rule(data=st.data(), number=st.sampled_from([0, 0, 0, 1, 1, 1, 2]))
    def a_preview_comes(self, data: st.DataObject, number: int) -> None:
        puppet, run = data.draw(st.sampled_from(self.current()))
        asked = run.job in self.world.pool.jobs and number < 2
        before = len(self.world.shown)
        self.world.show(puppet, run, number)
        assert self.world.shown[before:] == ([(run.job, run.attempt, number)] if asked else [])
        REACHED["previews"] += asked

    @precondition(lambda self: self.current())
    @rule(data=st.data(), good=st.sampled_from([True] * 9 + [False]))
    def a_picture_is_done(self, data: st.DataObject, good: bool) -> None:
        self.world.done(*data.draw(st.sampled_from(self.current())), image=PNG if good else b"no picture")

    @precondition(lambda self: self.current())
    @rule(data=st.data(), code=st.sampled_from(["job_failed", "out_of_memory", "cancelled", "behind", "nonsense"]))
    def a_run_fails(self, data: st.DataObject, code: str) -> None:
        puppet, run = data.draw(st.sampled_from(self.current()))
        self.world.say(puppet, m.Failed(job=run.job, attempt=run.attempt, problem=m.Problem(code=code, message="")))

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def an_old_result_arrives(self, data: st.DataObject) -> None:
        puppet = data.draw(st.sampled_from(self.alive))
        now = self.current()
        old = [run for other in self.alive for run in other.runs() if (puppet, run) not in now]
        if old:
            run = data.draw(st.sampled_from(old))
            before, shown = set(self.world.outcomes), len(self.world.shown)
            self.world.show(puppet, run, 0)
            assert len(self.world.shown) == shown, "a preview of another attempt was shown"
            self.world.done(puppet, run)
            REACHED["old results"] += 1
            assert run.job not in set(self.world.outcomes) - before, "a result of another attempt counted"

    @precondition(lambda self: [job for job in self.accepted if not job.over])
    @rule(data=st.data())
    def a_client_leaves(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from([job for job in self.accepted if not job.over]))
        self.world.do(self.world.pool.cancel(job.id, self.world.now))

    @rule(name=st.sampled_from(NAMES), loads=st.sampled_from([True, True, True, False]))
    def a_process_starts(self, name: str, loads: bool) -> None:
        puppet = self.world.boot(name)
        if loads:
            self.world.ack(puppet)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def a_worker_acknowledges(self, data: st.DataObject) -> None:
        self.world.ack(data.draw(st.sampled_from(self.alive)))

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), again=st.sampled_from([True, True, False]))
    def a_process_dies(self, data: st.DataObject, again: bool) -> None:
        # Those with work first, and of these the ones whose work has killed before: poison is rare by chance alone.
        jobs = self.world.pool.jobs
        busy = sorted(self.current(), key=lambda pair: -jobs[pair[1].job].crashes if pair[1].job in jobs else 1)
        puppet = busy[0][0] if busy else data.draw(st.sampled_from(self.alive))
        for run in [run for other, run in busy if other is puppet][:1]:
            self.world.start(puppet, run)
        self.world.die(puppet)
        REACHED["died"] += 1
        if again:
            self.world.ready(puppet.name)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def a_worker_comes_back_by_itself(self, data: st.DataObject) -> None:
        puppet = data.draw(st.sampled_from(self.alive))
        held = [run for other, run in self.current() if other is puppet]
        self.world.hello(puppet, running=tuple(data.draw(st.sampled_from([held, held[:1], []]))))
        self.world.ack(puppet)

    @rule(data=st.data(), punctual=st.booleans(), deaf=st.booleans())
    def time_passes(self, data: st.DataObject, punctual: bool, deaf: bool) -> None:
        hearing = self.alive
        if deaf and self.alive:
            hearing = data.draw(st.lists(st.sampled_from(self.alive), unique_by=id))
        self.world.tick(hearing=tuple(hearing), punctual=punctual)

    @rule(lost=st.sampled_from([0, 0, 1, 2]))
    def the_wanted_state_moves(self, lost: int) -> None:
        self.epoch += 1
        self.world.do(self.world.pool.want([MODEL.model_copy(update={"epoch": self.epoch})], self.world.now))
        for puppet in self.alive[lost:]:
            self.world.ack(puppet)

    @rule(name=st.sampled_from(NAMES), chance=st.integers(0, 4))
    def a_slot_is_given_up(self, name: str, chance: int) -> None:
        if chance:
            return
        for puppet in [puppet for puppet in self.alive if puppet.name == name]:
            self.world.die(puppet)
        self.world.do(self.world.pool.given_up(name, "crash loop", self.world.now))

    @invariant()
    def every_job_has_one_answer_or_one_place(self) -> None:
        pool = self.world.pool
        waiting = [job for _, queue in pool.ledger.backlog for job in queue]
        held = [job for worker in pool.workers.values() for job in worker.jobs.values() if not job.over]
        for job in self.accepted:
            assert (job.id in self.world.outcomes) == job.over
            places = waiting.count(job) + held.count(job)
            assert places == (0 if job.over else 1), f"{job.id} is {job.state} in {places} places"
            assert (job in waiting) == (job.state is JobState.QUEUED)
        assert set(pool.jobs.values()) == {job for job in self.accepted if not job.over}

    @invariant()
    def who_waits_stands_in_order(self) -> None:
        for _, queue in self.world.pool.ledger.backlog:
            assert list(queue) == sorted(queue, key=order)

    @invariant()
    def nobody_holds_more_than_it_may(self) -> None:
        for worker in self.world.pool.workers.values():
            assert len(worker.jobs) <= worker.slots + AHEAD
            if any(job.crashes and not job.over for job in worker.jobs.values()):
                assert sum(not job.over for job in worker.jobs.values()) <= worker.slots

    @invariant()
    def only_those_in_step_were_given_work(self) -> None:
        pool = self.world.pool
        digests = {model.id: model.digest for model in pool.wanted.models}
        for puppet in self.alive:
            fresh = [run for run in puppet.runs() if run.job in pool.jobs and pool.jobs[run.job].attempt == run.attempt]
            for run in fresh:
                worker = pool.workers.get(puppet.name)
                if worker and worker.peer == puppet.peer and worker.version == pool.wanted.version:
                    assert worker.state is not State.LOADING
                if run.epoch == self.epoch:
                    assert run.digest == digests[run.model]

    @invariant()
    def nobody_waits_while_somebody_could_work(self) -> None:
        pool = self.world.pool
        waiting = [job for _, queue in pool.ledger.backlog for job in queue]
        for worker in pool.workers.values():
            idle = worker.state is State.READY and worker.version == pool.wanted.version and not worker.jobs
            if idle and worker.missed < pool.limits.suspect_after and worker.card("stub"):
                assert not waiting, f"{worker.name} idles while {len(waiting)} wait"

    def teardown(self) -> None:
        """When the faults stop, everything that was accepted gets its answer in bounded steps."""
        world = self.world
        for name in NAMES:
            for puppet in [puppet for puppet in self.alive if puppet.name == name]:
                world.die(puppet)
        worker = world.ready("d")
        for _ in range(200):
            todo = [run for puppet, run in self.current() if puppet is worker]
            if not todo:
                break
            world.start(worker, todo[0])
            world.done(worker, todo[0])
        for job in self.accepted:
            assert job.over, f"{job.id} never got an answer"
            outcome = world.outcomes[job.id]
            REACHED["pictures" if isinstance(outcome, Result) else outcome.code] += 1
            assert job.crashes <= world.pool.limits.max_attempts
            assert isinstance(outcome, Poison) == (job.crashes == world.pool.limits.max_attempts)


def test_the_pools_invariants_hold_in_any_order() -> None:
    REACHED.clear()
    run_state_machine_as_test(
        PoolMachine,
        settings=settings(
            max_examples=200,
            stateful_step_count=50,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert REACHED["accepted"] > 400, REACHED
    assert REACHED["pictures"] > REACHED["accepted"] / 3, REACHED
    assert REACHED["died"] > 150, REACHED
    assert REACHED["poison"] > 0, REACHED
    assert REACHED["old results"] > 100, REACHED
    assert REACHED["cancelled"] > 50, REACHED
    assert REACHED["previews"] > 100, REACHED
