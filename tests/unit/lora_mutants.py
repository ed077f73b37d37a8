"""Mistakes in how LoRA states are decided, followed and kept: the machine of broadcasts has to notice each."""

from __future__ import annotations

from tests.unit.planted import Mutant


def _mutants() -> tuple[Mutant, ...]:
    pool, ballots, workers, job = "gateway.pool", "gateway.ballots", "gateway.workers", "gateway.jobs.job"
    residents = "worker.residents"
    return (
        # What is decided
        Mutant("nobody_agrees", ballots, "return bool(self.votes) and not self.refusals", "return not self.refusals"),
        Mutant("refusals_are_ignored", ballots, "return bool(self.votes) and not self.refusals", "return True"),
        Mutant(
            "content_without_a_number", pool, 'update = {"epoch": epoch, "loras": loras}', 'update = {"loras": loras}'
        ),
        Mutant(
            "number_without_content", pool, 'update = {"epoch": epoch, "loras": loras}', 'update = {"epoch": epoch}'
        ),
        Mutant("votes_never_close", pool, "        self._ballots.count()\n", ""),
        # Who follows
        Mutant("in_step_without_a_word", pool, "version = self.wanted.version + 1", "version = self.wanted.version"),
        Mutant("refused_work_is_lost", pool, '            self.ledger.requeue(job, "behind")\n', ""),
        Mutant("who_cannot_follow_stays", workers, '            return "lora_failed"\n', "            pass\n"),
        # What pictures are made with
        Mutant(
            "worker_takes_any_state",
            residents,
            "(held.model.epoch, held.model.digest) != (run.epoch, run.digest)",
            "False",
        ),
        Mutant("doubt_is_forgotten", residents, "            held.sound = False\n", "            pass\n"),
        Mutant(
            "nothing_is_mended",
            residents,
            "            if held.sound or held.backend is None:\n",
            "            if True:\n",
        ),
        Mutant("adopts_no_more", residents, "model != held_before.model:", "False:"),
        Mutant("answers_tell_the_models", job, "model.loras if self.loras is None else", "model.loras if True else"),
        Mutant("runs_without_their_own", job, "            loras=self.loras,\n", ""),
    )


MUTANTS = {mutant.name: mutant for mutant in _mutants()}
