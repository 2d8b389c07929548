"""
What can be asked, as one table: the routes and /api/openapi.json are both made from `Operation`s.

An operation without a scope needs no key. A route that is not an operation does not exist.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from aiohttp import web

from km_server.api.parameters import NoParameters
from km_server.auth import Handler, TenantHandler, guarded
from km_server.errors import ApiError
from km_server.store.values import Scope

JSON = "application/json"
KEYED = (400, 401, 403, 429, 431, 503)
"""What every operation behind a key may answer besides success."""

TAKES_A_BODY = (408, 413, 415)


@dataclass(frozen=True, slots=True)
class PathParameter:
    """A part of the path: its name, JSON schema and meaning. What does not match `pattern` is no such path."""

    name: str
    schema: dict[str, object]
    help: str
    pattern: str = "[^/]+"


@dataclass(frozen=True, slots=True)
class Success:
    """What a success looks like: a struct as JSON, or (`body` None) text of some media type."""

    help: str
    body: type[msgspec.Struct] | None = None
    media_types: Sequence[str] = (JSON,)


@dataclass(frozen=True, slots=True)
class Operation:
    """
    One thing to ask. `errors` are the statuses besides KEYED, or all of them where there is no scope. `refusal` is the
    body of a 422. `any_key`: a live key is needed, with whatever scopes.
    """

    method: str
    path: str
    name: str
    summary: str
    success: Success
    scope: Scope | None = None
    ask: TenantHandler | None = None
    ask_freely: Handler | None = None
    parameters: type[msgspec.Struct] = NoParameters
    in_path: Sequence[PathParameter] = ()
    body: type[msgspec.Struct] | None = None
    refusal: type[msgspec.Struct] | None = None
    errors: Sequence[int] = ()
    any_key: bool = False

    @property
    def statuses(self) -> list[int]:
        """Every status but success."""
        keyed = KEYED if self.scope else ()
        return sorted({*keyed, *self.errors, *(TAKES_A_BODY if self.body else ())})

    @property
    def route(self) -> str:
        """The path with the patterns of its parts."""
        route = self.path
        for part in self.in_path:
            route = route.replace(f"{{{part.name}}}", f"{{{part.name}:{part.pattern}}}")
        return route

    def handler(self) -> Handler:
        """What answers it."""
        if self.scope is not None and self.ask is not None:
            return guarded(self.scope, self.ask)
        if self.ask_freely is None:
            raise ValueError(f"{self.name} has no handler")
        return self.ask_freely


def make_routes(operations: Sequence[Operation]) -> list[web.RouteDef]:
    """The routes of a table. Probes may use HEAD; nothing else answers it."""
    return [
        web.get(one.route, one.handler(), allow_head=one.scope is None and not one.any_key)
        if one.method == "GET"
        else web.route(one.method, one.route, one.handler())
        for one in operations
    ]


def answer(body: msgspec.Struct) -> web.Response:
    """A success."""
    return web.Response(body=msgspec.json.encode(body), content_type=JSON)


def not_found(what: str) -> ApiError:
    """There is no such thing, or it belongs to somebody else: nobody is told which."""
    return ApiError(404, "not_found", f"there is no such {what}", hint="it may have been removed, or expired")
