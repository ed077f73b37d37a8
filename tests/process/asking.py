"""OpenAI's client for Python, the one that blocks and the one that is awaited, called in one manner."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from contextlib import ExitStack
from operator import attrgetter
from typing import Any

import httpx2
import openai

# A method of the client by its name, then its arguments; streams and pages come as lists.
Ask = Callable[..., Any]
# An answer that is not exactly as OpenAI describes it is an exception.
_OPTIONS: dict[str, Any] = {"api_key": "none", "max_retries": 0, "_strict_response_validation": True}


def asking(kind: str, stack: ExitStack, address: str, **options: Any) -> Ask:
    """Calls of a "sync" or an "async" client of the server at `address`, which is closed with the stack."""
    settings = {**_OPTIONS, **options, "base_url": f"{address}/v1"}
    if kind == "sync":
        client = stack.enter_context(openai.OpenAI(**settings, http_client=httpx2.Client(trust_env=False)))

        def blocks(method: str, *args: Any, **said: Any) -> Any:
            answer = attrgetter(method)(client)(*args, **said)
            return list(answer) if isinstance(answer, openai.Stream) or method.endswith(".list") else answer

        return blocks
    runner = stack.enter_context(asyncio.Runner())
    waiting = openai.AsyncOpenAI(**settings, http_client=httpx2.AsyncClient(trust_env=False))
    stack.callback(lambda: runner.run(waiting.close()))

    def awaits(method: str, *args: Any, **said: Any) -> Any:
        async def call() -> Any:
            answer = attrgetter(method)(waiting)(*args, **said)
            if not method.endswith(".list"):
                answer = await answer
            listed = isinstance(answer, openai.AsyncStream) or method.endswith(".list")
            return [each async for each in answer] if listed else answer

        return runner.run(call())

    return awaits


def pictures(answer: Any) -> list[bytes]:
    return [base64.b64decode(row.b64_json, validate=True) for row in answer.data]
