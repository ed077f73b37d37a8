"""Names that clients have learned by heart: they mean a model of ours, and never hide one."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway import settings
from shared.errors import ConfigError
from tests.http.conftest import Gateway, running

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize("name", ["gpt-image-1", "gpt-image-2.5-flare", "chatgpt-image-latest"])
async def test_openais_names_mean_the_first_model(gateway: Gateway, name: str) -> None:
    gateway.script.runs.clear()
    answer = await gateway.post(prompt="a cat", model=name, return_parameters=True)
    assert answer.status_code == 200, answer.text
    assert answer.json()["replicast"]["model"] == "first", "the answer tells which model it was"
    assert [run.model for run in gateway.script.runs] == ["first"]
    row = (await gateway.http.get(f"/v1/models/{name}")).json()
    assert (row["id"], row["alias_of"]) == (name, "first")
    listed = (await gateway.http.get("/v1/models")).json()["data"]
    assert name not in [row["id"] for row in listed], "a pattern is no name to list"


@pytest.mark.parametrize("name", ["gpt-image", "GPT-IMAGE-1", "xgpt-image-1", "dall-e"])
async def test_what_only_resembles_an_alias_is_unknown(gateway: Gateway, name: str) -> None:
    answer = await gateway.post(prompt="a cat", model=name)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.asyncio(loop_scope="function")
async def test_an_alias_that_is_written_out_is_listed_and_led_to_its_model(tmp_path: Path) -> None:
    async with running(tmp_path, alias=("dall-e-9=org/second", "paint", "first=org/second", "down=third")) as gateway:
        listed = {row["id"]: row for row in (await gateway.http.get("/v1/models")).json()["data"]}
        assert listed.keys() == {"first", "org/second", "dall-e-9", "paint"}, "one of a model that is not ready is not"
        assert listed["dall-e-9"]["alias_of"] == "org/second"
        assert "alias_of" not in listed["first"], "a model's own name goes before an alias"
        for name, model in (("dall-e-9", "org/second"), ("paint", "first"), ("first", "first")):
            gateway.script.runs.clear()
            assert (await gateway.post(prompt="a cat", model=name, response_format="b64_json")).status_code == 200
            assert [run.model for run in gateway.script.runs] == [model]
        assert (await gateway.post(prompt="a cat", model="gpt-image-1")).status_code == 404, "the defaults are replaced"


@pytest.mark.asyncio(loop_scope="function")
@pytest.mark.parametrize("alias", ["dall-e-9=nosuch", "=shapes"])
async def test_an_alias_of_nothing_keeps_the_server_from_starting(alias: str) -> None:
    with pytest.raises(ConfigError, match="no model is called"):
        settings.load({"alias": (alias,)}).aliases()
