"""LoRAs of a whole model: set, merge, unmerge, unload, list; diffgentor's shapes, with what is true beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import orjson
from fastapi import Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from starlette.responses import Response

from gateway.api import access, body
from gateway.api.schema import failures, json_body
from gateway.api.state import State
from gateway.auth import Caller
from gateway.keys import Role
from gateway.loras import commands
from gateway.loras.broadcast import Broadcast
from gateway.loras.commands import Held, Outline
from gateway.loras.outcomes import Change, Wait
from gateway.loras.rows import Row, converged
from shared.errors import BadInput, LoraRefused, UnequalLists
from shared.loras import MAX_ADAPTERS, MAX_SCALE, Target

router = access.router(Role.ADMIN, tags=["loras"])
listing = access.router(Role.INFERENCE, tags=["loras"])

T = TypeVar("T", bound="Order")
V = TypeVar("V")

_MAX_BODY = 64 << 10
_ASKING = failures(404, 408, 409, 413, 415, 422, 503, 507) | {
    202: {"description": "Decided; not all have followed yet"}
}


def _list(value: Any) -> Any:
    """One stands for a list of one; none stays none."""
    return value if value is None or isinstance(value, list) else [value]


Strength = Annotated[float, Field(ge=-MAX_SCALE, le=MAX_SCALE, allow_inf_nan=False)]
Nickname = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]
Path = Annotated[str, Field(min_length=1, max_length=2048)]


class Order(BaseModel):
    """What every command may say: of which model, only in which epoch, and whom the answer waits for."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    model: str | None = Field(None, description="Of several models the one that is meant; else the first")
    if_epoch: int | None = Field(None, ge=0, description="Only if this is the epoch that holds; else 409")
    wait: Wait = Field("all", description="Whom to wait for: every replica, the first, or none; at most 30 s")


class SetLora(Order):
    """The LoRAs that are to be active, in place of all that were. One value stands for as many as are needed."""

    lora_nickname: Annotated[list[Nickname], BeforeValidator(_list)] = Field(max_length=MAX_ADAPTERS)
    lora_path: Annotated[list[Path | None] | None, BeforeValidator(_list)] = None
    target: Annotated[list[Target | None] | None, BeforeValidator(_list)] = None
    strength: Annotated[list[Strength] | None, BeforeValidator(_list)] = None


class Merge(Order):
    """How strongly to merge what is active, and into which part of the model."""

    strength: Strength = 1.0
    target: Target | None = None


class Unload(Order):
    """The nicknames to forget."""

    lora_nickname: Annotated[list[Nickname], BeforeValidator(_list)] = Field(
        min_length=1, max_length=commands.MAX_NAMES
    )


@router.post("/v1/set_lora", responses=_ASKING, openapi_extra=json_body(SetLora, {"lora_nickname": "ink"}))
async def set_lora(request: Request) -> Response:
    """Have these LoRAs active, on every replica or on none, in place of all that were; none at all for `[]`."""
    asked = await _read(request, SetLora)
    state, model = _state(request, asked)
    outlines = await _outlines(state, model, asked)
    was = state.loras.held(model).state.mode
    change = await _change(request, model, asked, lambda held: commands.activate(held, outlines))
    names = ", ".join(asked.lora_nickname)
    said = f"Loaded LoRA adapter(s): {names}" if names else "No LoRA adapter is active"
    return _answer(state, change, said + ("; what was merged before is not any more" if was == "merged" else ""))


@router.post("/v1/merge_lora_weights", responses=_ASKING, openapi_extra=json_body(Merge, {"strength": 1.0}))
async def merge_lora_weights(request: Request) -> Response:
    """Merge what is active into the weights, at this strength and no other, however often it is asked."""
    asked = await _read(request, Merge)
    state, model = _state(request, asked)
    target = asked.target or "all"
    change = await _change(request, model, asked, lambda held: commands.merge(held, asked.strength, target))
    return _answer(
        state, change, "LoRA weights fused" if change.held.state.adapters else "No LoRA is active to be fused"
    )


@router.post("/v1/unmerge_lora_weights", responses=_ASKING, openapi_extra=json_body(Order, {}))
async def unmerge_lora_weights(request: Request) -> Response:
    """Take what is merged out of the weights, to the last bit; it stays active with the strength it was set with."""
    asked = await _read(request, Order)
    state, model = _state(request, asked)
    return _answer(state, await _change(request, model, asked, commands.unmerge), "LoRA weights unfused")


@router.post("/v1/unload_lora", responses=_ASKING, openapi_extra=json_body(Unload, {"lora_nickname": "ink"}))
async def unload_lora(request: Request) -> Response:
    """Forget LoRAs by their nicknames; what is active by them is not any more."""
    asked = await _read(request, Unload)
    state, model = _state(request, asked)
    change = await _change(request, model, asked, lambda held: commands.unload(held, asked.lora_nickname))
    return _answer(state, change, f"Unloaded LoRA adapter(s): {', '.join(asked.lora_nickname)}")


_MODEL = {
    "name": "model",
    "in": "query",
    "required": False,
    "schema": {"type": "string"},
    "description": "Only this model; else all, the first also at the top",
}


