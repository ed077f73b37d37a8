"""What AUTOMATIC1111's clients ask for before they draw: the models, and much that this server has none of."""

from __future__ import annotations

import orjson
from fastapi import Request
from starlette.responses import Response

from gateway.api import access, body
from gateway.api.schema import failures
from gateway.api.sdapi_answers import SCHEDULER, sampler
from gateway.api.state import State
from gateway.keys import Role

router = access.router(Role.INFERENCE, prefix="/sdapi/v1", tags=["sdapi"])

# What never changes, by its path: there is one of each thing, or none.
_ALWAYS: dict[str, object] = {
    "/schedulers": [
        {"name": SCHEDULER, "label": SCHEDULER, "aliases": None, "default_rho": -1, "need_inner_model": False}
    ],
    "/upscalers": [{"name": "None", "model_name": None, "model_path": None, "model_url": None, "scale": 1}],
    "/latent-upscale-modes": [],
    "/scripts": {"txt2img": [], "img2img": []},
    "/script-info": [],
    "/extensions": [],
    "/embeddings": {"loaded": {}, "skipped": {}},
    "/hypernetworks": [],
    "/sd-vae": [],
    "/prompt-styles": [],
    "/face-restorers": [],
    "/realesrgan-models": [],
    "/cmd-flags": {},
}


@router.get("/sd-models", responses=failures())
async def models(request: Request) -> Response:
    """The configured models, by the names under which they can be asked for."""
    names = [model.id for model in _state(request).serving.pool.wanted.models]
    none = dict.fromkeys(("hash", "sha256", "config"))
    return _json([{"title": name, "model_name": name, "filename": name, **none} for name in names])


@router.get("/samplers", responses=failures())
async def samplers(request: Request) -> Response:
    """The samplers of all models, of which each has one."""
    state = _state(request)
    cards = [state.find_card(model.id) for model in state.serving.pool.wanted.models]
    names = dict.fromkeys((sampler(card), card.scheduler) for card in cards if card)
    return _json([{"name": name, "aliases": [ours], "options": {}} for name, ours in names])


@router.get("/memory", responses=failures())
async def memory(request: Request) -> Response:
    """The memory of all GPUs together, and what the models hold of it."""
    workers = [worker for worker in _state(request).serving.pool.workers.values() if worker.device.kind == "cuda"]
    used = sum(worker.memory_bytes for worker in workers)
    total = sum(worker.device.memory_bytes for worker in workers)
    unknown = {"error": "unavailable"}
    system = {"system": {"free": total - used, "used": used, "total": total}}
    return _json({"ram": unknown, "cuda": system if workers else unknown})


@router.get("/loras", responses=failures())
async def loras(request: Request) -> Response:
    """The LoRAs that a prompt may name, as <lora:name:1>: those of the catalogue, and those that models have loaded."""
    state = _state(request)
    names = {record.name: record.id for record in state.catalogue.records}
    for model in state.serving.pool.wanted.models:
        names |= {name: file.path for name, file in state.loras.held(model.id).names.items()}
    return _json([{"name": name, "alias": name, "path": path, "metadata": {}} for name, path in names.items()])


@router.post("/refresh-loras", responses=failures(415))
async def refresh_loras(request: Request) -> Response:
    """Nothing to do here either."""
    body.expect_json(request)
    return _json(None)


@router.post("/refresh-checkpoints", responses=failures(415))
async def refresh(request: Request) -> Response:
    """Nothing to do: the list is always new."""
    body.expect_json(request)
    return _json(None)


def _serve(path: str, value: object) -> None:
    content = orjson.dumps(value)

    @router.get(path, responses=failures())
    async def always() -> Response:
        """The same for everybody."""
        return Response(content, media_type="application/json")


for _path, _value in _ALWAYS.items():
    _serve(_path, _value)


def _state(request: Request) -> State:
    state: State = request.app.state.replicast
    return state


def _json(value: object) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")
