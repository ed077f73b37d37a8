"""LoRAs by command and by request: diffgentor's shapes, all replicas or none, and what is told is what is so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from shared.messages import Problem
from tests.adapters import layers
from tests.http.conftest import Gateway, running
from tests.pictures import hollow

pytestmark = pytest.mark.asyncio(loop_scope="module")

SET, MERGE, UNMERGE, UNLOAD, LIST = (
    "/v1/set_lora",
    "/v1/merge_lora_weights",
    "/v1/unmerge_lora_weights",
    "/v1/unload_lora",
    "/v1/list_loras",
)


@pytest.fixture(scope="module")
def folder(root: Path) -> Path:
    """A folder of LoRAs, with one beside it that is none of them."""
    loras = root / "loras"
    (loras / "more").mkdir(parents=True)
    for seed, name in enumerate(("ink", "oil", "more/wax")):
        (loras / f"{name}.safetensors").write_bytes(layers(seed))
    (loras / "cut.safetensors").write_bytes(layers(9)[:-5])
    (root / "outside.safetensors").write_bytes(layers(8))
    return loras


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(root: Path, folder: Path) -> AsyncIterator[Gateway]:
    async with running(root / "loras-data", lora_root=folder) as made:
        yield made


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def base(served: Gateway) -> AsyncIterator[None]:
    """Every test begins with a bare model, and nobody in the way."""
    script = served.script
    script.refusals.clear()
    script.mute.clear()
    script.late.set()
    script.go.set()
    assert (await served.http.post(SET, json={"lora_nickname": []})).status_code == 200
    names = [each["nickname"] for each in (await told(served))["loaded_adapters"]]
    if names:
        assert (await served.http.post(UNLOAD, json={"lora_nickname": names})).status_code == 200
    script.runs.clear()
    script.asked.clear()
    yield


async def told(gateway: Gateway) -> dict[str, Any]:
    answer = await gateway.http.get(LIST)
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


async def ordered(gateway: Gateway, path: str, **said: Any) -> httpx2.Response:
    return await gateway.http.post(path, json=said)


def refused(answer: httpx2.Response) -> tuple[int, str, str | None]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


async def test_the_documented_calls_work_as_they_are_written(served: Gateway) -> None:
    """As diffgentor's manual has them: `curl -d`, which labels JSON as a form."""

    async def curl(path: str, data: str = "") -> dict[str, Any]:
        labelled = {"content-type": "application/x-www-form-urlencoded"}
        answer = await served.http.post(path, content=data.encode(), headers=labelled)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    said = await curl(SET, '{"lora_nickname": "ink", "lora_path": "ink.safetensors", "target": "all", "strength": 0.8}')
    assert (said["status"], said["message"]) == ("ok", "Loaded LoRA adapter(s): ink")
    said = await curl(MERGE, '{"target": "all", "strength": 0.5}')
    assert (said["status"], said["message"]) == ("ok", "LoRA weights fused")
    found = await told(served)
    [active] = found["active"]["all"]
    assert active == {"nickname": "ink", "path": "ink.safetensors", "merged": True, "strength": 0.4, "target": "all"}
    said = await curl(UNMERGE)
    assert (said["status"], said["message"]) == ("ok", "LoRA weights unfused")
    [active] = (await told(served))["active"]["all"]
    assert (active["merged"], active["strength"]) == (False, 0.8)


async def test_scalars_stand_for_all_and_lists_have_to_be_as_long(served: Gateway) -> None:
    names, paths = ["a", "b"], ["ink.safetensors", "oil.safetensors"]
    answer = await ordered(served, SET, lora_nickname=names, lora_path=paths, strength=0.5, target="transformer")
    adapters = answer.json()["wanted"]["adapters"]
    assert [(each["name"], each["scale"], each["target"]) for each in adapters] == [
        ("a", 0.5, "transformer"),
        ("b", 0.5, "transformer"),
    ]
    for field, value in (("lora_path", [*paths, "x"]), ("strength", [1, 2, 3]), ("target", ["all"] * 3)):
        body = {"lora_nickname": names, "lora_path": paths} | {field: value}
        assert refused(await ordered(served, SET, **body)) == (422, "unequal_lists", field)
    assert [each["nickname"] for each in (await told(served))["loaded_adapters"]] == names


