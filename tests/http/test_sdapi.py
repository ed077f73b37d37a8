"""AUTOMATIC1111's API: what each of its requests means to a worker, what is refused, and what its clients are told."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from fastapi import Request

from gateway import auth as who
from gateway.api.sdapi_desk import Desk
from gateway.keys import KeyFile, Role
from shared.messages import Parameters, Problem, Run
from tests.http.conftest import Gateway, running
from tests.http.test_bad_requests import JSONS, NUMBERS, expect_error, internal_errors
from tests.pictures import hollow

pytestmark = pytest.mark.asyncio(loop_scope="module")

TXT2IMG, IMG2IMG = "/sdapi/v1/txt2img", "/sdapi/v1/img2img"
LISTS = (
    *("sd-models", "samplers", "schedulers", "upscalers", "latent-upscale-modes", "scripts", "script-info", "loras"),
    *("extensions", "embeddings", "hypernetworks", "sd-vae", "prompt-styles", "face-restorers", "realesrgan-models"),
    *("cmd-flags", "memory", "progress"),
)
ROUTES = {
    **{f"/sdapi/v1/{name}": {"GET": 200} for name in LISTS},
    **{f"/sdapi/v1/{name}": {"POST": 200} for name in ("interrupt", "skip", "refresh-checkpoints", "refresh-loras")},
    "/sdapi/v1/options": {"GET": 200, "POST": 400},
    TXT2IMG: {"POST": 400},
    IMG2IMG: {"POST": 400},
}

# What three clients send when their users have changed nothing.
WEBUIAPI = {
    "enable_hr": False,
    "hr_scale": 2,
    "hr_upscaler": "Latent",
    "hr_second_pass_steps": 0,
    "hr_resize_x": 0,
    "hr_resize_y": 0,
    "hr_checkpoint_name": None,
    "hr_sampler_name": None,
    "hr_scheduler": None,
    "hr_prompt": "",
    "hr_negative_prompt": "",
    "denoising_strength": 0.7,
    "firstphase_width": 0,
    "firstphase_height": 0,
    "prompt": "a cat",
    "styles": [],
    "seed": -1,
    "subseed": -1,
    "subseed_strength": 0.0,
    "seed_resize_from_h": 0,
    "seed_resize_from_w": 0,
    "batch_size": 1,
    "n_iter": 1,
    "steps": 20,
    "cfg_scale": 7.0,
    "width": 512,
    "height": 512,
    "restore_faces": False,
    "tiling": False,
    "do_not_save_samples": False,
    "do_not_save_grid": False,
    "negative_prompt": "",
    "eta": 1.0,
    "s_churn": 0,
    "s_tmax": 0,
    "s_tmin": 0,
    "s_noise": 1,
    "override_settings": {},
    "override_settings_restore_afterwards": True,
    "sampler_name": "Euler a",
    "scheduler": "automatic",
    "sampler_index": "Euler a",
    "script_name": None,
    "script_args": [],
    "send_images": True,
    "save_images": False,
    "alwayson_scripts": {},
}
SILLYTAVERN = {
    "url": "http://127.0.0.1:8000",
    "auth": "",
    "prompt": "best quality, a cat",
    "negative_prompt": "lowres, bad anatomy",
    "sampler_name": "DDIM",
    "scheduler": "normal",
    "steps": 20,
    "cfg_scale": 7,
    "width": 512,
    "height": 512,
    "restore_faces": False,
    "enable_hr": False,
    "hr_upscaler": "Latent",
    "hr_scale": 2,
    "hr_additional_modules": [],
    "denoising_strength": 0.7,
    "hr_second_pass_steps": 0,
    "override_settings": {"CLIP_stop_at_last_layers": 1},
    "override_settings_restore_afterwards": True,
    "clip_skip": 1,
    "save_images": True,
    "send_images": True,
    "do_not_save_grid": False,
    "do_not_save_samples": False,
}
OPEN_WEBUI = {"prompt": "a cat", "batch_size": 1, "width": 512, "height": 512, "steps": 50}


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


PNG = hollow("png", 512, 512)
MASK = hollow("png", 512, 512, b"mask")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(root: Path) -> AsyncIterator[Gateway]:
    async with running(root / "sdapi", enable_sdapi=True) as made:
        yield made


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def _clean(gateway: Gateway) -> AsyncIterator[None]:
    """No request of this file is one too many: none is answered by a 500 that is not meant, and none is left."""
    gateway.script.runs.clear()
    before = internal_errors(gateway)
    yield
    assert internal_errors(gateway) == before
    assert gateway.state.serving.idle
    await gateway.http.post("/sdapi/v1/options", json={"sd_model_checkpoint": "first"})


async def drawn(gateway: Gateway, path: str = TXT2IMG, **body: Any) -> tuple[dict[str, Any], list[Run]]:
    """The answer to a request that must succeed, and what the workers were told, in the order of the seeds."""
    answer = await gateway.http.post(path, json={"prompt": "a cat", **body})
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    assert told.keys() == {"images", "parameters", "info"}
    told["info"] = json.loads(told["info"])
    runs = {run.job: run for run in gateway.script.runs}
    return told, sorted(runs.values(), key=lambda run: run.seeds)


# Without the flag


async def test_without_its_flag_there_is_nothing_of_it(root: Path) -> None:
    async with running(root / "off", ready=False, workers=0) as plain:
        for path, methods in ROUTES.items():
            for method in methods:
                expect_error(await plain.http.request(method, path), 404, "not_found")


async def test_no_route_is_missing_above(gateway: Gateway) -> None:
    schema = (await gateway.http.get("/openapi.json")).json()
    described = {(path, method.upper()) for path, item in schema["paths"].items() for method in item if "sdapi" in path}
    assert described == {(path, method) for path, methods in ROUTES.items() for method in methods}
    for path, method in described:
        assert schema["paths"][path][method.lower()]["responses"]["400"]
    fields = schema["paths"][IMG2IMG]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert {"prompt", "init_images", "mask", "denoising_strength", "cfg_scale"} <= fields.keys()


@pytest.mark.parametrize("path", ROUTES)
async def test_every_route_answers_its_methods_and_no_other(gateway: Gateway, path: str) -> None:
    for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS"):
        answer = await gateway.http.request(method, path)
        assert answer.status_code == ROUTES[path].get(method, 204 if method == "OPTIONS" else 405), (
            method,
            answer.text,
        )
        assert method == "OPTIONS" or answer.headers["content-type"] == "application/json"
        if answer.status_code >= 400:
            assert answer.json()["error"].keys() == {"message", "type", "param", "code"}


# txt2img


async def test_a_prompt_alone_is_drawn_as_these_clients_expect(gateway: Gateway) -> None:
    told, [run] = await drawn(gateway)
    assert (run.model, run.task) == ("first", "generate")
    # 512x512 is the size that is meant where none is said; steps and guidance are the model's own.
    assert run.parameters == Parameters(
        prompt="a cat", width=512, height=512, steps=4, guidance=3.5, write_parameters=True
    )
    [image] = told["images"]
    assert base64.b64decode(image, validate=True).startswith(b"\x89PNG")
    info = told["info"]
    assert (info["seed"], info["all_seeds"]) == (run.seeds[0], list(run.seeds))
    assert (info["prompt"], info["all_prompts"]) == ("a cat", ["a cat"])
    assert (info["width"], info["height"], info["steps"], info["cfg_scale"]) == (512, 512, 4, 3.5)
    assert (info["sampler_name"], info["sd_model_name"], info["interrupted"]) == ("Euler", "first", False)
    assert info["infotexts"] == [
        f"a cat\nSteps: 4, Sampler: Euler, CFG scale: 3.5, Seed: {run.seeds[0]}, Size: 512x512, Model: first"
    ]
    parameters = told["parameters"]
    assert (parameters["steps"], parameters["cfg_scale"], parameters["seed"]) == (4, 3.5, run.seeds[0])
    assert parameters["override_settings"] == {"sd_model_checkpoint": "first"}


@pytest.mark.parametrize("body", [WEBUIAPI, SILLYTAVERN, OPEN_WEBUI], ids=["webuiapi", "SillyTavern", "Open WebUI"])
async def test_what_front_ends_send_by_habit_is_drawn_and_told_as_it_was(
    gateway: Gateway, body: dict[str, Any]
) -> None:
    told, [run] = await drawn(gateway, **body)
    used = run.parameters
    assert (used.prompt, used.steps) == (body["prompt"], body["steps"])
    assert used.guidance == body.get("cfg_scale", 3.5)
    assert used.negative_prompt == body.get("negative_prompt", "")
    # Another sampler than the model's was asked for: the answer says which one it was.
    assert told["parameters"]["sampler_name"] == told["info"]["sampler_name"] == "Euler"
    assert told["parameters"]["scheduler"] == "Automatic"


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ({"negative_prompt": "dogs"}, {"negative_prompt": "dogs"}),
        ({"steps": 7, "cfg_scale": 2}, {"steps": 7, "guidance": 2.0}),
        ({"steps": "7", "cfg_scale": "2.5", "width": "256"}, {"steps": 7, "guidance": 2.5, "width": 256}),
        ({"steps": 7.0, "cfg_scale": 0}, {"steps": 7, "guidance": 0.0}),
        ({"width": 256}, {"width": 256}),
        ({"width": 256, "height": 128}, {"width": 256, "height": 128}),
        (dict.fromkeys([*WEBUIAPI, "mask", "init_images"]) | {"prompt": "a cat"}, {}),
        ({"styles": [], "alwayson_scripts": {}, "script_name": "None", "refiner_checkpoint": ""}, {}),
        ({"seed_resize_from_w": -1, "seed_resize_from_h": -1, "subseed_strength": 0}, {}),
        ({"sampler_name": "no such sampler", "scheduler": "Karras", "eta": 0.5, "nobody_knows": {"a": [1]}}, {}),
    ],
)
async def test_each_field_means_what_it_says(gateway: Gateway, said: dict[str, Any], meant: dict[str, Any]) -> None:
    _, [run] = await drawn(gateway, **said)
    plain = Parameters(prompt="a cat", width=512, height=512, steps=4, guidance=3.5, write_parameters=True)
    assert run.parameters == plain.model_copy(update=meant)


@pytest.mark.parametrize(
    ("said", "seeds"),
    [
        ({"seed": 5}, [5]),
        ({"seed": 0, "batch_size": 2}, [0, 1]),
        ({"seed": 5, "n_iter": 3}, [5, 6, 7]),
        ({"seed": 5, "batch_size": 2, "n_iter": 5}, list(range(5, 15))),
        ({"seed": 2**63 - 1}, [2**63 - 1]),
        ({"seed": "5"}, [5]),
    ],
)
async def test_pictures_are_counted_and_seeded(gateway: Gateway, said: dict[str, Any], seeds: list[int]) -> None:
    told, runs = await drawn(gateway, **said)
    assert [run.seeds for run in runs] == [(seed,) for seed in seeds]
    assert len(told["images"]) == len(seeds)
    assert told["info"]["all_seeds"] == seeds
    assert [f"Seed: {seed}," in text for seed, text in zip(seeds, told["info"]["infotexts"], strict=True)]
    assert told["parameters"]["batch_size"] == said.get("batch_size", 1)


async def test_seeds_that_were_not_given_are_drawn_and_told(gateway: Gateway) -> None:
    drawn_seeds = {(await drawn(gateway, seed=seed))[0]["info"]["seed"] for seed in (-1, -1, None, "-1")}
    assert len(drawn_seeds) == 4
    assert min(drawn_seeds) >= 0


async def test_pictures_are_kept_back_if_they_are_not_to_be_sent(gateway: Gateway) -> None:
    told, [run] = await drawn(gateway, send_images=False, seed=3)
    assert told["images"] == []
    assert told["info"]["all_seeds"] == [3]
    assert run.seeds == (3,)


async def test_the_model_is_the_one_that_is_named_else_the_one_that_was_set(gateway: Gateway) -> None:
    named = {"override_settings": {"sd_model_checkpoint": "org/second"}, "cfg_scale": 1, "steps": 8}
    told, [run] = await drawn(gateway, **named)
    assert run.model == told["info"]["sd_model_name"] == "org/second"
    assert told["parameters"]["sampler_name"] == "Automatic", "a model that names no scheduler of its own"
    for alias in ("gpt-image-1", "", None):
        gateway.script.runs.clear()
        _, [run] = await drawn(gateway, override_settings={"sd_model_checkpoint": alias})
        assert run.model == "first"


# img2img


async def given(gateway: Gateway, **body: Any) -> tuple[Run, tuple[bytes, ...]]:
    """What a worker was told by a request that must succeed, and the pictures it was handed."""
    gateway.script.runs.clear()
    _, [run] = await drawn(gateway, IMG2IMG, **body)
    return run, gateway.script.given[run.job]


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,", "DATA:image/jpeg;base64,"])
async def test_a_picture_is_redrawn(gateway: Gateway, prefix: str) -> None:
    run, pictures = await given(gateway, init_images=[prefix + b64(PNG)])
    assert run.task == "variation"
    assert pictures == (PNG,)
    assert run.parameters == Parameters(
        prompt="a cat",
        width=512,
        height=512,
        steps=4,
        guidance=3.5,
        strength=0.75,
        mask_kind="white",
        stretch=True,
        write_parameters=True,
    )


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ({}, {"mask_kind": "white", "mask_blur": 4, "strength": 0.75}),
        ({"mask_blur": 0, "denoising_strength": 1}, {"mask_blur": 0, "strength": 1.0}),
        ({"inpainting_mask_invert": 1}, {"mask_kind": "black"}),
        ({"inpainting_mask_invert": True}, {"mask_kind": "black"}),
        ({"inpainting_mask_invert": 0, "mask_blur": 64}, {"mask_kind": "white", "mask_blur": 64}),
        ({"inpainting_fill": 0, "inpaint_full_res": True, "inpaint_full_res_padding": 32, "prompt": ""}, {}),
        ({"width": 256, "height": 256}, {"width": 256, "height": 256, "stretch": True}),
    ],
)
async def test_a_mask_says_where(gateway: Gateway, said: dict[str, Any], meant: dict[str, Any]) -> None:
    run, pictures = await given(gateway, init_images=[b64(PNG)], mask=b64(MASK), **said)
    assert run.task == "inpaint"
    assert pictures == (PNG, MASK)
    assert {name: getattr(run.parameters, name) for name in meant} == meant


async def test_under_a_mask_a_picture_keeps_a_size_of_its_own(gateway: Gateway) -> None:
    odd = hollow("png", 500, 300)
    run, _ = await given(gateway, init_images=[b64(odd)], mask=b64(MASK), width=500, height=300)
    assert (run.parameters.width, run.parameters.height) == (500, 300)
    for body in ({"mask": b64(MASK)}, {"width": 500, "height": 300}):
        answer = await gateway.http.post(IMG2IMG, json={"width": 500, "init_images": [b64(odd)], **body})
        message = expect_error(answer, 400, "unsupported_size", "width")
        assert "500x" in message


@pytest.mark.parametrize(
    ("mode", "picture", "masked", "stretch"),
    [
        (0, (512, 512), False, True),
        (0, (512, 256), False, True),
        (0, (512, 256), True, True),
        (1, (512, 256), False, False),
        (1, (256, 256), True, False),
        (2, (256, 256), False, True),
        (1, (512, 256), True, None),
        (2, (512, 256), False, None),
        (2, (512, 256), True, None),
        (3, (512, 512), False, None),
    ],
)
async def test_a_picture_of_another_shape_is_made_to_fit_as_was_said_or_refused(
    gateway: Gateway, mode: int, picture: tuple[int, int], masked: bool, stretch: bool | None
) -> None:
    body: dict[str, Any] = {"init_images": [b64(hollow("png", *picture))], "resize_mode": mode}
    if masked:
        body["mask"] = b64(MASK)
    if stretch is None:
        answer = await gateway.http.post(IMG2IMG, json=body)
        expect_error(answer, 400, "unsupported_operation", "resize_mode")
    else:
        run, _ = await given(gateway, **body)
        assert run.parameters.stretch is stretch


async def test_the_answer_tells_how_a_picture_was_redrawn(gateway: Gateway) -> None:
    told, _ = await drawn(gateway, IMG2IMG, init_images=[b64(PNG)], mask=b64(MASK), denoising_strength=0.5)
    assert told["parameters"]["denoising_strength"] == told["info"]["denoising_strength"] == 0.5
    assert (told["parameters"]["mask_blur"], told["parameters"]["inpainting_mask_invert"]) == (4, 0)
    assert "Denoising strength: 0.5" in told["info"]["infotexts"][0]
    # They are large, and whoever asks has them.
    assert not {"init_images", "mask"} & told["parameters"].keys()


# What cannot be done, and what cannot be read


REFUSED = {
    "enable_hr": True,
    "tiling": True,
    "restore_faces": True,
    "styles": ["ink"],
    "script_name": "X/Y/Z plot",
    "alwayson_scripts": {"ControlNet": {"args": [{"enabled": True}]}},
    "refiner_checkpoint": "other",
    "subseed_strength": 0.3,
    "seed_resize_from_w": 256,
    "seed_resize_from_h": "256",
    "infotext": "a cat\nSteps: 3",
}


@pytest.mark.parametrize("field", REFUSED)
async def test_what_would_change_the_picture_and_cannot_be_done_is_refused(gateway: Gateway, field: str) -> None:
    for path, more in ((TXT2IMG, {}), (IMG2IMG, {"init_images": [b64(PNG)]})):
        answer = await gateway.http.post(path, json={"prompt": "a cat", field: REFUSED[field], **more})
        expect_error(answer, 400, "unsupported_operation", field)
    assert not gateway.script.runs


SECOND = {"override_settings": {"sd_model_checkpoint": "org/second"}}
# Bodies beside the prompt; then the code, and the field that is named.
VALUES: dict[str, tuple[dict[str, Any], str, str]] = {
    "no prompt": ({"prompt": ""}, "invalid_value", "prompt"),
    "a prompt of spaces": ({"prompt": "  "}, "invalid_value", "prompt"),
    "a prompt of numbers": ({"prompt": 1}, "invalid_value", "prompt"),
    "a prompt too long": ({"prompt": "x" * 32_001}, "invalid_value", "prompt"),
    "a prompt with a network": ({"prompt": "a cat <Lyco:ink:0.5>"}, "unsupported_operation", "prompt"),
    "a negative prompt of lists": ({"negative_prompt": ["a"]}, "invalid_value", "negative_prompt"),
    "a negative prompt that is not taken": (
        {"negative_prompt": "dogs", "cfg_scale": 1, **SECOND},
        "unsupported_operation",
        "negative_prompt",
    ),
    "seed below": ({"seed": -2}, "invalid_value", "seed"),
    "seed beyond": ({"seed": 2**63}, "invalid_value", "seed"),
    "seed whose next is beyond": ({"seed": 2**63 - 1, "batch_size": 2}, "invalid_value", "seed"),
    "seed of words": ({"seed": "random"}, "invalid_value", "seed"),
    "steps none": ({"steps": 0}, "invalid_value", "steps"),
    "steps over the model's": ({"steps": 501}, "invalid_value", "steps"),
    "guidance over the model's": ({"cfg_scale": 10.5}, "invalid_value", "cfg_scale"),
    "guidance over anything": ({"cfg_scale": 101}, "invalid_value", "cfg_scale"),
    "guidance negative": ({"cfg_scale": -1}, "invalid_value", "cfg_scale"),
    "guidance a list": ({"cfg_scale": [7]}, "invalid_value", "cfg_scale"),
    "a size between": ({"width": 500}, "unsupported_size", "width"),
    "a size beyond": ({"width": 2048, "height": 2048}, "unsupported_size", "width"),
    "a size of another model": ({"width": 768, "height": 768, **SECOND}, "unsupported_size", "width"),
    "no width": ({"width": 0}, "invalid_value", "width"),
    "height negative": ({"height": -512}, "invalid_value", "height"),
    "height of fractions": ({"height": 512.5}, "invalid_value", "height"),
    "width of words": ({"width": "wide"}, "invalid_value", "width"),
    "no pictures": ({"batch_size": 0}, "invalid_value", "batch_size"),
    "pictures too many": ({"batch_size": 11}, "invalid_value", "batch_size"),
    "turns too many": ({"n_iter": 100}, "invalid_value", "n_iter"),
    "both together too many": ({"batch_size": 4, "n_iter": 3}, "invalid_value", "n_iter"),
    "all of it too much": (
        {"batch_size": 10, "width": 1024, "height": 1024, "steps": 101},
        "invalid_value",
        "batch_size",
    ),
    "settings of words": ({"override_settings": "first"}, "invalid_value", "override_settings"),
    "settings a list": ({"override_settings": []}, "invalid_value", "override_settings"),
    "a model of numbers": (
        {"override_settings": {"sd_model_checkpoint": 5}},
        "invalid_value",
        "override_settings.sd_model_checkpoint",
    ),
    "a model too long": (
        {"override_settings": {"sd_model_checkpoint": "m" * 257}},
        "invalid_value",
        "override_settings.sd_model_checkpoint",
    ),
    "a sampler of numbers": ({"sampler_name": 5}, "invalid_value", "sampler_name"),
    "send images of words": ({"send_images": "perhaps"}, "invalid_value", "send_images"),
}


@pytest.mark.parametrize("what", VALUES)
async def test_a_wrong_value_is_refused_under_its_own_name(gateway: Gateway, what: str) -> None:
    body, code, param = VALUES[what]
    message = expect_error(await gateway.http.post(TXT2IMG, json={"prompt": "a cat", **body}), 400, code, param)
    # Our own names for these mean nothing to whoever sent theirs.
    assert not any(f"'{ours}'" in message for ours in ("guidance", "n", "strength", "image"))
    assert not gateway.script.runs


async def test_an_unknown_model_is_not_found(gateway: Gateway) -> None:
    for name in ("nonsense", "model", "../../etc/passwd"):
        body = {"prompt": "a cat", "override_settings": {"sd_model_checkpoint": name}}
        answer = await gateway.http.post(TXT2IMG, json=body)
        message = expect_error(answer, 404, "model_not_found", "override_settings.sd_model_checkpoint")
        assert f"'{name}'" in message


@pytest.mark.parametrize("what", JSONS)
@pytest.mark.parametrize("path", [TXT2IMG, IMG2IMG, "/sdapi/v1/options"])
async def test_what_is_no_json_object_is_refused(gateway: Gateway, path: str, what: str) -> None:
    expect_error(await gateway.http.post(path, content=JSONS[what]), 400, "invalid_json")


NUMERIC = ("seed", "steps", "cfg_scale", "width", "height", "batch_size", "n_iter")


@pytest.mark.parametrize(
    "field", [*NUMERIC, "denoising_strength", "mask_blur", "resize_mode", "inpainting_mask_invert"]
)
async def test_no_number_is_too_strange(gateway: Gateway, field: str) -> None:
    strange = [number for number in NUMBERS if number not in ('"20"', "true")]
    for number in [*strange, '"NaN"', '"1e999"', "[]", "{}", '""', f'"{"9" * 5000}"']:
        content = f'{{"prompt": "a cat", "init_images": ["{b64(PNG)}"], "{field}": {number}}}'
        answer = await gateway.http.post(IMG2IMG, content=content)
        assert answer.status_code == 400, (number, answer.text)
        error = answer.json()["error"]
        assert error["code"] in ("invalid_json", "invalid_value"), number
        expect_error(answer, 400, error["code"], error["param"])
    assert not gateway.script.runs


PICTURES: dict[str, tuple[object, str]] = {
    "missing": (None, "invalid_value"),
    "none": ([], "invalid_value"),
    "two": ([b64(PNG), b64(PNG)], "invalid_value"),
    "no list": (b64(PNG), "invalid_value"),
    "a number": ([1], "invalid_value"),
    "null": ([None], "invalid_value"),
    "an object": ([{"image_url": "data:image/png;base64," + b64(PNG)}], "invalid_value"),
    "an address": (["https://elsewhere.example/cat.png"], "unsupported_operation"),
    "an address within": (["HTTP://169.254.169.254/latest"], "unsupported_operation"),
    "a file": (["file:///etc/passwd"], "invalid_image_file"),
    "a path": (["/etc/passwd"], "invalid_image_file"),
    "empty": ([""], "invalid_image_file"),
    "no base64": (["?" * 40], "invalid_image_file"),
    "cut base64": ([b64(PNG)[:-3]], "invalid_image_file"),
    "other letters": (["ÄÖÜ"], "invalid_image_file"),
    "a data URL of text": (["data:text/plain,hello"], "invalid_image_file"),
    "no picture": ([b64(b"hello, world" * 9)], "invalid_image_file"),
    "a GIF": ([b64(b"GIF89a" + b"\0" * 60)], "invalid_image_file"),
    "a head cut short": ([b64(PNG[:20])], "invalid_image_file"),
    "a bomb": ([b64(hollow("png", 16_000, 16_000))], "invalid_image_file"),
    "a long bomb": ([b64(hollow("png", 2**31 - 1, 1))], "invalid_image_file"),
    "a stamp": ([b64(hollow("png", 7, 7))], "invalid_image_file"),
}


@pytest.mark.parametrize("what", PICTURES)
async def test_no_picture_is_too_strange(gateway: Gateway, what: str) -> None:
    value, code = PICTURES[what]
    answer = await gateway.http.post(IMG2IMG, json={"prompt": "a cat", "init_images": value})
    expect_error(answer, 400, code, "init_images")
    if isinstance(value, list) and len(value) == 1 and value[0]:
        answer = await gateway.http.post(IMG2IMG, json={"prompt": "a cat", "init_images": [b64(PNG)], "mask": value[0]})
        expect_error(answer, 400, code, "mask")
    assert not gateway.script.runs


@pytest.mark.parametrize("strength", [0, 1.01, -0.5])
async def test_a_strength_out_of_bounds_is_refused(gateway: Gateway, strength: float) -> None:
    body = {"prompt": "a cat", "init_images": [b64(PNG)], "denoising_strength": strength}
    expect_error(await gateway.http.post(IMG2IMG, json=body), 400, "invalid_value", "denoising_strength")


async def test_what_the_model_cannot_do_is_refused(gateway: Gateway) -> None:
    body = {"prompt": "a cat", "init_images": [b64(PNG)], "cfg_scale": 1, **SECOND}
    for more in ({}, {"mask": b64(MASK)}):
        answer = await gateway.http.post(IMG2IMG, json=body | more)
        expect_error(answer, 400, "unsupported_operation", "override_settings.sd_model_checkpoint")


async def test_what_a_worker_finds_wrong_is_told_under_the_name_it_was_sent(gateway: Gateway) -> None:
    problem = Problem(
        code="invalid_image_file", message="Invalid image file for 'image': it is damaged.", param="image"
    )
    gateway.script.problems["trouble"] = problem
    answer = await gateway.http.post(IMG2IMG, json={"prompt": "trouble", "init_images": [b64(PNG)]})
    assert "'init_images'" in expect_error(answer, 400, "invalid_image_file", "init_images")


async def test_too_much_is_refused_while_it_is_read(root: Path) -> None:
    bounds = {"max_body_bytes": 10_000, "max_upload_bytes": 30_000, "max_image_bytes": 20_000}
    async with running(root / "bounded", enable_sdapi=True, workers=1, **bounds) as small:
        for path in (TXT2IMG, "/sdapi/v1/options"):
            expect_error(await small.http.post(path, content=b" " * 10_001), 413, "payload_too_large")
        large = hollow("png", 512, 512, bytes(20_000))
        answer = await small.http.post(IMG2IMG, json={"prompt": "a cat", "init_images": [b64(large)]})
        expect_error(answer, 413, "payload_too_large", "init_images")
        expect_error(await small.http.post(IMG2IMG, content=b" " * 50_001), 413, "payload_too_large")
        fits = hollow("png", 512, 512, bytes(19_000))
        answer = await small.http.post(IMG2IMG, json={"prompt": "a cat", "init_images": [b64(fits)]})
        assert answer.status_code == 200, answer.text


async def test_a_page_from_elsewhere_can_do_nothing(gateway: Gateway) -> None:
    """It may send these without asking first; application/json it may not."""
    headers = {"origin": "http://127.0.0.1:8000", "content-type": "text/plain"}
    for path in (TXT2IMG, IMG2IMG, *(f"/sdapi/v1/{name}" for name in ("options", "interrupt", "skip"))):
        answer = await gateway.http.post(path, content=b'{"prompt": "a cat"}', headers=headers)
        expect_error(answer, 415, "unsupported_media_type")


async def test_what_cannot_be_had_in_time_is_told(root: Path) -> None:
    async with running(root / "hurried", enable_sdapi=True, workers=1, request_timeout_seconds=0.05) as hurried:
        hurried.script.go.clear()
        answer = await hurried.http.post(TXT2IMG, json={"prompt": "a cat"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "expired")
        assert (await progress(hurried))["state"]["job_count"] == 0


# While it runs


async def progress(gateway: Gateway, **more: Any) -> dict[str, Any]:
    answer = await gateway.http.get("/sdapi/v1/progress", **more)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    assert told.keys() == {"progress", "eta_relative", "state", "current_image", "textinfo"}
    return told


IDLE = {
    "skipped": False,
    "interrupted": False,
    "job": "",
    "job_count": 0,
    "job_timestamp": "0",
    "job_no": 0,
    "sampling_step": 0,
    "sampling_steps": 0,
}


@asynccontextmanager
async def held(gateway: Gateway, *, halfway: bool = True, **body: Any) -> AsyncIterator[asyncio.Task[httpx2.Response]]:
    """A request that runs as far as its previews, or not even that far, and waits there."""
    gateway.script.halfway = halfway
    gateway.script.go.clear()
    request = {"prompt": "a cat", "steps": 4, **body}
    task = asyncio.create_task(gateway.http.post(TXT2IMG, json=request))
    try:
        until = 0.01 if not halfway else 0.3
        while not (gateway.state.serving.pool.jobs and (await progress(gateway))["progress"] >= until):
            assert not task.done(), task.result().text
            await asyncio.sleep(0.005)
        yield task
    finally:
        gateway.script.go.set()
        gateway.script.halfway = False
        await asyncio.gather(task, return_exceptions=True)


async def test_without_an_order_there_is_no_progress(gateway: Gateway) -> None:
    assert await progress(gateway) == {
        "progress": 0.0,
        "eta_relative": 0.0,
        "state": IDLE,
        "current_image": None,
        "textinfo": None,
    }


async def test_progress_tells_what_the_workers_told(gateway: Gateway) -> None:
    async with held(gateway, batch_size=2) as task:
        while (told := await progress(gateway))["progress"] < 0.5:
            await asyncio.sleep(0.005)
        # Each of the two has made two of its four steps.
        assert told["progress"] == 0.5
        assert told["eta_relative"] > 0
        state = told["state"]
        assert (state["job"], state["job_count"], state["job_no"]) == ("txt2img", 2, 0)
        assert (state["sampling_step"], state["sampling_steps"]) == (2, 4)
        assert len(state["job_timestamp"]) == 14
        preview = base64.b64decode(told["current_image"], validate=True)
        assert preview.startswith(b"\x89PNG")
        assert preview.endswith(b"1"), "the newest of its two previews"
        assert (await progress(gateway, params={"skip_current_image": "true"}))["current_image"] is None
        gateway.script.go.set()
        answer = await task
        assert len(answer.json()["images"]) == 2
        assert not base64.b64decode(answer.json()["images"][0]).endswith(b"1"), "the picture, not its preview"
    assert (await progress(gateway))["state"] == IDLE


async def test_what_has_begun_is_never_told_as_nothing(gateway: Gateway) -> None:
    """To these clients 0 says that the server is idle."""
    async with held(gateway, halfway=False):
        told = await progress(gateway)
        assert told["progress"] == 0.01
        assert told["eta_relative"] == 0.0
        assert told["current_image"] is None
        assert (told["state"]["job_count"], told["state"]["sampling_step"]) == (1, 0)


async def test_progress_is_only_of_what_came_this_way(gateway: Gateway) -> None:
    gateway.script.go.clear()
    other = asyncio.create_task(gateway.post(prompt="a cat"))
    try:
        while not gateway.script.runs:
            await asyncio.sleep(0.005)
        assert (await progress(gateway))["state"] == IDLE
        assert (await gateway.http.post("/sdapi/v1/interrupt")).json() == {}
    finally:
        gateway.script.go.set()
    assert (await other).status_code == 200


@pytest.mark.parametrize("value", ["perhaps", "", "2"])
async def test_a_strange_question_for_progress_is_refused(gateway: Gateway, value: str) -> None:
    answer = await gateway.http.get("/sdapi/v1/progress", params={"skip_current_image": value})
    expect_error(answer, 400, "invalid_value", "skip_current_image")


async def test_an_interrupted_order_is_answered_with_what_is_there_of_it(gateway: Gateway) -> None:
    # Four have been handed out and show their half, two wait.
    async with held(gateway, batch_size=6, seed=7) as task:
        while (await progress(gateway))["progress"] < 0.33:
            await asyncio.sleep(0.005)
        assert (await gateway.http.post("/sdapi/v1/interrupt")).json() == {}
        answer = await task
        told, info = answer.json(), json.loads(answer.json()["info"])
        assert answer.status_code == 200
        assert info["interrupted"] is True
        assert len(told["images"]) == len(info["all_seeds"]) == len(info["infotexts"]) == 4
        assert info["all_seeds"] == [7, 8, 9, 10]
        assert all(base64.b64decode(image).startswith(b"\x89PNG") for image in told["images"])
        assert all(text.endswith(", Interrupted: True") for text in info["infotexts"])
    assert (await progress(gateway))["state"] == IDLE


async def test_an_order_that_is_interrupted_before_it_shows_anything_has_no_pictures(gateway: Gateway) -> None:
    async with held(gateway, halfway=False) as task:
        await gateway.http.post("/sdapi/v1/interrupt")
        answer = await task
        assert answer.status_code == 200
        assert answer.json()["images"] == []
        assert json.loads(answer.json()["info"])["all_seeds"] == []
        assert "server-timing" not in answer.headers


async def test_skipping_ends_what_is_being_made_and_goes_on_with_the_rest(gateway: Gateway) -> None:
    async with held(gateway, batch_size=6, seed=7) as task:
        while (await progress(gateway))["progress"] < 0.33:
            await asyncio.sleep(0.005)
        assert (await gateway.http.post("/sdapi/v1/skip")).json() is None
        assert (await progress(gateway))["state"]["skipped"] is True
        gateway.script.go.set()
        answer = await task
        assert answer.status_code == 200
        info = json.loads(answer.json()["info"])
        assert info["all_seeds"] == list(range(7, 13)), "of those that were skipped there is a preview"
        assert ["Interrupted" in text for text in info["infotexts"]] == [True] * 4 + [False] * 2
        assert info["interrupted"] is True


async def test_an_order_that_fails_is_no_interrupted_one(gateway: Gateway) -> None:
    gateway.script.problems["a failure"] = Problem(code="unsupported_operation", message="It went wrong.")
    async with held(gateway, prompt="a failure", batch_size=2) as task:
        gateway.script.go.set()
        expect_error(await task, 400, "unsupported_operation")


@pytest.mark.asyncio(loop_scope="function")
async def test_callers_have_orders_and_models_of_their_own(tmp_path: Path) -> None:
    keys = [KeyFile(tmp_path).create(Role.INFERENCE, name)[1] for name in ("me", "you")]
    mine, yours = ({"authorization": f"Basic {b64(f'anybody:{key}'.encode())}"} for key in keys)
    same = {"authorization": f"Bearer {keys[0]}"}
    async with running(tmp_path, ready=False, enable_sdapi=True) as gateway:
        while gateway.state.serving.pool.ledger.backlog.waiting("first") or not gateway.state.find_card("first"):
            await asyncio.sleep(0.005)
        set_to = {"sd_model_checkpoint": "org/second", "samples_format": "jpg", "anything": [1]}
        answer = await gateway.http.post("/sdapi/v1/options", json=set_to, headers=mine)
        assert answer.json() is None
        models = [
            (await gateway.http.get("/sdapi/v1/options", headers=headers)).json()["sd_model_checkpoint"]
            for headers in (mine, yours, same)
        ]
        assert models == ["org/second", "first", "org/second"], "a key is a caller, however it is shown"
        await gateway.http.post(TXT2IMG, json={"prompt": "a cat", "cfg_scale": 1}, headers=mine)
        assert [run.model for run in gateway.script.runs] == ["org/second"]
        gateway.script.go.clear()
        task = asyncio.create_task(gateway.http.post(TXT2IMG, json={"prompt": "a dog", "cfg_scale": 1}, headers=mine))
        while len(gateway.script.runs) < 2:
            await asyncio.sleep(0.005)
        assert (await progress(gateway, headers=yours))["state"] == IDLE
        await gateway.http.post("/sdapi/v1/interrupt", headers=yours)
        assert (await progress(gateway, headers=same))["state"]["interrupted"] is False
        gateway.script.go.set()
        assert (await task).status_code == 200
        refused = await gateway.http.get("/sdapi/v1/options")
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")


async def test_no_crowd_of_callers_makes_it_grow() -> None:
    desk = Desk()
    for number in range(1200):
        caller = who.Caller(None, "", Role.INFERENCE, f"10.0.{number // 256}.{number % 256}")
        desk.caller(Request({"type": "http", "state": {"caller": caller}}))
    assert len(desk._callers) == 1024


async def test_a_client_that_leaves_takes_its_order_with_it(gateway: Gateway) -> None:
    async with held(gateway) as task:
        before = len(gateway.script.cancelled)
        task.cancel()
        while len(gateway.script.cancelled) == before:
            await asyncio.sleep(0.005)
        assert (await progress(gateway))["state"] == IDLE


# What there is


async def test_options_are_what_was_set(gateway: Gateway) -> None:
    options = (await gateway.http.get("/sdapi/v1/options")).json()
    assert (options["sd_model_checkpoint"], options["samples_format"]) == ("first", "png")
    # One client sends all of it back, with the model changed.
    answer = await gateway.http.post("/sdapi/v1/options", json=options | {"sd_model_checkpoint": "org/second"})
    assert (answer.status_code, answer.json()) == (200, None)
    assert (await gateway.http.get("/sdapi/v1/options")).json()["sd_model_checkpoint"] == "org/second"
    for nothing in ({}, {"sd_model_checkpoint": None}, {"sd_model_checkpoint": ""}):
        assert (await gateway.http.post("/sdapi/v1/options", json=nothing)).status_code == 200
    assert (await gateway.http.get("/sdapi/v1/options")).json()["sd_model_checkpoint"] == "org/second"
    answer = await gateway.http.post("/sdapi/v1/options", json={"sd_model_checkpoint": "nonsense"})
    expect_error(answer, 404, "model_not_found", "sd_model_checkpoint")
    answer = await gateway.http.post("/sdapi/v1/options", json={"sd_model_checkpoint": ["first"]})
    expect_error(answer, 400, "invalid_value", "sd_model_checkpoint")
    assert (await gateway.http.get("/sdapi/v1/options")).json()["sd_model_checkpoint"] == "org/second"


async def test_the_lists_hold_what_there_is_and_nothing_else(gateway: Gateway) -> None:
    async def listed(name: str) -> Any:
        return (await gateway.http.get(f"/sdapi/v1/{name}")).json()

    models = await listed("sd-models")
    assert [model["title"] for model in models] == ["first", "org/second", "third"]
    for model in models:
        assert model.keys() == {"title", "model_name", "hash", "sha256", "filename", "config"}
        assert model["model_name"] == model["filename"] == model["title"]
    assert [sampler["name"] for sampler in await listed("samplers")] == ["Euler", "Automatic"]
    assert [scheduler["name"] for scheduler in await listed("schedulers")] == ["Automatic"]
    # The first one stands for none.
    assert [upscaler["name"] for upscaler in await listed("upscalers")] == ["None"]
    assert await listed("scripts") == {"txt2img": [], "img2img": []}
    assert await listed("embeddings") == {"loaded": {}, "skipped": {}}
    assert (await listed("memory")).keys() == {"ram", "cuda"}
    for nothing in ("sd-vae", "hypernetworks", "latent-upscale-modes", "prompt-styles", "script-info"):
        assert await listed(nothing) == []
    assert (await gateway.http.post("/sdapi/v1/refresh-checkpoints")).json() is None
