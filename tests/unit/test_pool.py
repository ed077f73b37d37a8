"""The pool, by examples: each test is one promise."""

from __future__ import annotations

import pytest

from gateway.jobs.job import JobState
from gateway.limits import Limits
from gateway.workers import State
from shared import messages as m
from shared.errors import (
    Cancelled,
    Draining,
    Expired,
    NotReady,
    Poison,
    QueueFull,
    ReplicastError,
    StateChanged,
    UnknownModel,
)
from shared.loras import NO_LORAS, Adapter, LoraState
from shared.sources import wanted
from shared.wire import Packet, Stamp
from tests.unit.world import CARD, MODEL, Puppet, World


@pytest.fixture
def world() -> World:
    return World()


def failure(world: World, job_id: str) -> ReplicastError:
    outcome = world.outcomes[job_id]
    assert isinstance(outcome, ReplicastError)
    return outcome


def test_a_job_goes_to_a_ready_worker_and_its_picture_comes_back(world: World) -> None:
    a = world.ready("a")
    job = world.submit(seed=5)
    (run,) = a.runs()
    assert (run.job, run.attempt, run.seeds, run.epoch, run.digest) == (job.id, 1, (5,), MODEL.epoch, MODEL.digest)
    world.start(a, run)
    world.done(a, run)
    assert world.result(job).worker == "a"
    assert job.state is JobState.SUCCEEDED
    assert world.pool.jobs == {}


def test_before_a_replica_is_ready_a_request_is_refused_and_told_when_to_come_back(world: World) -> None:
    world.boot("a")
    with pytest.raises(NotReady) as refused:
        world.submit()
    assert refused.value.retry_after_seconds


def test_an_unknown_model_is_refused(world: World) -> None:
    world.ready("a")
    with pytest.raises(UnknownModel):
        world.submit("nosuch")


def test_an_idle_worker_comes_before_handing_ahead(world: World) -> None:
    a, b = world.ready("a"), world.ready("b")
    for _ in range(2):
        world.submit()
    assert (len(a.runs()), len(b.runs())) == (1, 1)


def test_one_job_is_handed_ahead_and_no_more(world: World) -> None:
    a = world.ready("a")
    for _ in range(5):
        world.submit()
    assert len(a.runs()) == 2
    world.done(a, a.runs()[0])
    assert len(a.runs()) == 3


def test_a_killed_workers_started_job_runs_again_with_the_same_seed(world: World) -> None:
    a = world.ready("a")
    job = world.submit(seed=9)
    world.start(a, a.runs()[0])
    b = world.ready("b")
    world.die(a)
    (run,) = b.runs()
    assert (run.job, run.attempt, run.seeds) == (job.id, 2, (9,))
    assert job.crashes == 1
    world.done(b, run)
    assert world.result(job).attempts == 2


def test_a_job_knows_how_far_it_is(world: World) -> None:
    a = world.ready("a")
    job = world.submit()
    run = a.runs()[0]
    assert (job.started, job.step, job.total) == (False, 0, 0)
    # Each as the worker says it, and what is held of it: nothing late or absurd takes anything back.
    for step, total, held in [(0, 4, (0, 4)), (2, 4, (2, 4)), (1, 4, (2, 4)), (-3, 4, (2, 4)), (9, 4, (4, 4))]:
        world.say(a, m.Progress(job=run.job, attempt=run.attempt, step=step, total=total))
        assert (job.started, job.step, job.total) == (True, *held)
    world.die(a)
    assert (job.started, job.step, job.total) == (False, 0, 0)


def test_work_that_had_not_started_goes_back_to_the_head_at_no_cost(world: World) -> None:
    a = world.ready("a")
    first, second, third = world.submit(), world.submit(), world.submit()
    world.start(a, a.runs()[0])
    world.die(a)
    assert (first.crashes, second.crashes) == (1, 0)
    b = world.ready("b")
    # The first has cost a worker its life: it runs alone.
    assert [run.job for run in b.runs()] == [first.id]
    world.done(b, b.runs()[0])
    assert [run.job for run in b.runs()[1:]] == [second.id, third.id]