async def test_set_takes_the_place_of_what_was_and_a_known_nickname_needs_no_path(served: Gateway) -> None:
    await ordered(served, SET, lora_nickname="ink", lora_path="ink.safetensors")
    await ordered(served, SET, lora_nickname="wax", lora_path="more")
    found = await told(served)
    assert [each["nickname"] for each in found["active"]["all"]] == ["wax"]
    assert [each["nickname"] for each in found["loaded_adapters"]] == ["ink", "wax"]
    assert (await ordered(served, SET, lora_nickname="ink")).status_code == 200
    assert [each["nickname"] for each in (await told(served))["active"]["all"]] == ["ink"]
    assert (await ordered(served, UNLOAD, lora_nickname="ink")).status_code == 200
    found = await told(served)
    assert (found["active"], [each["nickname"] for each in found["loaded_adapters"]]) == ({}, ["wax"])
    assert refused(await ordered(served, UNLOAD, lora_nickname="ink")) == (404, "lora_not_found", "lora_nickname")


async def test_saying_it_again_changes_nothing_and_costs_no_epoch(served: Gateway) -> None:
    await ordered(served, SET, lora_nickname="ink", lora_path="ink.safetensors")
    first = (await ordered(served, MERGE, strength=0.5)).json()
    second = (await ordered(served, MERGE, strength=0.5)).json()
    assert (first["result"], second["result"]) == ("applied", "unchanged")
    assert first["wanted"] == second["wanted"]
    third = (await ordered(served, MERGE, strength=0.25)).json()
    assert (third["wanted"]["merge_scale"], third["wanted"]["adapters"][0]["scale"]) == (0.25, 1.0)


async def test_setting_while_merged_says_what_holds_then(served: Gateway) -> None:
    await ordered(served, SET, lora_nickname="ink", lora_path="ink.safetensors")
    await ordered(served, MERGE)
    answer = (await ordered(served, SET, lora_nickname="oil", lora_path="oil.safetensors")).json()
    assert answer["wanted"]["mode"] == "attached"
    assert "not any more" in answer["message"]


async def test_merging_nothing_says_so(served: Gateway) -> None:
    answer = (await ordered(served, MERGE)).json()
    assert (answer["result"], answer["message"]) == ("unchanged", "No LoRA is active to be fused")
    assert answer["wanted"]["mode"] == "attached"


async def test_every_replica_has_a_row_and_all_say_the_same(served: Gateway) -> None:
    answer = (await ordered(served, SET, lora_nickname="ink", lora_path="ink.safetensors")).json()
    assert answer["converged"] is True
    assert [row["worker"] for row in answer["replicas"]] == ["w0", "w1"]
    assert {(row["epoch"], row["digest"], row["behind"]) for row in answer["replicas"]} == {
        (answer["epoch"], answer["wanted"]["digest"], False)
    }


async def test_one_replica_that_cannot_calls_it_off_for_all(served: Gateway) -> None:
    before = await told(served)
    served.script.refusals["w1"] = Problem(code="out_of_memory", message="rank 256 is too much for me")
    answer = await ordered(served, SET, lora_nickname="ink", lora_path="ink.safetensors")
    assert refused(answer) == (409, "lora_refused", "lora_path")
    assert "w1: rank 256 is too much for me" in answer.json()["error"]["message"]
    after = await told(served)
    assert {key: after[key] for key in ("wanted", "loaded_adapters", "active")} == {
        key: before[key] for key in ("wanted", "loaded_adapters", "active")
    }
    assert after["last_command"]["status"] == "aborted"
    assert after["last_command"]["reasons"] == {"w1": "rank 256 is too much for me"}
    served.script.refusals.clear()
    again = await ordered(served, SET, lora_nickname="ink", lora_path="ink.safetensors")
    # The number of what was refused is never used again.
    assert again.json()["epoch"] == after["last_command"]["epoch"] + 1


