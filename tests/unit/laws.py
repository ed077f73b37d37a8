"""What always holds of the pool, whatever has happened in whatever order, and that all is answered in the end."""

from __future__ import annotations

import sys
from collections import Counter

from hypothesis.stateful import RuleBasedStateMachine, invariant

from gateway.jobs.job import Job, JobState, Result
from gateway.limits import Limits
from gateway.workers import State
from shared import messages as m
from shared.errors import Draining, Poison
from shared.sources import wanted
from tests.unit.sessions import SLOTS, Hand, Session, picture
from tests.unit.witness import Witness
from tests.unit.world import MODEL, Puppet

OTHER = wanted("stub", model_id="other")
LIMITS = Limits(
    ping_seconds=1, gone_after=4, load_seconds=5, stuck_seconds=1, max_queue=8, max_queue_per_key=5, max_attempts=3
)
REACHED: Counter[str] = Counter()


class Laws(RuleBasedStateMachine):
    """A world, the laws it is under, and its end; the rules by which it moves are in test_pool_machine.py."""

    def __init__(self) -> None:
        super().__init__()
        self.world = Witness(limits=LIMITS, models=(MODEL, OTHER))

    @property
    def alive(self) -> list[Puppet]:
        return sorted(self.world.puppets.values(), key=lambda puppet: puppet.name)

    @property
    def jobs(self) -> list[Job]:
        return list(self.world.jobs.values())

    def hands(self) -> list[tuple[Puppet, m.Run]]:
        """The runs in the workers' hands."""
        return [(s.puppet, hand.run) for s in self.world.sessions.values() for hand in s.hands.values()]

    def work(self, puppet: Puppet, run: m.Run) -> None:
        """Begin this run and deliver its picture."""
        self.world.start(puppet, run)
        self.world.done(puppet, run, picture(run.seeds[0]))

    @invariant()
    def the_pools_account_is_the_witnesses(self) -> None:
        pool, world = self.world.pool, self.world
        assert {w.peer: w.session for w in pool.workers.values()} == {p: s.id for p, s in world.sessions.items()}
        for worker in pool.workers.values():
            session = world.sessions[worker.peer]
            assert list(worker.jobs) == list(session.hands)
            assert (worker.state is State.LOADING) == (not session.ready and not session.draining)
            assert (worker.missed, worker.heard, worker.asked) == (session.missed, session.heard, session.asked >= 0)
            for job in worker.jobs.values():
                hand = session.hands[job.id]
                assert job.over or (job.attempt, job.started) == (hand.run.attempt, hand.begun)
        waiting = [job for _, queue in pool.ledger.backlog for job in queue]
        assert sorted(job.id for job in waiting) == sorted(job.id for job in world.waiting())
        for job in self.jobs:
            assert (job.id in world.outcomes) == job.over
            assert (job in waiting) == (job.state is JobState.QUEUED)
            assert job.crashes == world.deaths[job.id]
            assert isinstance(world.outcomes.get(job.id), Poison) == (job.crashes >= LIMITS.max_attempts)
            assert pool.ledger.backlog.waiting_of(job.owner) == sum(other.owner == job.owner for other in waiting)
        assert set(pool.jobs.values()) == {job for job in self.jobs if not job.over}

    @invariant()
    def nobody_draws_for_nobody(self) -> None:
        for session in self.world.sessions.values():
            for (job, attempt), called_off in session.owed.items():
                hand = session.hands.get(job)
                current = hand is not None and hand.run.attempt == attempt and job not in self.world.outcomes
                assert current or called_off, f"{session.puppet.name} was not told that nobody wants {job}"

    @invariant()
    def nobody_waits_while_somebody_could_work(self) -> None:
        world = self.world
        for session in [session for session in world.sessions.values() if not session.hands]:
            assert not any(world.fits(session, job) for job in world.waiting()), f"{session.puppet.name} idles"
            for other in world.sessions.values():
                assert not any(self._could_move(hand, session) for hand in list(other.hands.values())[SLOTS:])

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        served = [model.id for model in self.world.pool.wanted.models]
        assert all(job.model in served and self.world.hope(job.model) for job in self.world.waiting())

    def _could_move(self, hand: Hand, idle: Session) -> bool:
        job = self.world.jobs[hand.run.job]
        return not hand.begun and not job.over and self.world.fits(idle, job)

    # How it ends

    def teardown(self) -> None:
        """When the faults stop, everything that was accepted gets its answer in bounded steps."""
        if sys.exc_info()[0] is not None:
            return  # it has failed already, and that is what is to be told
        kind = len(self.jobs) % 4
        if self.world.pool.draining or kind == 0:
            self._leave()
            return
        if kind == 1:
            self._stand_still()
        self._stay_where_it_began()
        self._be_late()
        for puppet in self.alive:
            self.world.die(puppet)
        if kind == 2:
            self._lose_hope()
        else:
            worker = self.world.ready("d")
            self._work_off(worker)
            self._be_fair(worker)
        self._expect_answers()

    def _leave(self) -> None:
        """A server that leaves takes nothing new, and answers everybody."""
        world = self.world
        world.do(world.pool.drain(world.now))
        try:
            world.ask("stub", "late", 0, 40)
        except Draining:
            REACHED["drained"] += 1
        world.do(world.pool.abandon(world.now))
        self._expect_answers()
        for name in list(world.pool.workers):
            world.do(world.pool.retire(name, world.now))
        assert all(session.puppet.took(m.Drain) or session.draining for session in world.sessions.values())

    def _stand_still(self) -> None:
        """Who makes no step is asked; one gives up, and the others are replaced."""
        world = self.world
        for puppet, run in self.hands():
            world.start(puppet, run)
        if len(self.jobs) % 8 == 1:
            # A newer state is no excuse: what has begun is finished first.
            world.want(list(world.pool.wanted.models))
        for _ in range(LIMITS.gone_after + 4):
            world.tick(hearing=tuple(self.alive))
            asked = [session for session in world.sessions.values() if session.asked == 0 and session.hands]
            for session in asked[:1]:
                run = next(iter(session.hands.values())).run
                problem = m.Problem(code="cancelled", message="")
                world.say(session.puppet, m.Failed(job=run.job, attempt=run.attempt, problem=problem))
                REACHED["gave up"] += 1
            self.the_pools_account_is_the_witnesses()

    def _stay_where_it_began(self) -> None:
        """What has begun is where it is, whoever else comes."""
        for puppet, run in self.hands():
            self.world.start(puppet, run)
        self.world.ready("e")
        self.the_pools_account_is_the_witnesses()

    def _be_late(self) -> None:
        """What was loaded for a state that nobody wants any more makes nobody ready; for what is gone nobody waits."""
        late = self.world.boot("late")
        self.world.want([MODEL])
        self.world.ack(late, state=0)
        self.the_pools_account_is_the_witnesses()
        self.nobody_waits_for_nothing()

    def _lose_hope(self) -> None:
        """Nobody will come any more: then nobody waits."""
        for name in list(self.world.tokens):
            self.world.give_up(name)

    def _work_off(self, worker: Puppet) -> None:
        for _ in range(200):
            todo = [run for puppet, run in self.hands() if puppet is worker]
            if not todo:
                break
            self.work(worker, todo[0])
            self.the_pools_account_is_the_witnesses()

    def _be_fair(self, worker: Puppet) -> None:
        """Who asks for much does not keep others waiting."""
        for owner in ("flood",) * 5 + ("late",):
            self.world.ask("stub", owner, 0, 40)
        self._work_off(worker)

    def _expect_answers(self) -> None:
        for job in self.jobs:
            assert job.over, f"{job.id} never got an answer"
            outcome = self.world.outcomes[job.id]
            REACHED["pictures" if isinstance(outcome, Result) else outcome.code] += 1