def test_a_request_that_kills_every_worker_fails_after_its_attempts_and_is_named(world: World) -> None:
    bystander = None
    poison = None
    for attempt in range(3):
        worker = world.ready(f"w{attempt}")
        poison = poison or world.submit()
        bystander = bystander or world.submit()
        run = next(run for run in worker.runs() if run.job == poison.id)
        world.start(worker, run)
        world.die(worker)
    assert poison is not None
    assert bystander is not None
    assert isinstance(failure(world, poison.id), Poison)
    assert "job_poison" in world.notes
    good = world.ready("good")
    world.done(good, next(run for run in good.runs() if run.job == bystander.id))
    assert world.result(bystander)


def test_a_result_of_an_older_attempt_is_dropped(world: World) -> None:
    a = world.ready("a")
    job = world.submit()
    old = a.runs()[0]
    world.start(a, old)
    # It comes back by itself, in a new session, with the old picture in hand.
    world.hello(a)
    world.ack(a)
    new = a.runs()[-1]
    assert new.attempt == old.attempt + 1
    world.done(a, old)
    assert job.id not in world.outcomes
    assert "stale_result" in world.notes
    world.done(a, new)
    assert world.result(job).attempts == 2


def test_what_a_worker_still_has_in_hand_goes_on_in_its_next_session(world: World) -> None:
    a = world.ready("a")
    job = world.submit()
    world.start(a, a.runs()[0])
    world.hello(a, running=(a.runs()[0],))
    assert not a.took(m.Cancel)
    world.done(a, a.runs()[0])
    assert (world.result(job).attempts, job.crashes) == (1, 0)


def test_what_was_given_to_somebody_else_is_cancelled_in_the_next_session(world: World) -> None:
    a = world.ready("a")
    world.submit()
    old = a.runs()[0]
    world.hello(a)
    world.ack(a)
    world.hello(a, running=(old,))
    assert [(c.job, c.attempt) for c in a.took(m.Cancel)] == [(old.job, old.attempt)]  # type: ignore[attr-defined]


def test_what_nobody_waits_for_is_cancelled_again_in_the_next_session(world: World) -> None:
    a = world.ready("a")
    job = world.submit()
    world.do(world.pool.cancel(job.id, world.now))
    world.hello(a, running=(a.runs()[0],))
    # The first may have been lost with the session that it was said in.
    assert a.took(m.Cancel) == [m.Cancel(job=job.id, attempt=1)] * 2


def test_the_newer_life_of_a_name_wins(world: World) -> None:
    old = world.ready("a")
    new = world.ready("a")
    assert old.took(m.Bye)
    world.submit()
    assert (len(old.runs()), len(new.runs())) == (0, 1)
    world.say(old, m.Pong(count=1, steps=1, memory_bytes=1))
    assert "stranger_message" in world.notes


@pytest.mark.parametrize(("token", "protocol", "code"), [("wrong", m.PROTOCOL, "forbidden"), (None, 0, "protocol")])
def test_a_worker_that_does_not_fit_is_rejected_and_told_why(
    world: World, token: str | None, protocol: int, code: str
) -> None:
    a = world.boot("a")
    a.inbox.clear()
    world.hello(a, token=token, protocol=protocol)
    (reject,) = a.took(m.Reject)
    assert reject.code == code  # type: ignore[attr-defined]


def test_a_token_that_is_not_ascii_is_refused_and_not_raised(world: World) -> None:
    a = world.boot("a")
    a.inbox.clear()
    world.hello(a, token="é\udcff")
    assert a.took(m.Reject)


def test_a_token_is_worth_nothing_once_its_process_has_ended(world: World) -> None:
    a = world.ready("a")
    world.do(world.pool.exited("a", "exit status 0", world.now))
    a.inbox.clear()
    world.hello(a)
    assert a.took(m.Reject)


def test_pings_are_counted_and_a_silent_worker_is_given_up(world: World) -> None:
    a, b = world.ready("a"), world.ready("b")
    job = world.submit()
    holder, other = (a, b) if a.runs() else (b, a)
    world.start(holder, holder.runs()[0])
    world.tick(1, hearing=(other,))
    world.tick(world.pool.limits.suspect_after, hearing=(other,))
    # Suspect: it gets no new work, but nobody has given up on it yet.
    world.submit()
    assert len(holder.runs()) == 1
    world.tick(world.pool.limits.gone_after, hearing=(other,))
    assert holder.name in world.killed
    world.done(other, other.runs()[0])
    assert [run.job for run in other.runs()].count(job.id) == 1