async def test_what_is_the_files_fault_is_told_as_that(served: Gateway) -> None:
    misfit = Problem(code="adapter_does_not_fit", message="no layer of it is in this model")
    served.script.refusals |= {"w0": misfit, "w1": misfit}
    answer = await ordered(served, SET, lora_nickname="ink", lora_path="ink.safetensors")
    assert refused(answer) == (400, "adapter_does_not_fit", "lora_path")


@pytest.mark.parametrize(
    ("said", "status", "code", "param"),
    [
        ({}, 400, "invalid_value", "lora_nickname"),
        ({"lora_nickname": ""}, 400, "invalid_value", "lora_nickname.0"),
        ({"lora_nickname": "a\nb"}, 400, "invalid_value", "lora_nickname.0"),
        ({"lora_nickname": 3}, 400, "invalid_value", "lora_nickname.0"),
        ({"lora_nickname": ["a", "a"], "lora_path": "ink.safetensors"}, 400, "invalid_value", "lora_nickname"),
        ({"lora_nickname": ["a"] * 17}, 400, "invalid_value", "lora_nickname"),
        ({"lora_nickname": "a", "strength": 9}, 400, "invalid_value", "strength.0"),
        ({"lora_nickname": "a", "strength": "1"}, 400, "invalid_value", "strength.0"),
        ({"lora_nickname": "a", "target": "bogus"}, 400, "invalid_value", "target.0"),
        ({"lora_nickname": "a", "wait": "some"}, 400, "invalid_value", "wait"),
        ({"lora_nickname": "a", "model": "nobody"}, 404, "model_not_found", "model"),
        ({"lora_nickname": "a"}, 404, "lora_not_found", "lora_nickname"),
        ({"lora_nickname": "a", "lora_path": "nothing.safetensors"}, 404, "lora_not_found", "lora_path"),
        ({"lora_nickname": "a", "lora_path": "../outside.safetensors"}, 404, "lora_not_found", "lora_path"),
        ({"lora_nickname": "a", "lora_path": "/etc/passwd"}, 404, "lora_not_found", "lora_path"),
        ({"lora_nickname": "a", "lora_path": "\x00"}, 404, "lora_not_found", "lora_path"),
        ({"lora_nickname": "a", "lora_path": "cut.safetensors"}, 400, "invalid_adapter", "lora_path"),
        ({"lora_nickname": "a", "lora_path": "ink.safetensors", "if_epoch": 999}, 409, "state_changed", "if_epoch"),
    ],
)
async def test_what_cannot_be_is_refused_by_name_and_nothing_moves(
    served: Gateway, said: dict[str, Any], status: int, code: str, param: str
) -> None:
    before = await told(served)
    assert refused(await served.http.post(SET, json=said)) == (status, code, param)
    after = await told(served)
    assert (after["wanted"], after["active"]) == (before["wanted"], before["active"])


async def test_an_answer_does_not_wait_for_ever_and_says_who_is_late(served: Gateway) -> None:
    served.script.late.clear()
    answer = await ordered(served, SET, lora_nickname="ink", lora_path="ink.safetensors", wait="none")
    assert (answer.status_code, answer.json()["result"], answer.json()["converged"]) == (202, "pending", False)
    assert [row["behind"] for row in answer.json()["replicas"]] == [True, True]
    # Nobody is in step: what comes now waits for the new state, and is made with it.
    picture = asyncio.create_task(served.post(model="first", prompt="a cat", return_parameters=True))
    await asyncio.sleep(0)
    served.script.late.set()
    recipe = (await picture).json()["replicast"]
    assert (recipe["lora_epoch"], recipe["loras"][0]["name"]) == (answer.json()["epoch"], "ink")


