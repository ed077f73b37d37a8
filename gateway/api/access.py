"""Who may use a route: each is made by a router that says so, and is asked about before anything else is read."""

from __future__ import annotations

from typing import Any, Final, Literal

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute, iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.api.state import State
from gateway.keys import Role
from shared.errors import Internal

PUBLIC: Final = "public"
Need = Role | Literal["public"]


class Guarded(APIRoute):
    """A route with a role. What it serves finds the caller in the scope's state; a public one asks nobody who they are.

    The check is in here and in no dependency: those run after the parameters and the body are read, and cost more.
    """

    need: Need

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in (self.methods or ()):
            allow = {"allow": ", ".join(_methods(scope))}
            if scope["method"] != "OPTIONS":
                raise HTTPException(405, headers=allow)
            await Response(status_code=204, headers=allow)(scope, receive, send)
            return
        if self.need != PUBLIC:
            state: State = scope["app"].state.replicast
            shown = [value for name, value in scope["headers"] if name == b"authorization"]
            address = scope["client"][0] if scope["client"] else "unknown"
            scope["state"]["caller"] = state.auth.admit(shown, address, self.need)
        await super().handle(scope, receive, send)


def router(role: Need, **options: Any) -> APIRouter:
    """A router whose every route needs this role; with `options` of fastapi's own."""

    class Declared(Guarded):
        need = role

    return APIRouter(route_class=Declared, **options)


def expect_roles(app: FastAPI) -> None:
    """Raises Internal if there is a way into this app that no role guards: mounted apps, sockets and folders too."""
    ways = [(context.original_route, context.path) for context in iter_route_contexts(app.routes)]
    ways += [(route, "a folder") for route in app.router._low_priority_routes]
    for route, path in ways:
        if not isinstance(route, Guarded):
            raise Internal(f"{path} has no role: make its route with access.router")


def _methods(scope: Scope) -> list[str]:
    """Every method that some route has for this path."""
    contexts = iter_route_contexts(scope["app"].routes)
    found = {method for c in contexts if c.path_regex.match(scope["path"]) for method in c.methods or ()}
    return sorted(found | {"OPTIONS"} | ({"HEAD"} if "GET" in found else set()))