def test_our_own_stall_is_nobodys_silence(world: World) -> None:
    a = world.ready("a")
    world.tick(50, punctual=False)
    assert world.pool.workers["a"].missed == 0
    assert not world.killed
    world.submit()
    assert a.runs()


def test_a_loading_worker_is_waited_for_within_its_bound() -> None:
    world = World(limits=Limits(ping_seconds=1, load_seconds=30))
    world.boot("a")
    world.tick(29)
    assert not world.killed
    world.tick(2)
    assert world.killed == ["a"]


def test_a_cancelled_job_leaves_the_queue_at_once(world: World) -> None:
    a = world.ready("a")
    jobs = [world.submit() for _ in range(3)]
    world.do(world.pool.cancel(jobs[2].id, world.now))
    assert isinstance(failure(world, jobs[2].id), Cancelled)
    for run in list(a.runs()):
        world.done(a, run)
    assert [run.job for run in a.runs()] == [jobs[0].id, jobs[1].id]


def test_a_cancelled_run_is_stopped_and_its_place_is_free_when_the_worker_says_so(world: World) -> None:
    a = world.ready("a")
    first, second, third = (world.submit() for _ in range(3))
    world.start(a, a.runs()[0])
    world.do(world.pool.cancel(first.id, world.now))
    assert [c.job for c in a.took(m.Cancel)] == [first.id]  # type: ignore[attr-defined]
    assert third.id not in [run.job for run in a.runs()]
    problem = m.Problem(code="cancelled", message="cancelled")
    world.say(a, m.Failed(job=first.id, attempt=1, problem=problem))
    assert [run.job for run in a.runs()] == [first.id, second.id, third.id]


def test_a_done_that_comes_after_its_cancel_changes_nothing(world: World) -> None:
    a = world.ready("a")
    job = world.submit()
    world.do(world.pool.cancel(job.id, world.now))
    world.done(a, a.runs()[0])
    assert isinstance(failure(world, job.id), Cancelled)
    assert world.pool.workers["a"].jobs == {}


def test_a_deadline_passes_in_the_queue_and_on_the_device(world: World) -> None:
    a = world.ready("a")
    running, ahead, queued = (world.submit(deadline=5.0) for _ in range(3))
    world.tick(6, hearing=(a,))
    for job in (running, ahead, queued):
        assert isinstance(failure(world, job.id), Expired)
    assert len(a.took(m.Cancel)) == 2


def test_a_full_queue_refuses_with_an_estimate() -> None:
    world = World(limits=Limits(max_queue=2))
    world.ready("a")
    for _ in range(4):
        world.submit()
    with pytest.raises(QueueFull) as full:
        world.submit()
    assert full.value.retry_after_seconds is not None
    assert 1 <= full.value.retry_after_seconds <= 60


def test_draining_takes_nothing_new_and_finishes_the_rest(world: World) -> None:
    a = world.ready("a")
    job = world.submit()
    world.do(world.pool.drain(world.now))
    with pytest.raises(Draining):
        world.submit()
    world.done(a, a.runs()[0])
    assert world.result(job)


def test_a_draining_worker_finishes_and_gets_no_more(world: World) -> None:
    a, b = world.ready("a"), world.ready("b")
    world.say(a, m.Drain(reason="SIGTERM"))
    for _ in range(2):
        world.submit()
    assert (len(a.runs()), len(b.runs())) == (0, 2)
    world.say(a, m.Bye(reason="drained"))
    assert "a" not in world.pool.workers


def test_a_new_wanted_state_reaches_everybody_and_who_is_behind_gets_no_work(world: World) -> None:
    a, b = world.ready("a"), world.ready("b")
    next_state = MODEL.model_copy(update={"epoch": 1})
    world.do(world.pool.want([next_state], world.now))
    job = world.submit()
    assert not a.runs()
    assert not b.runs()
    world.ack(b)
    (run,) = b.runs()
    assert (run.job, run.epoch, run.digest) == (job.id, 1, next_state.digest)


def test_a_worker_that_says_behind_gets_the_whole_state_and_the_job_goes_elsewhere_at_no_cost(world: World) -> None:
    a = world.ready("a")
    job = world.submit()
    b = world.ready("b")
    run = a.runs()[0]
    world.say(a, m.Failed(job=run.job, attempt=1, problem=m.Problem(code="behind", message="")))
    assert a.took(m.Want)
    assert [r.job for r in b.runs()] == [job.id]
    assert job.crashes == 0