async def test_each_answer_tells_the_epoch_of_its_own_command_whatever_others_decide_meanwhile(served: Gateway) -> None:
    await ordered(served, SET, lora_nickname="ink", lora_path="ink.safetensors")
    before = (await told(served))["wanted"]["epoch"]
    served.script.late.clear()
    first = asyncio.create_task(ordered(served, MERGE, strength=0.5))
    while (await told(served))["wanted"]["epoch"] == before:
        await asyncio.sleep(0.01)
    # Nobody has to agree to none at all, so that this one is decided while the other waits.
    second = asyncio.create_task(ordered(served, SET, lora_nickname=[]))
    while (await told(served))["wanted"]["epoch"] == before + 1:
        await asyncio.sleep(0.01)
    served.script.late.set()
    answers = [(await each).json() for each in (first, second)]
    assert [(each["result"], each["epoch"]) for each in answers] == [("applied", before + 1), ("applied", before + 2)]
    pinned = await served.post(model="first", prompt="a cat", lora_epoch=answers[0]["epoch"])
    assert refused(pinned) == (409, "state_changed", "lora_epoch")


async def test_a_storm_of_commands_ends_in_the_last_that_was_taken(served: Gateway) -> None:
    await ordered(served, SET, lora_nickname="ink", lora_path="ink.safetensors")
    strengths = [round(0.02 * place, 2) for place in range(1, 41)]
    answers = await asyncio.gather(*(ordered(served, MERGE, strength=strength) for strength in strengths))
    assert {answer.status_code for answer in answers} <= {200, 202, 409}
    done = [answer.json() for answer in answers if answer.status_code == 200]
    assert len(done) >= 16
    assert sorted(each["epoch"] for each in done)[-1] == (await told(served))["wanted"]["epoch"]
    assert (await told(served))["converged"]


async def test_a_command_that_is_overtaken_before_anybody_has_followed_has_its_answer(root: Path, folder: Path) -> None:
    async with running(root / "overtaken", lora_root=folder) as gateway:
        gateway.script.late.clear()
        first = asyncio.create_task(ordered(gateway, SET, lora_nickname="ink", lora_path="ink.safetensors"))
        while (await told(gateway))["wanted"]["epoch"] < 1:
            await asyncio.sleep(0.005)
        assert (await told(gateway))["last_command"] == {"epoch": 1, "status": "pending", "reasons": {}}
        second = asyncio.create_task(ordered(gateway, SET, lora_nickname=[]))
        while (await told(gateway))["wanted"]["epoch"] < 2:
            await asyncio.sleep(0.005)
        gateway.script.late.set()
        answers = [await first, await second]
        assert [(answer.status_code, answer.json()["epoch"]) for answer in answers] == [(200, 1), (200, 2)]


async def test_what_was_pending_when_it_was_answered_is_applied_once_all_have_followed(served: Gateway) -> None:
    served.script.late.clear()
    answer = await ordered(served, SET, lora_nickname="ink", lora_path="ink.safetensors", wait="none")
    assert (await told(served))["last_command"]["status"] == answer.json()["result"] == "pending"
    served.script.late.set()
    while not (found := await told(served))["converged"]:
        await asyncio.sleep(0.005)
    assert (found["last_command"]["epoch"], found["last_command"]["status"]) == (answer.json()["epoch"], "applied")


@pytest.mark.parametrize("model", ["first", "org/second"])
async def test_who_has_yet_to_follow_one_command_is_asked_about_the_next(served: Gateway, model: str) -> None:
    served.script.late.clear()
    await ordered(served, SET, lora_nickname="ink", lora_path="ink.safetensors", wait="none")
    asked = {"lora_nickname": "oil", "lora_path": "oil.safetensors", "model": model}
    second = asyncio.create_task(ordered(served, SET, **asked))
    while len(served.script.asked) < 4:
        await asyncio.sleep(0.005)
    served.script.late.set()
    answer = await second
    assert (answer.status_code, answer.json()["converged"]) == (200, True), answer.text


# The LoRAs of a request


