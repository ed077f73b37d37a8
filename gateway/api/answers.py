"""An order carried out and answered: all its pictures in one body, or one by one as a stream of events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any

from fastapi import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway import responses
from gateway.api import errors
from gateway.api.orders import Order
from gateway.api.overlays import told
from gateway.api.state import State
from gateway.jobs.job import Job, Outcome, Result
from gateway.serving import Shown, wait_for_all
from shared.errors import ReplicastError
from shared.wire import Buffer

# A preview with its number, or a picture.
News = tuple[Job, int, Buffer] | tuple[Job, Result]


async def whole(request: Request, state: State, order: Order) -> list[Result]:
    """The pictures of an order. Raises what keeps the first of them; one that fails takes the others with it."""
    async with carried_out(request, state, order) as answers:
        results = await wait_for_all(answers)
    for result in results:
        order.story.came(result)
    return results


async def streamed(request: Request, state: State, order: Order, name: str) -> Response:
    """The order as events called `name`. Raises what goes wrong before the first of them: that is a plain status."""
    events = _events(request, state, order, name)
    return _Stream(await anext(events), events)


def echo(order: Order, results: list[Result]) -> dict[str, Any]:
    """What was asked, resolved. What has no effect is not echoed: it would say that it had."""
    parameters = order.parameters
    said: dict[str, Any] = {
        "background": "transparent" if parameters.transparent else "opaque",
        "output_format": parameters.output_format,
        "size": f"{parameters.width}x{parameters.height}",
        "usage": responses.usage(results),
    }
    if order.wish.safety_identifier is not None:
        said["safety_identifier"] = order.wish.safety_identifier
    if order.wish.return_parameters:
        said["replicast"] = _recipe(order, results)
    return said


def phases(order: Order, results: list[Result]) -> dict[str, float]:
    """Where the order's time went, in milliseconds."""
    return responses.timings_ms(results, (time.monotonic() - order.arrived) * 1000)


def _recipe(order: Order, results: list[Result]) -> dict[str, Any]:
    """All it takes to make the first picture again; each further one differs by the seed beside it."""
    parameters, first = order.parameters, results[0]
    recipe: dict[str, Any] = {
        "model": order.model,
        "model_revision": order.card.revision,
        "seed": first.facts[0].seed,
        "steps": parameters.steps,
        "guidance": parameters.guidance,
        "negative_prompt": parameters.negative_prompt,
        "size": f"{parameters.width}x{parameters.height}",
        "scheduler": order.card.scheduler,
        "loras": told(first.loras.effective()),
        "lora_epoch": first.epoch,
        "replica": first.worker,
        "timings_ms": phases(order, results),
    }
    if parameters.strength is not None:
        recipe["strength"] = parameters.strength
    return recipe


@asynccontextmanager
async def withdrawn_when_gone(request: Request, state: State, order: Order) -> AsyncIterator[None]:
    """Withdraw the order's jobs as soon as the client leaves: they stop at their next step."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        state.serving.withdraw(order.jobs)

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()


async def _events(request: Request, state: State, order: Order, name: str) -> AsyncIterator[bytes]:
    """Previews as they come, each picture when it is done, a sign of life when there is nothing else to say.

    What goes wrong before the first event is raised; after it, it is the last event.
    """
    began = False
    shown = dict.fromkeys((job.id for job in order.jobs), -1)
    try:
        async with aclosing(_news(request, state, order)) as all_news:
            async for news in all_news:
                match news:
                    case None:
                        event = responses.HEARTBEAT
                    case (job, int(preview), image):
                        if preview <= shown[job.id]:
                            continue  # of an attempt that was lost: this one has been seen
                        shown[job.id] = preview
                        facts = _facts(order, job) | {"partial_image_index": preview}
                        event = responses.image_event(f"{name}.partial_image", image, facts)
                    case (job, result):
                        order.story.came(result)
                        facts = _facts(order, job) | {"usage": responses.usage([result])}
                        if order.wish.return_parameters:
                            facts["replicast"] = _recipe(order, [result])
                        event = responses.image_event(f"{name}.completed", result.images[0], facts)
                began = True
                yield event
    except ReplicastError as error:
        if not began:
            raise
        order.story.code = error.code
        yield responses.error_event(errors.body(error))


async def _news(request: Request, state: State, order: Order) -> AsyncGenerator[News | None, None]:
    """What becomes of the order, as it happens, and None when for a while nothing did. Raises its first failure."""
    inbox: asyncio.Queue[tuple[Job, int, Buffer] | tuple[Job, Outcome]] = asyncio.Queue()

    def deliver(job: Job, answer: asyncio.Future[Outcome]) -> None:
        if not answer.cancelled():
            inbox.put_nowait((job, answer.result()))

    async with carried_out(request, state, order, lambda *preview: inbox.put_nowait(preview)) as answers:
        for job, answer in zip(order.jobs, answers, strict=True):
            answer.add_done_callback(partial(deliver, job))
        left = len(order.jobs)
        while left:
            try:
                async with asyncio.timeout(state.settings.heartbeat_seconds):
                    news = await inbox.get()
            except TimeoutError:
                yield None
                continue
            match news:
                case (_, ReplicastError() as error):
                    raise error
                case (job, Result() as result):
                    left -= 1
                    yield job, result
                case (job, int(preview), image):
                    yield job, preview, image


@asynccontextmanager
async def carried_out(
    request: Request, state: State, order: Order, shown: Shown | None = None
) -> AsyncIterator[list[asyncio.Future[Outcome]]]:
    """The order's answers, within what its caller may ask for, for as long as the client is there."""
    with state.quota.hold(order.caller, images=len(order.jobs)), state.serving.taken(order.jobs, shown) as answers:
        async with withdrawn_when_gone(request, state, order):
            yield answers


def _facts(order: Order, job: Job) -> dict[str, Any]:
    parameters = order.parameters
    return {
        "created_at": order.created,
        "size": f"{parameters.width}x{parameters.height}",
        "quality": "auto",
        "background": "transparent" if parameters.transparent else "opaque",
        "output_format": parameters.output_format,
        "seed": job.seeds[0],
        "image_index": order.jobs.index(job),
    }


class _Stream(Response):
    """An answer that is sent as it comes about. The generator is closed whatever becomes of the client."""

    media_type = "text/event-stream"

    def __init__(self, first: bytes, events: AsyncIterator[bytes]) -> None:
        self._first, self._events = first, events
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._events) as events:  # type: ignore[type-var]
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": self._first, "more_body": True})
            async for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