def test_a_worker_that_acknowledges_another_state_than_it_was_sent_is_not_believed(world: World) -> None:
    a = world.boot("a")
    outcome = m.Outcome(model="stub", card=CARD, epoch=0, digest="not the digest")
    world.say(a, m.Ack(version=world.pool.wanted.version, outcomes=(outcome,)))
    assert world.killed == ["a"]


def test_unloading_a_model_ends_the_jobs_that_wait_for_it() -> None:
    other = wanted("stub", model_id="other")
    world = World(models=(MODEL, other))
    a = world.ready("a")
    jobs = [world.submit("other") for _ in range(3)]
    world.do(world.pool.want([MODEL], world.now))
    assert isinstance(failure(world, jobs[2].id), UnknownModel)
    behind = m.Problem(code="behind", message="")
    for run in a.runs():
        world.say(a, m.Failed(job=run.job, attempt=run.attempt, problem=behind))
    assert all(isinstance(failure(world, job.id), UnknownModel) for job in jobs)


def test_nobody_waits_for_workers_that_are_given_up(world: World) -> None:
    a = world.ready("a")
    job = world.submit()
    world.start(a, a.runs()[0])
    world.die(a)
    assert job.id not in world.outcomes
    world.do(world.pool.given_up("a", "crash loop", world.now))
    assert isinstance(failure(world, job.id), NotReady)


def test_a_picture_that_is_none_ends_the_worker_and_is_made_again(world: World) -> None:
    a, b = world.ready("a"), world.ready("b")
    job = world.submit()
    holder, other = (a, b) if a.runs() else (b, a)
    world.start(holder, holder.runs()[0])
    world.done(holder, holder.runs()[0], image=b"<html>")
    assert holder.name in world.killed
    world.done(other, other.runs()[0])
    assert world.result(job).worker == other.name


def test_a_result_for_somebody_elses_job_is_dropped(world: World) -> None:
    a, b = world.ready("a"), world.ready("b")
    job = world.submit()
    holder, other = (a, b) if a.runs() else (b, a)
    world.done(other, holder.runs()[0])
    assert job.id not in world.outcomes
    assert "stale_result" in world.notes


def test_a_replayed_message_is_dropped(world: World) -> None:
    a = world.ready("a")
    stamp = Stamp(0, a.incarnation, a.session, a.seq)
    world.do(world.pool.received(a.peer, Packet(m.Bye(reason="replayed"), stamp), world.now))
    assert "replayed_message" in world.notes
    assert world.pool.workers["a"].state is State.READY


def test_a_message_that_only_a_gateway_may_say_ends_the_session(world: World) -> None:
    a = world.ready("a")
    world.say(a, m.Cancel(job="x", attempt=1))
    assert world.killed == ["a"]


def test_garbage_ends_its_senders_session_and_a_strangers_is_only_counted(world: World) -> None:
    a = world.ready("a")
    world.do(world.pool.garbage(b"stranger", "nonsense", world.now))
    assert not world.killed
    world.do(world.pool.garbage(a.peer, "nonsense", world.now))
    assert world.killed == ["a"]


def test_a_peer_that_does_not_read_is_replaced_and_its_work_moves(world: World) -> None:
    a, b = world.ready("a"), world.ready("b")
    job = world.submit()
    holder, other = (a, b) if a.runs() else (b, a)
    world.do(world.pool.undeliverable(holder.peer, "stuck", world.now))
    assert [run.job for run in other.runs()] == [job.id]
    assert world.killed == [holder.name]


def test_a_peer_that_is_gone_gets_no_work_until_it_is_known_why(world: World) -> None:
    a, b = world.ready("a"), world.ready("b")
    job = world.submit()
    holder, other = (a, b) if a.runs() else (b, a)
    world.do(world.pool.undeliverable(holder.peer, "unreachable", world.now))
    for _ in range(2):
        world.submit()
    assert len(holder.runs()) == 1
    assert not world.killed
    world.hello(holder)
    world.ack(holder)
    assert job.crashes == 0
    assert not world.killed
    world.do(world.pool.undeliverable(holder.peer, "unreachable", world.now))
    world.tick(world.pool.limits.gone_after, hearing=(other,))
    assert world.killed == [holder.name]