async def test_a_request_brings_its_own_in_place_of_the_models(served: Gateway) -> None:
    await ordered(served, SET, lora_nickname="ink", lora_path="ink.safetensors")
    epoch = (await told(served))["wanted"]["epoch"]
    asked = [{"path": "oil.safetensors", "scale": 0.5, "target": "transformer"}, {"name": "ink"}]
    answer = await served.post(model="first", prompt="a cat", loras=asked, return_parameters=True)
    [run] = served.script.runs
    assert [(each.name, each.scale, each.target) for each in run.loras or ()] == [
        ("oil.safetensors", 0.5, "transformer"),
        ("ink", 1.0, "all"),
    ]
    recipe = answer.json()["replicast"]
    assert {each["name"]: each["scale"] for each in recipe["loras"]} == {"oil.safetensors": 0.5, "ink": 1.0}
    assert (recipe["lora_epoch"], (await told(served))["wanted"]["epoch"]) == (epoch, epoch)


async def test_no_loras_and_none_of_them_are_different_things(served: Gateway) -> None:
    await ordered(served, SET, lora_nickname="ink", lora_path="ink.safetensors")
    for body, loras in (({}, None), ({"loras": []}, ()), ({"loras": None}, None)):
        served.script.runs.clear()
        assert (await served.post(model="first", prompt="a cat", **body)).status_code == 200
        assert served.script.runs[0].loras == loras


@pytest.mark.parametrize("wrap", [lambda said: said, lambda said: {"metadata": said}])
async def test_the_dialect_with_lora_path_is_one_lora(served: Gateway, wrap: Any) -> None:
    said = {"lora_path": "oil.safetensors", "lora_scale": 0.5, "lora_id": "mine"}
    assert (await served.post(model="first", prompt="a cat", **wrap(said))).status_code == 200
    [run] = served.script.runs
    assert [(each.name, each.scale) for each in run.loras or ()] == [("mine", 0.5)]
    for nothing, loras in (({"lora_path": ""}, None), ({"lora_path": "oil.safetensors", "lora_scale": 0}, ())):
        served.script.runs.clear()
        assert (await served.post(model="first", prompt="a cat", **wrap(nothing))).status_code == 200
        assert served.script.runs[0].loras == loras


async def test_strengths_together_keep_the_bound_of_one(served: Gateway) -> None:
    await ordered(served, SET, lora_nickname="ink", lora_path="ink.safetensors", strength=4)
    assert refused(await ordered(served, MERGE, strength=2.5)) == (400, "invalid_value", "strength")
    assert (await ordered(served, MERGE, strength=2)).status_code == 200


@pytest.mark.parametrize(
    ("said", "status", "code", "param"),
    [
        ({"loras": [{}]}, 400, "invalid_value", "loras.0"),
        ({"loras": [{"name": "x", "weight": 1}]}, 400, "invalid_value", "loras.0.weight"),
        ({"loras": [{"name": "x"}]}, 404, "lora_not_found", "loras[0].name"),
        ({"loras": [{"path": "../outside.safetensors"}]}, 404, "lora_not_found", "loras[0].path"),
        ({"loras": [{"path": "ink.safetensors", "scale": 9}]}, 400, "invalid_value", "loras.0.scale"),
        ({"loras": [{"path": "ink.safetensors"}] * 9}, 400, "invalid_value", "loras"),
        ({"loras": [], "lora_path": "ink.safetensors"}, 400, "invalid_value", "lora_path"),
        ({"lora_scale": 1.0}, 400, "invalid_value", "lora_scale"),
        ({"lora_epoch": 999}, 409, "state_changed", "lora_epoch"),
    ],
)
async def test_what_a_request_cannot_have_is_refused_by_name(
    served: Gateway, said: dict[str, Any], status: int, code: str, param: str
) -> None:
    assert refused(await served.post(model="first", prompt="a cat", **said)) == (status, code, param)
    assert served.script.runs == []


