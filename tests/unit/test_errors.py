"""The error tree, its drawing, and the statuses: a class without a row fails here."""

from __future__ import annotations

import re

import orjson
import pytest

from gateway.api.errors import STATUS, answer
from shared import errors
from shared.errors import ReplicastError, by_code, tree


def test_every_error_has_a_status() -> None:
    assert set(STATUS) == set(tree())


def test_every_error_has_a_code_of_its_own_and_a_line_in_the_drawing() -> None:
    codes = [cls.code for cls in tree()]
    assert len(codes) == len(set(codes))
    assert errors.__doc__
    drawn = re.findall(r"^[│ ]*[├└]── (\w+) +(\w+)", errors.__doc__, re.MULTILINE)
    assert set(drawn) == {(cls.__name__, cls.code) for cls in tree()}


def test_an_unknown_code_from_a_worker_is_a_failed_job() -> None:
    assert by_code("from the future") is errors.JobFailed
    assert by_code("out_of_memory") is errors.OutOfMemory


@pytest.mark.parametrize("cls", [*tree()], ids=lambda cls: cls.__name__)
def test_every_error_is_told_in_openais_shape(cls: type[ReplicastError]) -> None:
    response = answer(cls("why", param="n", retry_after_seconds=1000))
    body = orjson.loads(response.body)
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["code"] == cls.code
    assert 1 <= int(response.headers["retry-after"]) <= 60
    assert response.headers["content-type"] == "application/json"