def test_a_hello_from_a_connection_that_was_given_up_changes_nothing(world: World) -> None:
    a = world.ready("a")
    stale = Stamp(0, a.incarnation, "", 1)
    hello = m.Hello(
        protocol=m.PROTOCOL,
        name="a",
        token=a.token,
        incarnation=a.incarnation,
        slots=1,
        pid=1,
        host="here",
        device=m.Device(kind="stub", names=()),
    )
    world.do(world.pool.received(b"former", Packet(hello, stale), world.now))
    assert not a.took(m.Bye)
    world.submit()
    assert a.runs()


def test_an_illegal_move_of_our_own_raises(world: World) -> None:
    world.ready("a")
    job = world.submit()
    job.move(JobState.QUEUED)
    with pytest.raises(RuntimeError, match="no move"):
        job.move(JobState.SUCCEEDED)


def test_when_no_time_is_left_every_job_is_answered(world: World) -> None:
    world.ready("a")
    jobs = [world.submit() for _ in range(4)]
    world.do(world.pool.drain(world.now))
    world.do(world.pool.abandon(world.now))
    assert all(isinstance(failure(world, job.id), Draining) for job in jobs)


def test_a_job_that_kills_before_it_can_say_it_started_is_counted(world: World) -> None:
    poison = None
    for attempt in range(3):
        worker = world.ready(f"w{attempt}")
        poison = poison or world.submit()
        assert worker.runs()
        world.die(worker)
    assert poison is not None
    assert isinstance(failure(world, poison.id), Poison)


def test_a_session_that_was_only_lost_is_no_crash(world: World) -> None:
    a = world.ready("a")
    job = world.submit()
    for _ in range(5):
        world.start(a, a.runs()[-1])
        world.hello(a)
        world.ack(a)
    assert job.crashes == 0
    world.done(a, a.runs()[-1])
    assert world.result(job)


def test_a_worker_that_shows_no_step_is_asked_then_replaced() -> None:
    world = World(limits=Limits(ping_seconds=1, stuck_seconds=5, gone_after=4))
    a = world.ready("a")
    world.submit()
    world.done(a, a.runs()[0])
    job = world.submit()
    world.start(a, a.runs()[1])
    world.tick(5, hearing=(a,))
    assert not a.took(m.Cancel)
    world.tick(2, hearing=(a,))
    assert a.took(m.Cancel) == [m.Cancel(job=job.id, attempt=1)], "it is asked, once"
    world.tick(2, hearing=(a,))
    assert not world.killed
    world.tick(2, hearing=(a,))
    assert world.killed == ["a"]
    assert len(a.took(m.Cancel)) == 1
    assert job.crashes == 1


def test_a_worker_that_can_be_called_off_lives_and_its_job_goes_elsewhere() -> None:
    world = World(limits=Limits(ping_seconds=1, stuck_seconds=5))
    a = world.ready("a")
    world.submit()
    world.done(a, a.runs()[0])
    job = world.submit()
    run = a.runs()[1]
    world.start(a, run)
    world.tick(7, hearing=(a,))
    b = world.ready("b")
    problem = m.Problem(code="cancelled", message="")
    world.say(a, m.Failed(job=run.job, attempt=run.attempt, problem=problem))
    assert job.crashes == 1
    assert job.id not in world.outcomes, "it was not the client who called it off"
    again = (a.runs() + b.runs())[-1]
    world.done(b if b.runs() else a, again)
    assert world.result(job)
    world.tick(20, hearing=(a, b))
    assert not world.killed


def test_a_worker_that_moves_again_before_it_is_called_off_costs_no_client_the_picture() -> None:
    world = World(limits=Limits(ping_seconds=1, stuck_seconds=5))
    a = world.ready("a")
    world.submit()
    world.done(a, a.runs()[0])
    job = world.submit()
    run = a.runs()[1]
    world.start(a, run)
    world.tick(7, hearing=(a,))
    assert a.took(m.Cancel), "it is asked"
    # It stood still as a whole, and now says all at once: a step was made, and then the cancel was read.
    world.say(a, m.Pong(count=1, steps=9, memory_bytes=0))
    world.tick(1)
    world.say(a, m.Failed(job=run.job, attempt=run.attempt, problem=m.Problem(code="cancelled", message="")))
    assert job.id not in world.outcomes, "it was not the client who called it off"
    world.done(a, a.runs()[-1])
    assert world.result(job)