async def test_work_that_is_pinned_to_an_epoch_is_told_when_that_is_over(served: Gateway) -> None:
    epoch = (await told(served))["wanted"]["epoch"]
    assert (await served.post(model="first", prompt="a cat", lora_epoch=epoch)).status_code == 200
    served.script.go.clear()
    asked = [asyncio.create_task(served.post(model="first", prompt=f"cat {i}", lora_epoch=epoch)) for i in range(6)]
    while len(served.script.runs) < 5:
        await asyncio.sleep(0.005)
    await ordered(served, SET, lora_nickname="ink", lora_path="ink.safetensors", wait="none")
    served.script.go.set()
    answers = [await each for each in asked]
    assert {answer.status_code for answer in answers} == {200, 409}
    assert {answer.json()["error"]["code"] for answer in answers if answer.status_code == 409} == {"state_changed"}


async def test_what_was_decided_outlives_the_gateway(root: Path, folder: Path) -> None:
    async with running(root / "kept", lora_root=folder) as first:
        await ordered(first, SET, lora_nickname="ink", lora_path="ink.safetensors", strength=0.5)
        before = (await ordered(first, MERGE, strength=0.5)).json()["wanted"]
        first.script.refusals["w0"] = Problem(code="out_of_memory", message="no room")
        await ordered(first, SET, lora_nickname="oil", lora_path="oil.safetensors")
    async with running(root / "kept", lora_root=folder) as second:
        found = await told(second)
        assert {**before, "adapters": None} == {**found["wanted"], "adapters": None}
        assert [(each["name"], each["scale"]) for each in found["wanted"]["adapters"]] == [("ink", 0.5)]
        assert found["converged"]
        assert [each["nickname"] for each in found["loaded_adapters"]] == ["ink"]
        # The refused one took the number after it.
        after = (await ordered(second, UNMERGE)).json()
        assert after["epoch"] == before["epoch"] + 2


async def test_without_a_folder_of_loras_none_can_be_named(root: Path) -> None:
    async with running(root / "bare") as gateway:
        answer = await ordered(gateway, SET, lora_nickname="ink", lora_path="/etc/passwd")
        assert refused(answer) == (404, "lora_not_found", "lora_path")
        assert "lora_root" in answer.json()["error"]["message"]


async def test_prompts_of_webui_clients_name_loras(root: Path, folder: Path) -> None:
    async with running(root / "webui", lora_root=folder, enable_sdapi=True) as gateway:
        await ordered(gateway, SET, lora_nickname="mine", lora_path="oil.safetensors")
        listed = (await gateway.http.get("/sdapi/v1/loras")).json()
        assert [each["name"] for each in listed] == ["mine"]
        said = {"prompt": "a cat <lora:ink:0.5> asleep <lora:mine>", "width": 256, "height": 256, "steps": 2}
        answer = await gateway.http.post("/sdapi/v1/txt2img", json=said)
        assert answer.status_code == 200, answer.text
        [run] = gateway.script.runs
        assert run.parameters.prompt == "a cat  asleep "
        assert [(each.name, each.scale) for each in run.loras or ()] == [("ink", 0.5), ("mine", 1.0)]
        for prompt, code in (
            ("<lora:ink:x>", "invalid_value"),
            ("<lora:ink:1:OUTALL>", "invalid_value"),
            ("a cat <lora:nobody>", "lora_not_found"),
            ("<lyco:ink:1>", "unsupported_operation"),
        ):
            refusal = await gateway.http.post("/sdapi/v1/txt2img", json=said | {"prompt": prompt})
            assert code in refusal.text, refusal.text
            assert refusal.status_code in (400, 404)


@pytest.mark.parametrize(
    ("loras", "field"),
    [
        ("nope", "loras"),
        ('{"path": "ink.safetensors"}', "loras"),
        ('[{"path": "ink.safetensors", "scale": 9}]', "loras.0.scale"),
        ("", "loras"),
    ],
)
async def test_what_is_wrong_with_those_of_a_form_is_told_by_name(served: Gateway, loras: str, field: str) -> None:
    picture = {"image": ("a.png", hollow("png", 64, 64), "image/png")}
    data = {"model": "first", "prompt": "a cat", "loras": loras}
    answer = await served.http.post("/v1/images/edits", data=data, files=picture)
    assert refused(answer) == (400, "invalid_value", field)
    assert "None" not in answer.json()["error"]["message"]
