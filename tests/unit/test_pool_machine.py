"""The pool in random order: whatever happens in whatever order, its invariants hold, and work is really done meanwhile.

A flat choice of rules would hardly ever finish a job, and then a broken pool passes. So the counts of what was reached
are asserted at the end: a machine that did nothing proves nothing.
"""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from shared import messages as m
from shared.errors import ReplicastError
from shared.wire import Packet, Stamp
from tests.unit import exploring
from tests.unit.laws import LIMITS, OTHER, REACHED, Laws
from tests.unit.sessions import NO_PICTURE, picture
from tests.unit.world import MODEL, Puppet

# What 300 sequences reach at the very least.
LEAST = {
    "accepted": 1000,
    "pictures": 600,
    "died": 200,
    "old results": 200,
    "cancelled": 100,
    "previews": 60,
    "dropped": 200,
    "drained": 10,
    "poison": 5,
    "gave up": 3,
    "expired": 5,
    "refused queue_full": 100,
    "refused not_ready": 50,
}
NAMES = ("a", "b", "c")
SELDOM = st.sampled_from([False] * 7 + [True])
SOMETIMES = st.sampled_from([False, False, True])


class PoolMachine(Laws):
    """Clients, workers, processes and time, each doing what they like."""

    def __init__(self) -> None:
        super().__init__()
        self.epoch = 0
        self.newcomers = 0
        self.former: list[tuple[Puppet, str]] = []
        self.dead: list[Puppet] = []
        for name in NAMES[:2]:
            self.world.ready(name)

    @initialize(plain=st.booleans(), partly=st.booleans())
    def some_worlds_are_plain(self, plain: bool, partly: bool) -> None:
        """With one model and without priorities it is known exactly whose turn it is."""
        self.plain = plain
        # So that it is known from the start how long a step takes.
        for model in ("stub",) if plain else ("stub", "other"):
            self.world.ask(model, "first", 0, 40)
            self.work(*self.hands()[0])
        if partly:
            self.world.ack(self.alive[1], without="other")

    def runs(self) -> list[m.Run]:
        """Every run that somebody who lives was handed."""
        return [run for puppet in self.alive for run in puppet.runs()]

    # Clients

    @rule(
        owner=st.sampled_from("aab"),
        priority=st.sampled_from([0, 0, 1, -1]),
        model=st.sampled_from(["stub", "other"]),
        inputs=st.sampled_from([(), (b"one",), (b"one", b"two")]),
        patience=st.sampled_from([40, 40, 8, 3]),
    )
    def a_client_submits(self, owner: str, priority: int, model: str, inputs: tuple[bytes, ...], patience: int) -> None:
        if self.plain:
            priority, model = 0, "stub"
        self._ask(model, owner, priority, patience, inputs)

    @rule(count=st.integers(2, 6), model=st.sampled_from(["stub", "other"]))
    def a_client_submits_many(self, count: int, model: str) -> None:
        for _ in range(count):
            self._ask("stub" if self.plain else model, "a", 0, 20, ())

    @rule()
    def somebody_new_comes(self) -> None:
        self.newcomers += 1
        self._ask("stub", f"new{self.newcomers}", 0, 40, (b"one",))

    def _ask(self, model: str, owner: str, priority: int, patience: float, inputs: tuple[bytes, ...]) -> None:
        try:
            self.world.ask(model, owner, priority, patience, inputs=inputs, previews=2)
            REACHED["accepted"] += 1
        except ReplicastError as error:
            REACHED[f"refused {error.code}"] += 1

    @precondition(lambda self: [job for job in self.jobs if not job.over])
    @rule(data=st.data(), late=st.sampled_from(["", "preview", "picture"]))
    def a_client_leaves(self, data: st.DataObject, late: str) -> None:
        job = data.draw(st.sampled_from([job for job in self.jobs if not job.over]))
        self.world.leave(job)
        # What was on its way when it left arrives all the same.
        for puppet, run in [(puppet, run) for puppet, run in self.hands() if run.job == job.id]:
            if late == "preview":
                self._preview(puppet, run, 0)
            elif late == "picture":
                self.work(puppet, run)

    # Workers at work

    @precondition(lambda self: self.hands())
    @rule(data=st.data(), also_what_is_ahead=st.booleans())
    def a_device_starts(self, data: st.DataObject, also_what_is_ahead: bool) -> None:
        hands = self.hands()
        puppet, run = data.draw(st.sampled_from(hands))
        for each in [r for p, r in hands if p is puppet] if also_what_is_ahead else [run]:
            self.world.start(puppet, each)

    @precondition(lambda self: self.hands())
    @rule(data=st.data(), count=st.integers(1, 3))
    def workers_work(self, data: st.DataObject, count: int) -> None:
        for _ in range(count):
            if hands := self.hands():
                self.work(*data.draw(st.sampled_from(hands)))

    @precondition(lambda self: self.hands())
    @rule(data=st.data(), good=st.sampled_from([True, True, True, False]))
    def a_picture_is_done(self, data: st.DataObject, good: bool) -> None:
        puppet, run = data.draw(st.sampled_from(self.hands()))
        with self.world.excusing(*([] if good else ["bad_result"])):
            self.world.done(puppet, run, picture(run.seeds[0]) if good else NO_PICTURE)
        assert good or self.world.session_of(puppet.name) is None

    @precondition(lambda self: self.hands())
    @rule(data=st.data(), preview=st.sampled_from([0, 0, 1, 1, 2]), good=st.sampled_from([True, True, True, False]))
    def a_preview_comes(self, data: st.DataObject, preview: int, good: bool) -> None:
        puppet, run = data.draw(st.sampled_from(self.hands()))
        wrong = preview >= run.previews or not good
        self._preview(puppet, run, preview, good)
        assert (self.world.session_of(puppet.name) is None) == wrong, "who shows what nobody asked for is not trusted"
        REACHED["previews"] += 1

    def _preview(self, puppet: Puppet, run: m.Run, preview: int, good: bool = True) -> None:
        message = m.Progress(job=run.job, attempt=run.attempt, step=1, total=4, preview=preview)
        with self.world.excusing(*(["bad_result"] if preview >= run.previews or not good else [])):
            self.world.say(puppet, message, (picture(run.seeds[0]) if good else NO_PICTURE,))

    @precondition(lambda self: self.hands())
    @rule(data=st.data(), code=st.sampled_from(["job_failed", "out_of_memory", "cancelled", "behind", "nonsense"]))
    def a_run_fails(self, data: st.DataObject, code: str) -> None:
        puppet, run = data.draw(st.sampled_from(self.hands()))
        asked = len(puppet.took(m.Want))
        over = run.job in self.world.outcomes
        self._fail(puppet, run, code)
        behind = code == "behind" and not over and self.world.is_of_now(run)
        assert len(puppet.took(m.Want)) == asked + behind, "the whole state, to who is behind"

    def _fail(self, puppet: Puppet, run: m.Run, code: str) -> None:
        self.world.say(puppet, m.Failed(job=run.job, attempt=run.attempt, problem=m.Problem(code=code, message="")))

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), preview=st.booleans())
    def something_old_arrives(self, data: st.DataObject, preview: bool) -> None:
        hands = self.hands()
        old = [(puppet, run) for puppet in self.alive for run in self.runs() if (puppet, run) not in hands]
        # An attempt that is over, of a job that the same worker has in hand: that is where it may be believed.
        again = [(puppet, run) for puppet, run in old for p, r in hands if (p, r.job) == (puppet, run.job)]
        if old:
            puppet, run = data.draw(st.sampled_from(again or old))
            if preview:
                self._preview(puppet, run, 0)
            else:
                self.world.done(puppet, run, picture(run.seeds[0]))
            REACHED["old results"] += 1

    # Workers that come, go, and misbehave

    @rule(name=st.sampled_from(NAMES), loads=st.sampled_from([True, True, False]), partly=SOMETIMES)
    def a_process_starts(self, name: str, loads: bool, partly: bool) -> None:
        puppet = self.world.boot(name)
        if loads:
            self.world.ack(puppet, without="other" if partly else "")

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), state=st.sampled_from([-1, 0]))
    def a_worker_acknowledges(self, data: st.DataObject, state: int) -> None:
        loading = [session.puppet for session in self.world.sessions.values() if not session.ready]
        self.world.ack(data.draw(st.sampled_from(loading or self.alive)), state=state)

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), again=st.sampled_from([True, True, False]))
    def a_process_dies(self, data: st.DataObject, again: bool) -> None:
        # Those with work first, and of these the ones whose work has killed before: poison is rare by chance alone.
        busy = sorted(self.hands(), key=lambda pair: -self.world.deaths[pair[1].job])
        puppet = busy[0][0] if busy else data.draw(st.sampled_from(self.alive))
        if data.draw(st.booleans()):
            for run in [run for other, run in busy if other is puppet][:1]:
                self.world.start(puppet, run)
        self.world.die(puppet)
        self.dead.append(puppet)
        REACHED["died"] += 1
        if again:
            self.world.ready(puppet.name)

    @precondition(lambda self: self.dead)
    @rule()
    def a_dead_process_introduces_itself(self) -> None:
        """What it said last may arrive after the news of its end; nobody may come in with its token."""
        puppet = self.dead[-1]
        self.world.puppets[puppet.peer] = puppet
        self.world.hello(puppet)
        del self.world.puppets[puppet.peer]

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), loads=st.sampled_from([True, True, False]))
    def a_worker_comes_back_by_itself(self, data: st.DataObject, loads: bool) -> None:
        # Those first who have a job in hand again that they never told the end of.
        held = {
            p: [r for r in p.runs() if (p.incarnation, r.job, r.attempt) not in self.world.told] for p in self.alive
        }
        again = [p for p, run in self.hands() if sum(run.job == old.job for old in held[p]) > 1]
        puppet = data.draw(st.sampled_from(again or self.alive))
        newest, oldest = ({run.job: run for run in runs} for runs in (held[puppet], held[puppet][::-1]))
        # Or who speaks of an attempt before the one that is on its way.
        former = {
            run.job: run.model_copy(update={"attempt": run.attempt - 1}) for p, run in self.hands() if p is puppet
        }
        running = data.draw(st.sampled_from([newest, oldest, former, {}]))
        self.former.append((puppet, puppet.session))
        self.world.hello(puppet, running=tuple(running.values()))
        if loads:
            self.world.ack(puppet)

    @precondition(lambda self: self.former)
    @rule(data=st.data())
    def somebody_speaks_in_a_session_that_is_over(self, data: st.DataObject) -> None:
        puppet, session = data.draw(st.sampled_from(self.former))
        if puppet.session == session:
            return
        behind = m.Problem(code="behind", message="")
        told = [m.Failed(job=run.job, attempt=run.attempt, problem=behind) for run in puppet.runs()[-1:]]
        said = data.draw(st.sampled_from([m.Bye(reason="x"), m.Ack(version=1, outcomes=()), *told]))
        self._dropped(puppet, Packet(said, Stamp(0, puppet.incarnation, session, puppet.seq + 1)))

    @precondition(lambda self: self.world.sessions)
    @rule(data=st.data(), message=st.sampled_from([m.Bye(reason="x"), m.Pong(count=1, steps=999, memory_bytes=0)]))
    def a_message_is_repeated(self, data: st.DataObject, message: m.Message) -> None:
        session = data.draw(st.sampled_from(list(self.world.sessions.values())))
        stamp = Stamp(0, session.puppet.incarnation, session.id, session.puppet.seq)
        self._dropped(session.puppet, Packet(message, stamp))

    def _dropped(self, puppet: Puppet, packet: Packet) -> None:
        notes = len(self.world.notes)
        self.world.do(self.world.pool.received(puppet.peer, packet, self.world.now))
        assert self.world.notes[notes:] in (["stranger_message"], ["replayed_message"]), "it is dropped"
        REACHED["dropped"] += 1

    @precondition(lambda self: self.world.sessions)
    @rule(
        data=st.data(),
        how=st.sampled_from(["illegal_message", "wire_error", "digest_mismatch", "undeliverable", "bye: x"]),
        again=st.sampled_from([True, True, False]),
    )
    def a_worker_has_to_go(self, data: st.DataObject, how: str, again: bool) -> None:
        session = data.draw(st.sampled_from(list(self.world.sessions.values())))
        puppet, world = session.puppet, self.world
        if how == "digest_mismatch" and session.acked == world.version:
            world.hello(puppet)
        with world.excusing(how):
            match how:
                case "illegal_message":
                    world.say(puppet, m.Cancel(job="x", attempt=1))
                case "wire_error":
                    world.do(world.pool.garbage(puppet.peer, "nonsense", world.now))
                case "digest_mismatch":
                    world.ack(puppet, digest="another")
                case "undeliverable":
                    world.do(world.pool.undeliverable(puppet.peer, "stuck", world.now))
                case _:
                    world.say(puppet, m.Bye(reason="x"))
        assert world.session_of(puppet.name) is None
        assert (world.killed[-1:] == [puppet.name]) or how == "bye: x"
        if again:
            world.die(puppet)
            world.ready(puppet.name)

    @precondition(lambda self: self.world.sessions)
    @rule(data=st.data())
    def a_worker_cannot_be_reached(self, data: st.DataObject) -> None:
        session = data.draw(st.sampled_from(list(self.world.sessions.values())))
        session.missed, session.heard = max(session.missed, LIMITS.suspect_after), False
        self.world.do(self.world.pool.undeliverable(session.puppet.peer, "unreachable", self.world.now))

    @precondition(lambda self: self.world.sessions)
    @rule(data=st.data(), really=SOMETIMES)
    def a_worker_leaves(self, data: st.DataObject, really: bool) -> None:
        if really:
            self.world.say(data.draw(st.sampled_from(self.alive)), m.Drain(reason="SIGTERM"))

    # Time, and those who keep the server

    @rule(
        times=st.sampled_from([1, 1, 3, 6]),
        punctual=st.sampled_from([True, True, False]),
        hears=st.sampled_from([NAMES, NAMES, NAMES[:1], ()]),
        moving=st.booleans(),
        yields=st.booleans(),
    )
    def time_passes(self, times: int, punctual: bool, hears: tuple[str, ...], moving: bool, yields: bool) -> None:
        hearing = tuple(puppet for puppet in self.alive if puppet.name in hears)
        self.world.tick(times, hearing=hearing, punctual=punctual, moving=moving)
        for session in [s for s in self.world.sessions.values() if yields and s.asked >= 0 and s.hands]:
            self._fail(session.puppet, next(iter(session.hands.values())).run, "cancelled")
            REACHED["gave up"] += 1

    @rule(lost=st.sampled_from([0, 0, 1, 2]), unload=SOMETIMES)
    def the_wanted_state_moves(self, lost: int, unload: bool) -> None:
        self.epoch += 1
        models = [MODEL] if unload else [MODEL, OTHER]
        self.world.want([model.model_copy(update={"epoch": self.epoch}) for model in models])
        for puppet in self.alive[lost:]:
            self.world.ack(puppet)

    @rule(names=st.sampled_from([*NAMES, NAMES]), really=SELDOM)
    def slots_are_given_up(self, names: str | tuple[str, ...], really: bool) -> None:
        for name in names if really else ():
            for puppet in [puppet for puppet in self.alive if puppet.name == name]:
                self.world.die(puppet)
            self.world.give_up(name)


def explore(examples: int) -> None:
    """Run so many sequences, the same ones each time, until one of them fails."""
    exploring.run(PoolMachine, examples, REACHED)


def test_the_pools_invariants_hold_in_any_order() -> None:
    explore(300)
    hardly = {what: REACHED[what] for what, times in LEAST.items() if REACHED[what] < times}
    assert not hardly, f"hardly reached: {hardly}"
