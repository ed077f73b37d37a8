"""Mistakes in the pool: the machine in random order has to notice each. How they are planted is in planted.py."""

from __future__ import annotations

from tests.unit.planted import Mutant


def _mutants() -> tuple[Mutant, ...]:
    pool, ledger, backlog, dispatch = "gateway.pool", "gateway.ledger", "gateway.backlog", "gateway.dispatch"
    vigil, workers, job, turns = "gateway.vigil", "gateway.workers", "gateway.jobs.job", "gateway.turns"
    return (
        # Who is heard
        Mutant("results_of_any_attempt", pool, "job is None or job.attempt != message.attempt", "job is None"),
        Mutant("any_session", pool, "worker is None or stamp.session != worker.session", "worker is None"),
        Mutant("replays", pool, "elif stamp.seq <= worker.seq:", "elif stamp.seq < 0:"),
        Mutant("say_anything", pool, "elif not worker.may_say(message):", "elif False:"),
        Mutant("any_digest", workers, "if any(outcome.card and outcome.digest", "if any(False and outcome.digest"),
        Mutant("any_picture", pool, "if not job.accepts(done, images):", "if False:"),
        Mutant("any_preview", pool, "if not job.shows(progress, images):", "if False:"),
        Mutant(
            "previews_of_what_is_over",
            pool,
            "progress.preview is not None and not job.over",
            "progress.preview is not None",
        ),
        Mutant("dead_may_return", pool, "        self._door.close(name)\n", ""),
        Mutant(
            "ready_for_an_old_state",
            workers,
            "        if ack.version != wanted.version:\n            return None\n",
            "",
        ),
        Mutant("silence_is_forgotten", pool, "max(worker.missed, self.limits.suspect_after), False", "0, True"),
        # What becomes of jobs
        Mutant(
            "no_requeue",
            ledger,
            "            self.requeue(job, cause)\n\n    def waste",
            "            pass\n\n    def waste",
        ),
        Mutant("no_blame", ledger, "job.crashes += blamed", "job.crashes += False"),
        Mutant("all_are_blamed", pool, "blamed=fault and job in running", "blamed=fault"),
        Mutant("loss_is_blamed", pool, "blamed=fault and job in running", "blamed=job in running"),
        Mutant("work_is_not_charged", pool, "at_work = bool(worker.jobs)", "at_work = False"),
        Mutant("one_death_more", ledger, "job.crashes >= limits.max_attempts", "job.crashes > limits.max_attempts"),
        Mutant("no_deadline", pool, "if job.deadline <= now]", "if False]"),
        Mutant("drain_takes_more", pool, "if self.draining:", "if False:"),
        Mutant("behind_is_in_step", pool, "                worker.version = -1\n", ""),
        Mutant("asked_in_vain", pool, 'elif failed.problem.code == "cancelled":', "elif False:"),
        Mutant(
            "called_off_unless_it_moves",
            pool,
            'elif failed.problem.code == "cancelled":',
            'elif failed.problem.code == "cancelled" and worker.asked:',
        ),
        Mutant(
            "no_hand_out_after_news",
            pool,
            "            self._heard(worker, message, packet.attachments, now)\n        return self._settle(now)",
            "            self._heard(worker, message, packet.attachments, now)\n        return self._out.take()",
        ),
        Mutant(
            "nobody_is_taken_back_from",
            turns,
            "while move := dispatch.take_back(workers, wanted.version, limits):",
            "while move := None:",
        ),
        Mutant(
            "taken_back_in_silence",
            turns,
            "    out.send(holder, m.Cancel(job=job.id, attempt=job.attempt))\n",
            "",
        ),
        Mutant(
            "lost_hands_are_not_told",
            pool,
            "if held.job not in kept or kept[held.job].over:",
            "if kept[held.job].over if held.job in kept else False:",
        ),
        Mutant("no_hope_no_answer", turns, "if queue and not hope(", "if False and not hope("),
        Mutant(
            "abandon_forgets_one",
            pool,
            "for job in list(self.jobs.values()):\n            self._abandon(job, Draining",
            "for job in list(self.jobs.values())[1:]:\n            self._abandon(job, Draining",
        ),
        Mutant("unloaded_stays", pool, "        self.ledger.keep(model.id for model in self.wanted.models)\n", ""),
        Mutant("same_attempt_again", ledger, "        job.attempt += 1\n", "        job.attempt = 1\n"),
        Mutant(
            "inputs_go_once",
            ledger,
            "job.run(model), job.inputs)",
            "job.run(model), job.inputs if job.attempt == 1 else ())",
        ),
        Mutant("started_for_ever", ledger, "job.rewind()", 'job.worker = ""'),
        Mutant(
            "cancel_is_not_told",
            ledger,
            "            self._out.send(worker, m.Cancel(job=job.id, attempt=job.attempt))\n        self.finish",
            "            pass\n        self.finish",
        ),
        Mutant("over_and_in_the_books", ledger, "        del self.jobs[job.id]\n", ""),
        # Who gets what
        Mutant("behind_gets_work", dispatch, "        and worker.version == version\n", ""),
        Mutant("draining_gets_work", dispatch, "worker.state is State.READY", "worker.state is not State.GONE"),
        Mutant("suspect_gets_work", dispatch, "        and worker.missed < limits.suspect_after\n", ""),
        Mutant("any_model", dispatch, "        and worker.card(job.model) is not None\n", ""),
        Mutant("one_too_many", dispatch, "len(worker.jobs) < (worker.slots if", "len(worker.jobs) <= (worker.slots if"),
        Mutant(
            "crashed_has_company",
            dispatch,
            "(worker.slots if waits else worker.slots + AHEAD)",
            "worker.slots + AHEAD",
        ),
        Mutant(
            "crashed_gets_company",
            dispatch,
            "        and not any(other.crashes for other in worker.jobs.values())\n",
            "",
        ),
        Mutant(
            "busiest_first",
            dispatch,
            "key=lambda worker: (len(worker.jobs), worker.lacks",
            "key=lambda worker: (-len(worker.jobs), worker.lacks",
        ),
        Mutant("begun_is_taken_back", dispatch, "if job.started or job.over or job.batch:", "if job.over:"),
        Mutant("newest_model_first", dispatch, "if queue), key=order)", "if queue), key=lambda job: -job.submitted)"),
        Mutant("no_priority", backlog, "job.due = clock - job.priority * PRIORITY_SECONDS", "job.due = clock"),
        Mutant("no_owners", backlog, "clock = max(self._time, self._clocks.get(job.owner, 0.0))", "clock = self._time"),
        Mutant("to_the_end_of_the_queue", backlog, "insort(queue, job, key=order)", "queue.append(job)"),
        Mutant(
            "waiting_is_not_forgotten",
            backlog,
            "            queue.remove(job)\n        self._forget(job)",
            "            queue.remove(job)",
        ),
        # Who must go
        Mutant("busy_are_not_looked_after", vigil, "not any(job.started for job in worker.jobs.values())", "True"),
        Mutant("silent_for_ever", vigil, "if worker.missed >= limits.gone_after:", "if False:"),
        Mutant("our_stall_is_blamed", vigil, "    if punctual:\n", "    if True:\n"),
        Mutant("loaders_are_blamed", vigil, "    if applying:\n", "    if False:\n"),
        Mutant("loads_for_ever", vigil, "> limits.load_seconds else None", "> 1e9 else None"),
        Mutant("killed_unasked", vigil, '"stuck" if worker.asked else "still"', '"stuck"'),
        Mutant("asked_for_ever", vigil, '"stuck" if worker.asked else "still"', '"still"'),
        Mutant("asked_is_killed", vigil, "if worker.asked else 0.0", "if False else 0.0"),
        Mutant(
            "steps_do_not_count", vigil, "if moved or applying or not worker.jobs:", "if applying or not worker.jobs:"
        ),
        Mutant("any_attempt_goes_on", workers, "if (name, job.attempt) in held}", "if name in dict(held)}"),
        Mutant(
            "first_is_always_running",
            workers,
            "return [job for job in jobs if job.started] or jobs[: self.slots]",
            "return jobs[: self.slots]",
        ),
        Mutant(
            "unstarted_kill_nobody",
            workers,
            "[job for job in jobs if job.started] or jobs[: self.slots]",
            "[job for job in jobs if job.started]",
        ),
        Mutant(
            "previews_without_end",
            job,
            "due = 0 <= progress.preview < self.previews",
            "due = 0 <= progress.preview <= self.previews",
        ),
    )


MUTANTS = {mutant.name: mutant for mutant in _mutants()}
