"""webuiapi, a client of AUTOMATIC1111's API, as it is: against a live server, on the stub and on the real model."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webuiapi
from numpy.typing import NDArray
from PIL import Image

from tests import scorer
from tests.house.readme import block
from tests.server import Serve, Server, environment, until
from worker.backends import stub

Pixels = NDArray[np.uint8]

PROMPT = "a red circle on a blue background"


@pytest.fixture(autouse=True)
def _direct(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's proxies are not for 127.0.0.1."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def quick(serve_for_all: Serve) -> Server:
    return serve_for_all("--device", "stub:2", "--model", "stub", "--model", "other=stub", "--enable-sdapi")


@pytest.fixture(scope="module")
def real(serve_for_all: Serve) -> Server:
    """What `make serve` starts on a machine without a GPU, with the flag."""
    return serve_for_all("--device", "cpu", "--enable-sdapi")


def client(server: Server, **more: Any) -> webuiapi.WebUIApi:
    return webuiapi.WebUIApi(host="127.0.0.1", port=int(server.address.rpartition(":")[2]), **more)


def first(answer: webuiapi.WebUIApiResult) -> bytes:
    """The file of its first picture."""
    return base64.b64decode(answer.json["images"][0], validate=True)


def pixels(image: Image.Image) -> Pixels:
    return np.asarray(image.convert("RGB"))


# The stub


def test_a_picture_is_made_of_what_the_client_sends_by_itself(quick: Server) -> None:
    answer = client(quick).txt2img(prompt="a cat", negative_prompt="dogs", seed=7, sampler_name="DPM++ 2M")
    facts = stub.read_back(first(answer))
    assert (facts["prompt"], facts["negative_prompt"], facts["seed"]) == ("a cat", "dogs", 7)
    assert (facts["steps"], facts["guidance"], facts["width"], facts["height"]) == (20, 7.0, 512, 512)
    assert (answer.info["seed"], answer.info["steps"], answer.info["cfg_scale"]) == (7, 20, 7.0)
    assert answer.info["sampler_name"] == answer.parameters["sampler_name"] == "Euler"
    assert answer.image.size == (512, 512)


def test_many_pictures_come_in_the_order_of_their_seeds(quick: Server) -> None:
    answer = client(quick).txt2img(prompt="a cat", batch_size=2, n_iter=2, seed=7, steps=1)
    assert len(answer.images) == 4
    files = [base64.b64decode(image) for image in answer.json["images"]]
    assert [stub.read_back(file)["seed"] for file in files] == answer.info["all_seeds"] == [7, 8, 9, 10]


def test_a_picture_is_redrawn(quick: Server) -> None:
    api = client(quick)
    ground = Image.new("RGB", (320, 320), "orange")
    facts = stub.read_back(first(api.img2img(images=[ground], prompt="a cat", seed=7, denoising_strength=0.4)))
    assert (facts["task"], facts["strength"], len(facts["images"])) == ("variation", 0.4, 1)


def test_only_what_is_white_in_a_mask_is_painted(quick: Server) -> None:
    api = client(quick)
    ground = Image.new("RGB", (512, 512), "orange")
    mask = Image.new("L", (512, 512), 0)
    mask.paste(255, (0, 0, 256, 512))

    def painted(**said: Any) -> Pixels:
        """How far each pixel is from the picture that was given."""
        answer = api.img2img(images=[ground], prompt="a cat", seed=7, **{"mask_image": mask, "mask_blur": 0} | said)
        return np.abs(pixels(answer.image).astype(int) - pixels(ground)).max(axis=2)

    exact = painted()
    assert not exact[:, 256:].any()
    assert exact[:, :256].mean() > 10
    inverted = painted(inpainting_mask_invert=1)
    assert not inverted[:, :256].any()
    assert inverted[:, 256:].mean() > 10
    soft = painted(mask_blur=8)
    assert soft[:, 256:264].any()
    assert not soft[:, 300:].any()
    # Grey mixes: half of the paint is half of the difference.
    half = painted(mask_image=mask.point(lambda value: value // 2))
    assert np.abs(half[:, :256] - exact[:, :256] * 127 / 255).max() <= 1
    layer = Image.new("RGBA", (512, 512), (0, 0, 0, 0))
    layer.paste((0, 0, 0, 255), (0, 0, 256, 512))
    assert np.array_equal(painted(mask_image=layer), exact)


def test_a_model_is_chosen_for_what_comes_later(quick: Server) -> None:
    api = client(quick)
    assert api.util_get_model_names() == ["other", "stub"]
    assert api.util_get_current_model() == "stub"
    try:
        api.util_set_model("othr")
        assert api.util_get_current_model() == "other"
        assert stub.read_back(first(api.txt2img(prompt="a cat", steps=1)))["model"] == "other"
        named = api.txt2img(prompt="a cat", steps=1, override_settings={"sd_model_checkpoint": "stub"})
        assert stub.read_back(first(named))["model"] == "stub"
    finally:
        api.util_set_model("stub")


CALLS: dict[str, Callable[[webuiapi.WebUIApi], object]] = {
    "samplers": lambda api: api.util_get_sampler_names() == ["Euler"],
    "schedulers": lambda api: api.util_get_scheduler_names() == ["Automatic"],
    "models": lambda api: {model["model_name"] for model in api.get_sd_models()} == {"stub", "other"},
    "scripts": lambda api: api.get_scripts() == {"txt2img": [], "img2img": []} and not api.has_controlnet,
    "upscalers": lambda api: [upscaler["name"] for upscaler in api.get_upscalers()] == ["None"],
    "nothing": lambda api: (
        api.get_latent_upscale_modes()
        == api.get_loras()
        == api.get_hypernetworks()
        == api.get_sd_vae()
        == api.get_face_restorers()
        == api.get_realesrgan_models()
        == api.get_prompt_styles()
        == []
    ),
    "embeddings": lambda api: api.get_embeddings()["loaded"] == {},
    "memory": lambda api: api.get_memory().keys() == {"ram", "cuda"},
    "flags": lambda api: api.get_cmd_flags() == {},
    "refresh": lambda api: api.refresh_checkpoints() is None,
    "interrupt": lambda api: api.interrupt() == {},
    "skip": lambda api: api.skip() is None,
    "ready": lambda api: api.util_wait_for_ready() is None,
}


@pytest.mark.parametrize("call", CALLS)
def test_what_the_client_asks_besides_is_answered(quick: Server, call: str) -> None:
    assert CALLS[call](client(quick))


def test_what_cannot_be_done_is_raised_in_words(quick: Server) -> None:
    with pytest.raises(RuntimeError) as refused:
        client(quick).txt2img(prompt="a cat", width=500)
    status, text = refused.value.args
    assert status == 400
    error = json.loads(text)["error"]
    assert (error["code"], error["param"]) == ("unsupported_size", "width")
    assert "504x512" in error["message"]


def test_progress_is_seen_and_an_interrupt_ends_it(serve: Serve, clients: ThreadPoolExecutor) -> None:
    server = serve("--device", "stub:2", "--model", "stub?step_seconds=0.25", "--enable-sdapi")
    api, watcher = client(server), client(server)
    # Two of these run for ten seconds, while two wait.
    answer = clients.submit(api.txt2img, prompt="a cat", steps=40, batch_size=4, seed=7)
    seen = []

    def shown() -> bool:
        seen.append(watcher.get_progress())
        return seen[-1]["current_image"] is not None

    until(shown, "a preview")
    begun = [told for told in seen if told["state"]["job_count"]]
    shares = [told["progress"] for told in begun]
    assert shares == sorted(shares)
    assert 0 < shares[-1] < 0.5, "half of the pictures have not begun"
    state = begun[-1]["state"]
    assert (state["job_count"], state["job_no"], state["sampling_steps"]) == (4, 0, 40)
    assert 13 <= state["sampling_step"] < 40
    assert begun[-1]["eta_relative"] > 0
    with Image.open(io.BytesIO(base64.b64decode(seen[-1]["current_image"]))) as preview:
        assert preview.size == (512, 512)
    assert watcher.interrupt() == {}
    ended = answer.result(10.0)
    assert ended.info["interrupted"] is True
    # What had been seen of them; the two that waited were never begun.
    assert ended.info["all_seeds"] in ([7, 8], [7], [8])
    assert [image.size for image in ended.images] == [(512, 512)] * len(ended.info["all_seeds"])
    until(lambda: set(server.jobs().values()) == {0}, "the workers are free")
    watcher.util_wait_for_ready()
    assert server.event("worker_lost") == 0


# The embedded model


@pytest.mark.model
def test_the_real_model_draws_what_is_asked_for_as_the_client_asks(real: Server) -> None:
    answer = client(real).txt2img(prompt=PROMPT, batch_size=2, seed=1)
    for image in answer.json["images"]:
        picture = base64.b64decode(image)
        assert scorer.score(picture, scorer.parse(PROMPT)).all, scorer.look(picture)
    assert (answer.info["sampler_name"], answer.info["cfg_scale"], answer.info["steps"]) == ("Euler", 7.0, 20)
    assert answer.info["sd_model_name"] == "shapes"


@pytest.mark.model
def test_the_real_model_paints_under_a_mask(real: Server) -> None:
    api = client(real)
    ground = api.txt2img(prompt=PROMPT, seed=1).image
    mask = Image.new("L", ground.size, 0)
    mask.paste(255, (64, 64, 448, 448))
    prompt = "a yellow star on a blue background"
    answer = api.img2img(
        images=[ground], mask_image=mask, mask_blur=0, prompt=prompt, seed=3, denoising_strength=1.0, cfg_scale=2
    )
    outside = pixels(mask) == 0
    assert np.array_equal(pixels(answer.image)[outside], pixels(ground)[outside])
    score = scorer.score(first(answer), scorer.parse(prompt))
    assert score.colour, scorer.look(first(answer))


@pytest.mark.model
def test_the_real_model_goes_as_far_from_a_picture_as_is_said(real: Server) -> None:
    api = client(real)
    ground = api.txt2img(prompt=PROMPT, seed=1).image
    far = [
        np.abs(pixels(answer.image).astype(int) - pixels(ground)).mean()
        for strength in (0.05, 0.25, 0.5)
        for answer in [api.img2img(images=[ground], prompt="a green square", seed=3, denoising_strength=strength)]
    ]
    assert far == sorted(far)
    assert far[0] < 10 < 50 < far[-1]


@pytest.mark.model
def test_the_readme_s_client(real: Server, tmp_path: Path) -> None:
    port = real.address.rpartition(":")[2]
    code = block("test_the_readme_s_client").code.replace("8000", port)
    assert f"port={port}" in code
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(real.runtime),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    picture = (tmp_path / "square.png").read_bytes()
    assert scorer.score(picture, scorer.parse("a purple square on a yellow background")).colour, scorer.look(picture)