def test_a_job_that_hangs_everywhere_is_poison() -> None:
    world = World(limits=Limits(ping_seconds=1, stuck_seconds=5, max_attempts=2))
    a = world.ready("a")
    world.submit()
    world.done(a, a.runs()[0])
    job = world.submit()
    for _ in range(2):
        run = a.runs()[-1]
        world.start(a, run)
        world.tick(7, hearing=(a,))
        world.say(a, m.Failed(job=run.job, attempt=run.attempt, problem=m.Problem(code="cancelled", message="")))
    assert isinstance(world.outcomes[job.id], Poison)


def test_before_a_models_first_picture_more_patience_is_had() -> None:
    world = World(limits=Limits(ping_seconds=1, stuck_seconds=5, gone_after=5))
    a = world.ready("a")
    world.submit()
    world.tick(45, hearing=(a,))
    assert not a.took(m.Cancel)
    world.tick(10, hearing=(a,))
    assert not world.killed
    world.tick(5, hearing=(a,))
    assert world.killed == ["a"]


def test_a_worker_that_makes_steps_is_not_stuck() -> None:
    world = World(limits=Limits(ping_seconds=1, stuck_seconds=1))
    a = world.ready("a")
    world.submit()
    for step in range(60):
        world.say(a, m.Pong(count=step, steps=step + 1, memory_bytes=0))
        world.tick(1)
    assert not world.killed


def test_a_cancel_that_is_never_answered_ends_the_worker() -> None:
    world = World(limits=Limits(ping_seconds=1, stuck_seconds=1))
    a = world.ready("a")
    job = world.submit()
    world.do(world.pool.cancel(job.id, world.now))
    world.tick(20, hearing=(a,))
    assert world.killed == ["a"]


def test_a_process_that_never_says_hello_is_replaced() -> None:
    world = World(limits=Limits(ping_seconds=1, hello_seconds=10))
    world.do(world.pool.expect("a", "token", world.now))
    world.tick(10)
    assert not world.killed
    world.tick(2)
    assert world.killed == ["a"]


def test_a_busy_model_starves_no_other() -> None:
    world = World(models=(MODEL, wanted("stub", model_id="other")))
    a = world.ready("a")
    for _ in range(5):
        world.submit("stub")
    other = world.submit("other")
    for _ in range(5):
        world.submit("stub")
    for _ in range(6):
        world.done(a, next(run for run in a.runs() if run.job in world.pool.jobs))
    assert world.result(other)


def test_a_job_handed_ahead_is_taken_back_for_a_worker_with_nothing_to_do(world: World) -> None:
    a, b = world.ready("a"), world.ready("b")
    long, short, ahead = world.submit(), world.submit(), world.submit()
    slow, quick = (a, b) if a.runs()[0].job == long.id else (b, a)
    if ahead.id not in [run.job for run in slow.runs()]:
        slow, quick, long, short = quick, slow, short, long
    world.start(slow, slow.runs()[0])
    world.start(quick, quick.runs()[0])
    world.done(quick, quick.runs()[0])
    assert [c.job for c in slow.took(m.Cancel)] == [ahead.id]  # type: ignore[attr-defined]
    again = quick.runs()[-1]
    assert (again.job, again.attempt) == (ahead.id, 2)
    # What its first holder says of it is of another attempt.
    world.say(slow, m.Failed(job=ahead.id, attempt=1, problem=m.Problem(code="cancelled", message="")))
    world.done(quick, again)
    assert world.result(ahead).worker == quick.name


def test_what_has_begun_is_not_taken_back(world: World) -> None:
    a = world.ready("a")
    world.submit()
    world.submit()
    for run in a.runs():
        world.start(a, run)
    b = world.ready("b")
    assert not b.runs()


def test_a_model_that_could_not_be_loaded_is_asked_for_again() -> None:
    world = World(limits=Limits(ping_seconds=1, retry_load_seconds=10))
    a = world.boot("a")
    outcome = m.Outcome(model="stub", problem=m.Problem(code="load_failed", message="disk"))
    world.say(a, m.Ack(version=world.pool.wanted.version, outcomes=(outcome,)))
    world.tick(12, hearing=(a,))
    assert len(a.took(m.Want)) == 1
    world.ack(a)
    assert world.submit()
    world.tick(30, hearing=(a,))
    assert len(a.took(m.Want)) == 1


