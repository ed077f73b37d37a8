"""What clients ask in a storm, drawn from a seed, and how they ask it: what comes back is kept and judged later."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import httpx2
import numpy as np

from shared.loras import LoraState
from tests.chaos import adapters
from worker import images
from worker.backends import stub

GENERATE, EDIT = "/v1/images/generations", "/v1/images/edits"
STEP_SECONDS = 0.015
# Words in a prompt that bring a fault, by the option of the stub that makes them do so.
WORDS = {"poison": "hemlock", "hang": "statue", "oom": "ocean", "garbage": "rubble", "slow": "snail"}


# Two models that draw, and three that break at a step, whatever they are asked.
DRAWING = adapters.MODELS
_BREAKING = {"crashing": "exit_at_step=3", "fat": "oom_at_step=2", "failing": "fail_at_step=2"}


def models(step_seconds: float = STEP_SECONDS, loras: Path | None = None) -> list[str]:
    """The flags for them; with a folder of LoRAs, those that draw have trouble with some of these."""
    words = "&".join(f"{option}={word}" for option, word in WORDS.items())
    told = dict.fromkeys(DRAWING, "steps=4") | _BREAKING
    if loras is not None:
        told |= {model: f"steps=4&{faults}" for model, faults in adapters.faults(loras).items()}
    sources = (f"{name}=stub?{own}&step_seconds={step_seconds}&{words}" for name, own in told.items())
    flags = [word for source in sources for word in ("--model", source)]
    return flags if loras is None else [*flags, "--lora-root", str(loras)]


@dataclass(frozen=True)
class Trouble:
    """A kind of wish that cannot be fulfilled, by a word in it or by its model, and the code that it is answered."""

    code: str
    word: str = ""
    model: str = ""


TROUBLES = {
    "poison": Trouble("poison", word=WORDS["poison"]),
    "garbage": Trouble("poison", word=WORDS["garbage"]),
    "hang": Trouble("poison", word=WORDS["hang"]),
    "crash_at_step": Trouble("poison", model="crashing"),
    "oom": Trouble("out_of_memory", word=WORDS["oom"]),
    "oom_at_step": Trouble("out_of_memory", model="fat"),
    "failure": Trouble("job_failed", model="failing"),
}
# What innocent clients do, and how often. Some bring their own LoRAs, some want one epoch of their model's.
_HABITS = {"plain": 60, "edit": 10, "stream": 10, "url": 6, "leaver": 6, "hasty": 4}
_LORA_HABITS = {"own": 14, "pinned": 10}
# Of those that edit or stream.
_OWN = 0.3
_SIDES = (64, 128, 192, 256)


@dataclass(frozen=True)
class Wish:
    """One request. `expected` is what each of its pictures must have been made from; `patience` ends it, in seconds.

    With `behind` it is pinned, when it is asked, to the LoRA epoch that is known then, or to one so far behind that.
    """

    name: str
    kind: str
    body: dict[str, Any]
    expected: tuple[dict[str, Any], ...]
    picture: bytes = b""
    patience: float | None = None
    behind: int | None = None

    @property
    def model(self) -> str:
        """Whom it asks."""
        return str(self.body["model"])

    @property
    def brings(self) -> bool:
        """Whether it brings LoRAs of its own, be it none at all."""
        return "loras" in self.body


@dataclass
class Answer:
    """What came back: pictures as encoded, or a code; `problems` are what is wrong with the answer's form.

    `recipes` is what was told of the first picture, or, in a stream, of each.
    """

    status: int = 0
    code: str = ""
    retry_after: bool = False
    pictures: list[bytes] = field(default_factory=list)
    recipes: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)


def wishes(seed: int, client: str) -> Iterator[Wish]:
    """What this client asks, one after the other, without end."""
    dice, habits = Random(f"{seed}/{client}"), _HABITS | _LORA_HABITS
    for number in count():
        yield draw(dice, f"{client}-{number}", dice.choices([*habits], [*habits.values()])[0])


def draw(dice: Random, name: str, kind: str) -> Wish:
    """A wish of this kind, by the dice."""
    trouble = TROUBLES.get(kind)
    n = 1 if trouble else dice.choice((1, 1, 1, 2, 3))
    width, height = dice.choice(_SIDES), dice.choice(_SIDES)
    body: dict[str, Any] = {
        "model": dice.choice(DRAWING),
        "prompt": f"picture {name}, {dice.randbytes(4).hex()}",
        "negative_prompt": dice.choice(("", f"no {dice.randrange(1000)}")),
        "seed": dice.randrange(2**40),
        "n": n,
        "size": f"{width}x{height}",
        "steps": dice.randint(3, 5) if trouble else dice.randint(2, 5),
        "guidance": dice.choice((0.0, 1.5, 4.0)),
        "priority": dice.choice((0, 0, 0, 0, 2, -2)),
        "return_parameters": True,
    }
    picture: bytes = b""
    given: dict[str, Any] = {"task": "generate"}
    if trouble:
        body["model"] = trouble.model or body["model"]
        body["prompt"] += f" {trouble.word}".rstrip()
    own: LoraState | None = None
    behind: int | None = None
    match kind:
        case "own":
            own = adapters.some(dice, dice.randint(0, 2))
        case "leaky":
            body["model"] = adapters.STRUCK
            own = adapters.one("leaky", dice)
        case "pinned":
            behind = dice.choice((0, 0, 0, 1))
        case "slow":
            body["prompt"] += f" {WORDS['slow']}"
        case "stream":
            body |= {"stream": True, "partial_images": dice.randint(0, 3)}
            own = adapters.some(dice, 1) if dice.random() < _OWN else None
        case "url":
            body["response_format"] = "url"
        case "hasty":
            body["timeout_seconds"] = round(dice.uniform(0.05, 0.5), 3)
        case "edit":
            pixels = np.frombuffer(dice.randbytes(64 * 64 * 3), np.uint8).reshape(64, 64, 3)
            picture = images.encode(pixels, "png")
            given = {"task": "edit", "images": [hashlib.sha256(pixels.tobytes()).hexdigest()[:8]]}
            if dice.random() < 0.5:
                body["strength"] = dice.choice((0.25, 0.75))
                given |= {"task": "variation", "strength": body["strength"]}
            own = adapters.some(dice, 2) if dice.random() < _OWN else None
    if own is not None:
        body["loras"] = adapters.asked(own)
        given["loras"] = adapters.shown(own, overlay=True)
    facts = {name: body[name] for name in ("model", "steps", "guidance")} | {"width": width, "height": height} | given
    for text in ("prompt", "negative_prompt"):
        facts[f"{text}_sha256"] = stub.sha256(body[text])
    patience = dice.uniform(0.0, 0.4) if kind == "leaver" else None
    expected = tuple(facts | {"seed": body["seed"] + i} for i in range(n))
    return Wish(name, kind, body, expected, picture, patience, behind)


async def ask(http: httpx2.AsyncClient, wish: Wish, request_id: str) -> Answer:
    """Ask it once. What httpx2 raises passes through."""
    headers = {"x-request-id": request_id}
    if wish.picture:
        form = {name: json.dumps(value) if name == "loras" else str(value) for name, value in wish.body.items()}
        files = {"image": ("given.png", wish.picture, "image/png")}
        response = await http.post(EDIT, data=form, files=files, headers=headers)
    elif wish.kind == "stream":
        async with http.stream("POST", GENERATE, json=wish.body, headers=headers) as response:
            if response.status_code == 200:
                answer = await _events(response, len(wish.expected))
                return _its_own(answer, response, request_id)
            await response.aread()
    else:
        response = await http.post(GENERATE, json=wish.body, headers=headers)
    answer = Answer(response.status_code, retry_after=response.headers.get("retry-after", "").isdecimal())
    if answer.status != 200:
        answer.code = str(response.json()["error"]["code"])
    else:
        told = response.json()
        answer.recipes += [told["replicast"]] if "replicast" in told else []
        for row in told["data"]:
            linked = "b64_json" not in row
            answer.pictures.append(await _follow(http, row["url"]) if linked else base64.b64decode(row["b64_json"]))
    return _its_own(answer, response, request_id)


def _its_own(answer: Answer, response: httpx2.Response, request_id: str) -> Answer:
    if response.headers.get("x-request-id") != request_id:
        answer.problems.append("the answer is another request's")
    return answer


async def _follow(http: httpx2.AsyncClient, url: str) -> bytes:
    response = await http.get(httpx2.URL(url).path)
    return response.content if response.status_code == 200 else b""


async def _events(response: httpx2.Response, count: int) -> Answer:
    """A stream: previews that count up, each picture once, and an end, be it an error."""
    answer, seen = Answer(200), [-1] * count
    found: dict[int, bytes] = {}
    recipes: dict[int, dict[str, Any]] = {}
    async for line in response.aiter_lines():
        if not line.startswith("data: "):
            continue
        event = json.loads(line.removeprefix("data: "))
        if answer.code:
            answer.twice.append("an event after the error that ends the stream")
        elif "error" in event:
            answer.code = str(event["error"]["code"])
        elif (place := event["image_index"]) in found:
            answer.twice.append(f"picture {place} is spoken of after it has come")
        elif str(event["type"]).endswith("completed"):
            found[place] = base64.b64decode(event["b64_json"])
            recipes[place] = event.get("replicast", {})
        elif event["partial_image_index"] <= seen[place]:
            answer.twice.append(f"a preview of picture {place} came again")
        else:
            seen[place] = event["partial_image_index"]
    answer.pictures = [found[place] for place in sorted(found)]
    answer.recipes = [recipes[place] for place in sorted(found)]
    return answer


def mistakes(wish: Wish, pictures: list[bytes]) -> list[str]:
    """What is wrong with these pictures of a wish: each tells what it was made from."""
    if len(pictures) != len(wish.expected):
        return [f"{len(pictures)} pictures for {len(wish.expected)}"]
    wrong = []
    for picture, expected in zip(pictures, wish.expected, strict=True):
        try:
            made_from = stub.read_back(picture)
        except (ValueError, OSError) as error:
            wrong.append(f"no picture of ours: {error}")
            continue
        wrong += [f"{k} is {made_from.get(k)!r}, not {v!r}" for k, v in expected.items() if made_from.get(k) != v]
    return wrong
