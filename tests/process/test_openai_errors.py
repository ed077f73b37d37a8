"""OpenAI's client for Python: which exception each trouble of a live server is, and what models and headers tell it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import openai
import pytest

from tests.photos import noise, opened, png, window
from tests.process.asking import Ask, asking, pictures
from tests.server import Serve, Server, until

PROMPT = "a red circle on a blue background"


@pytest.fixture(scope="module")
def server(serve_for_all: Serve, troubles: tuple[str, ...]) -> Server:
    return serve_for_all("--device", "stub:2", "--model", "stub", "--model", "org/second=stub", *troubles, max_queue=4)


@pytest.fixture(scope="module", params=["sync", "async"])
def ask(request: pytest.FixtureRequest, server: Server) -> Iterator[Ask]:
    with ExitStack() as stack:
        yield asking(request.param, stack, server.address)


def test_models_are_listed_and_found_by_name(ask: Ask) -> None:
    listed = {model.id: model for model in ask("models.list")}
    assert [*listed] == ["stub", "org/second", "failing", "breaking", "held"]
    for name in ("stub", "org/second", "absent"):
        found = ask("models.retrieve", name)
        assert (found.id, found.object, found.owned_by) == (name, "model", "replicast")
        assert found.ready == (name in listed)


def test_an_answer_can_be_told_from_others(ask: Ask) -> None:
    raw = ask("images.with_raw_response.generate", model="stub", prompt=PROMPT, extra_headers={"x-request-id": "mine"})
    assert raw.headers["x-request-id"] == raw.request_id == "mine"
    assert raw.headers["content-type"] == "application/json"
    assert int(raw.headers["openai-processing-ms"]) >= 0
    phases = [phase.split(";dur=") for phase in raw.headers["server-timing"].split(", ")]
    assert [name for name, _ in phases] == ["queue", "dispatch", "inference", "encode", "total"]
    assert opened(pictures(raw.parse())[0]).size == (512, 512)
    with pytest.raises(openai.NotFoundError) as missing:
        ask("models.retrieve", "nonsense", extra_headers={"x-request-id": "also-mine"})
    assert missing.value.request_id == "also-mine"
    assert ask("models.retrieve", "stub")._request_id.startswith("req_")


def test_each_status_is_its_own_exception(ask: Ask) -> None:
    def refused(kind: type[openai.APIStatusError], method: str = "images.generate", **said: Any) -> Any:
        with pytest.raises(kind) as raised:
            ask(method, **{"model": "stub", "prompt": PROMPT, **said})
        error = raised.value
        assert type(error) is kind
        assert isinstance(error.body, dict)
        assert error.body.keys() == {"message", "type", "param", "code"}
        assert str(error) == f"Error code: {error.status_code} - {error.body['message']}"
        assert error.request_id
        return error.status_code, error.code, error.param, error.type

    wrong, faulty = "invalid_request_error", "server_error"
    assert refused(openai.BadRequestError, n=11) == (400, "invalid_value", "n", wrong)
    assert refused(openai.BadRequestError, size="") == (400, "invalid_value", "size", wrong)
    unknown = {"strict": True, "colour": "red"}
    assert refused(openai.BadRequestError, extra_body=unknown) == (400, "unknown_parameter", "colour", wrong)
    assert refused(openai.NotFoundError, model="x") == (404, "model_not_found", "model", "not_found_error")
    large = {"padding": "x" * 300_000}
    assert refused(openai.APIStatusError, extra_body=large) == (413, "payload_too_large", None, wrong)
    form = {"content-type": "multipart/form-data; boundary=x"}
    assert refused(openai.APIStatusError, extra_headers=form) == (415, "unsupported_media_type", None, wrong)
    assert refused(openai.RateLimitError, model="held", n=10) == (429, "queue_full", None, "rate_limit_error")
    assert refused(openai.InternalServerError, model="failing") == (500, "job_failed", None, faulty)
    assert refused(openai.InternalServerError, model="absent") == (503, "not_ready", None, faulty)
    soon = {"timeout_seconds": 0.2}
    assert refused(openai.InternalServerError, model="held", extra_body=soon) == (504, "expired", None, faulty)
    # Before the first event of a stream it is a plain status too.
    assert refused(openai.BadRequestError, stream=True, n=11) == (400, "invalid_value", "n", wrong)
    assert refused(openai.InternalServerError, stream=True, model="failing") == (500, "job_failed", None, faulty)
    broken = {"image": b"\x89PNG\r\n\x1a\n", "method": "images.edit"}
    assert refused(openai.BadRequestError, **broken) == (400, "invalid_image_file", "image", wrong)
    small, _ = window(16, 16)
    masked = {"image": png(noise(1)), "mask": small, "method": "images.edit"}
    assert refused(openai.BadRequestError, **masked) == (400, "invalid_image_file", "mask", wrong)


def test_what_goes_wrong_in_a_stream_is_raised_in_it(ask: Ask) -> None:
    with pytest.raises(openai.APIError, match="told to fail at step 2") as raised:
        ask("images.generate", model="breaking", prompt=PROMPT, stream=True, partial_images=1)
    assert not isinstance(raised.value, openai.APIStatusError)
    assert (raised.value.code, raised.value.type) == ("job_failed", "server_error")


def test_a_client_that_has_waited_enough_leaves_nothing_behind(ask: Ask, server: Server) -> None:
    with pytest.raises(openai.APITimeoutError):
        ask("images.generate", model="held", prompt=PROMPT, timeout=0.5)
    until(lambda: server.metric("replicast_jobs") == 0, "its job is gone")


@pytest.mark.parametrize(("model", "status", "tries"), [("failing", 500, 1), ("absent", 503, 2), ("stub", 400, 1)])
def test_it_is_told_when_to_try_again(server: Server, model: str, status: int, tries: int) -> None:
    """What the server made a mistake at would only fail again; a model that is on its way may have come."""

    def answered() -> float:
        return server.metric("replicast_http_requests_total", route="/v1/images/generations", status=str(status))

    before = answered()
    with ExitStack() as stack:
        ask = asking("sync", stack, server.address, max_retries=1)
        with pytest.raises(openai.APIStatusError) as raised:
            ask("images.generate", model=model, prompt=PROMPT, size="1x1" if status == 400 else "auto")
    assert raised.value.status_code == status
    # An answer is counted when it has been sent.
    until(lambda: answered() - before >= tries, "it is counted")
    assert answered() - before == tries