def test_a_picture_of_another_seed_is_not_what_was_asked(world: World) -> None:
    a = world.ready("a")
    job = world.submit(seed=7)
    run = a.runs()[0].model_copy(update={"seeds": (8,)})
    world.done(a, run)
    assert job.id not in world.outcomes
    assert world.killed == ["a"]


def test_what_would_expire_before_its_turn_is_refused_at_once() -> None:
    world = World()
    a = world.ready("a")
    for _ in range(3):
        world.submit(deadline=world.now + 1.5)
    assert len(world.pool.jobs) == 3, "nothing is known yet: nobody is refused on a guess"
    while world.pool.jobs:
        run = next(run for run in a.runs() if run.job in world.pool.jobs)
        world.start(a, run)
        world.done(a, run, seconds=1.0)
    for _ in range(3):
        world.submit(deadline=world.now + 60)
    with pytest.raises(QueueFull) as refused:
        world.submit(deadline=world.now + 1.5)
    assert refused.value.retry_after_seconds == pytest.approx(3.0, rel=0.1)
    world.submit(deadline=world.now + 60)


def test_a_key_has_its_share_of_the_queue() -> None:
    world = World(limits=Limits(max_queue=10, max_queue_per_key=2))
    world.ready("a")
    for _ in range(4):
        world.submit(owner="greedy")
    with pytest.raises(QueueFull, match="this key"):
        world.submit(owner="greedy")
    assert world.submit(owner="modest")


def test_a_key_and_a_model_have_their_share_of_work_too() -> None:
    """In seconds of a device: a second each while nothing is known."""
    world = World(limits=Limits(max_queue_seconds_per_key=2.5, max_queue_seconds=4.5))
    world.ready("a")
    for _ in range(4):
        world.submit(owner="greedy")
    with pytest.raises(QueueFull, match="work of this key"):
        world.submit(owner="greedy")
    for _ in range(2):
        world.submit(owner="modest")
    with pytest.raises(QueueFull, match="work for 'stub'"):
        world.submit(owner="another")


def test_one_that_is_large_is_taken_where_nothing_waits() -> None:
    world = World(limits=Limits(max_queue_seconds_per_key=0.1))
    world.ready("a")
    for _ in range(3):
        assert world.submit(owner="x")
    with pytest.raises(QueueFull):
        world.submit(owner="x")


def batching(size: int = 4, **limits: int) -> World:
    """A world whose model makes so many pictures in one call."""
    world = World(limits=Limits(max_batch=size, **limits))
    world.card = world.card.model_copy(update={"max_batch": 8})
    return world


def batches(puppet: Puppet) -> list[tuple[str, ...]]:
    """The jobs of each call that a worker was asked for."""
    calls: dict[str, list[str]] = {}
    for run in puppet.runs():
        calls.setdefault(run.batch or f"alone {run.job} {run.attempt}", []).append(run.job)
        assert run.batch_size == 1 or run.batch
    return [tuple(call) for call in calls.values()]


def test_what_waits_alike_is_made_in_one_call_and_nobody_is_waited_for() -> None:
    world = batching()
    a = world.ready("a")
    first = world.submit()
    assert batches(a) == [(first.id,)], "it has no company, and does not wait for any"
    rest = [world.submit() for _ in range(6)]
    assert len(a.runs()) == 1, "what may have company is not handed ahead"
    world.done(a, a.runs()[0])
    assert batches(a)[1:] == [tuple(job.id for job in rest[:4])]
    for run in a.runs()[1:5]:
        world.done(a, run)
    assert batches(a)[2:] == [(rest[4].id, rest[5].id)]


def test_idle_workers_share_before_they_batch() -> None:
    world = batching()
    world.ready("a")
    world.submit()
    waiting = [world.submit() for _ in range(4)]
    b = world.ready("b")
    assert batches(b) == [tuple(job.id for job in waiting)]
    world = batching()
    puppets = [world.ready(name) for name in "abcd"]
    for _ in range(4):
        world.submit()
    assert [len(puppet.runs()) for puppet in puppets] == [1, 1, 1, 1]


