"""What an operator may write behind the name of a pipeline."""

from __future__ import annotations

import dataclasses

import pytest

from shared.errors import ConfigError
from shared.sources import PIPELINE_OPTIONS, parse


def test_a_pipeline_takes_bounds_for_its_loras() -> None:
    assert parse("mine=shapes?max_adapter_bytes=2000").options == {"max_adapter_bytes": 2000}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("shapes?steps=3", "takes max_adapter_bytes, .*, and no 'steps'"),
        ("shapes?max_host_bytes=1.5", "max_host_bytes is a number of bytes"),
        ("shapes?max_host_bytes=-1", "max_host_bytes is a number of bytes"),
        ("shapes?max_host_bytes=true", "max_host_bytes is a number of bytes"),
    ],
)
def test_it_takes_nothing_else(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse(text)


@pytest.mark.model
def test_the_bounds_are_those_that_a_worker_has() -> None:
    from worker.loras.state import Limits

    assert tuple(field.name for field in dataclasses.fields(Limits)) == PIPELINE_OPTIONS
