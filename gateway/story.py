"""What a request's one line in the log tells beside its route and status, gathered on its way through the house."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.jobs.job import Job, Result


@dataclass(slots=True)
class Story:
    """Of one request, by its id: the code of what went wrong, its model and jobs, the times of its slowest picture.

    What a client wrote, above all its prompt, is no part of it.
    """

    request_id: str
    code: str = ""
    model: str = ""
    jobs: Sequence[Job] = ()
    queue_ms: float = 0.0
    inference_ms: float = 0.0

    def came(self, result: Result) -> None:
        """A picture has come."""
        self.queue_ms = max(self.queue_ms, result.queue_ms + result.timings.wait_ms)
        self.inference_ms = max(self.inference_ms, result.timings.inference_ms)

    def fields(self) -> dict[str, object]:
        """What there is to tell."""
        told: dict[str, object] = {}
        if self.code:
            told["code"] = self.code
        if self.model:
            told["model"] = self.model
            told["jobs"] = ",".join(job.id for job in self.jobs)
            told["workers"] = ",".join(sorted({job.worker for job in self.jobs if job.worker}))
            told["attempts"] = max(job.attempt for job in self.jobs)
        if self.inference_ms:
            told["queue_ms"] = round(self.queue_ms, 1)
            told["inference_ms"] = round(self.inference_ms, 1)
        return told