def test_unlike_requests_are_not_mixed_and_not_passed_over_for_long() -> None:
    world = batching()
    a = world.ready("a")
    world.submit()
    mixed = [world.submit(steps=4 + number % 2) for number in range(4)]
    world.done(a, a.runs()[0])
    assert batches(a)[1:] == [(mixed[0].id, mixed[2].id)]
    for run in a.runs()[1:3]:
        world.done(a, run)
    assert batches(a)[2:] == [(mixed[1].id, mixed[3].id)]


def test_one_bad_member_is_found_and_the_rest_is_made() -> None:
    world = batching()
    a = world.ready("a")
    world.submit()
    jobs = [world.submit() for _ in range(3)]
    world.done(a, a.runs()[0])
    for run in a.runs()[1:]:
        problem = m.Problem(code="out_of_memory", message="together")
        world.say(a, m.Failed(job=run.job, attempt=run.attempt, problem=problem))
    while world.pool.jobs:
        run = next(run for run in a.runs() if run.attempt == 2 and run.job in world.pool.jobs)
        assert not run.batch
        if run.job == jobs[1].id:
            world.say(a, m.Failed(job=run.job, attempt=2, problem=m.Problem(code="job_failed", message="bad")))
        else:
            world.done(a, run)
    assert [isinstance(world.outcomes[job.id], ReplicastError) for job in jobs] == [False, True, False]


def test_a_batch_that_does_not_pay_is_not_made_again() -> None:
    world = batching(2)
    a = world.ready("a")
    world.submit()
    world.done(a, a.runs()[0], seconds=1.0)
    jobs = [world.submit() for _ in range(3)]
    world.done(a, a.runs()[1], seconds=1.0)
    assert batches(a)[2:] == [(jobs[1].id, jobs[2].id)]
    for run in a.runs()[2:]:
        world.done(a, run, seconds=2.0, batch=2)
    more = [world.submit() for _ in range(3)]
    world.done(a, a.runs()[-1], seconds=1.0)
    assert batches(a)[-1] == (more[1].id,)


def test_who_asks_to_be_alone_is_alone() -> None:
    world = batching()
    a = world.ready("a")
    world.submit()
    alone = [world.submit(alone=True) for _ in range(2)]
    world.done(a, a.runs()[0])
    assert batches(a)[1:] == [(job.id,) for job in alone], "and may be handed ahead"


def test_a_death_with_a_batch_in_hand_costs_each_of_it_and_then_they_run_alone() -> None:
    world = batching()
    a = world.ready("a")
    world.submit()
    jobs = [world.submit() for _ in range(3)]
    world.done(a, a.runs()[0])
    for run in a.runs()[1:]:
        world.start(a, run)
    world.die(a)
    assert [job.crashes for job in jobs] == [1, 1, 1]
    b = world.ready("b")
    assert batches(b) == [(jobs[0].id,)]


def test_who_is_told_of_a_newer_state_in_the_middle_of_work_is_still_looked_after() -> None:
    """Until it has finished what it has begun it applies nothing, and its silence is no loading."""
    world = World(limits=Limits(ping_seconds=1, gone_after=4, load_seconds=900))
    worker = world.ready("a")
    job = world.submit()
    world.start(worker, worker.took(m.Run)[0])
    world.do(world.pool.decide("stub", 1, NO_LORAS, world.now))
    world.tick(5)
    assert world.killed == ["a"]
    assert not job.over


def test_what_is_pinned_to_an_epoch_and_was_handed_ahead_is_not_made_by_another_with_a_later_one(world: World) -> None:
    a, b = world.ready("a"), world.ready("b")
    for _ in range(2):
        world.submit()
    pinned = world.submit(pin=0)
    holder, idle = (a, b) if pinned.worker == "a" else (b, a)
    world.start(holder, holder.runs()[0])
    loras = LoraState(adapters=(Adapter(name="ink", sha256="0" * 64),))
    world.do(world.pool.decide("stub", 1, loras, world.now))
    world.done(idle, idle.runs()[0])
    world.ack(idle)
    assert [run.job for run in idle.runs()].count(pinned.id) == 0
    assert isinstance(failure(world, pinned.id), StateChanged)
    assert m.Cancel(job=pinned.id, attempt=1) in holder.took(m.Cancel)