@listing.get("/v1/list_loras", responses=failures(404), openapi_extra={"parameters": [_MODEL]})
async def list_loras(request: Request) -> Response:
    """What is decided for each model, and how far every replica has followed."""
    state: State = request.app.state.replicast
    if (name := request.query_params.get("model")) is not None:
        return _json(_view(state.loras, state.resolve(name)))
    views = [_view(state.loras, model.id) for model in state.serving.pool.wanted.models]
    return _json(views[0] | ({"models": views} if len(views) > 1 else {}))


async def _read(request: Request, cls: type[T]) -> T:
    """The body as one of the orders; none at all is an empty one."""
    try:
        return cls.model_validate(await body.parse(request, _MAX_BODY, empty=True))
    except ValidationError as error:
        raise body.bad_input(error, {}) from error


def _state(request: Request, asked: Order) -> tuple[State, str]:
    state: State = request.app.state.replicast
    return state, state.resolve(asked.model)


async def _outlines(state: State, model: str, asked: SetLora) -> list[Outline]:
    """Each adapter that is asked for, with its file: by its path, or as it was loaded before, or by its nickname."""
    names, known = asked.lora_nickname, state.loras.held(model).names
    if len(set(names)) != len(names):
        raise BadInput("Invalid 'lora_nickname': a nickname stands there twice.", param="lora_nickname")
    paths = _spread("lora_path", asked.lora_path, names, None)
    targets = _spread("target", asked.target, names, None)
    strengths = _spread("strength", asked.strength, names, 1.0)
    outlines = []
    for name, path, target, strength in zip(names, paths, targets, strengths, strict=True):
        file = known.get(name) if path is None else None
        if file is None:
            file = await state.find_lora(path or name, "lora_nickname" if path is None else "lora_path")
        outlines.append(Outline(name, file, strength, target or "all"))
    return outlines


def _spread(field: str, values: list[V] | None, names: list[str], default: V) -> list[V]:
    """One value for each name. Raises UnequalLists where there are neither as many nor one."""
    if values is None:
        return [default] * len(names)
    if len(values) == 1:
        return values * len(names)
    if len(values) != len(names):
        raise UnequalLists(f"{field} list length must match lora_nickname", param=field)
    return values


async def _change(request: Request, model: str, asked: Order, command: Callable[[Held], Held]) -> Change:
    state: State = request.app.state.replicast
    caller: Caller = request.scope["state"]["caller"]
    return await state.loras.change(
        model, command, if_epoch=asked.if_epoch, wait=asked.wait, by=caller.key_id or "anonymous"
    )


def _answer(state: State, change: Change, message: str) -> Response:
    if change.status == "reverted":
        last = state.loras.last(change.model)
        reasons = "; ".join(f"{worker}: {reason}" for worker, reason in (last.reasons if last else {}).items())
        raise LoraRefused(f"No replica could follow, and what was before holds again. {reasons}".strip())
    view = _view(state.loras, change.model)
    told = {"status": "ok", "message": message, "result": change.status, "model": change.model, "epoch": change.epoch}
    told |= {key: view[key] for key in ("wanted", "converged", "replicas")}
    return _json(told, 202 if change.status == "pending" else 200)


def _view(loras: Broadcast, model: str) -> dict[str, Any]:
    """All there is to say about a model's LoRAs."""
    held, found, last = loras.held(model), loras.rows(model), loras.last(model)
    state, merged = held.state, held.state.mode == "merged"
    factor = state.merge_scale if merged else 1.0
    active = [
        {
            "nickname": adapter.name,
            "path": held.names[adapter.name].path,
            "merged": merged,
            "strength": adapter.scale * factor,
            "target": adapter.target,
        }
        for adapter in state.adapters
    ]
    matches = loras.matches(model)
    adapters = [
        {**adapter.model_dump(), "match": match.model_dump() if (match := matches.get(adapter.sha256)) else None}
        for adapter in state.adapters
    ]
    merge = {"merge_scale": state.merge_scale, "merge_target": state.merge_target} if merged else {}
    return {
        "model": model,
        "loaded_adapters": [{"nickname": name, "path": file.path} for name, file in held.names.items()],
        "active": {"all": active} if active else {},
        "wanted": {
            "epoch": loras.epoch(model),
            "digest": loras.digest(model),
            "mode": state.mode,
            **merge,
            "adapters": adapters,
        },
        "converged": converged(found),
        "replicas": [_row(row) for row in found],
        "pending": loras.pending(model),
        "last_command": {"epoch": last.epoch, "status": last.status, "reasons": dict(last.reasons)} if last else None,
    }


def _row(row: Row) -> dict[str, Any]:
    return {
        "worker": row.worker,
        "state": row.state,
        "behind": row.behind,
        "epoch": row.epoch,
        "digest": row.digest,
        "fingerprint": row.fingerprint,
        "class": row.kind,
        "age_ms": row.age_ms,
        "quarantined": row.quarantined,
        "problem": {"code": row.problem.code, "detail": row.problem.message} if row.problem else None,
    }


def _json(value: object, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json")
