"""`GET /api/v1/whoami`: whose the key is and what it may do. Any live key may ask; `kmctl login` does."""

import msgspec
from aiohttp import web

from km_server.api.operations import Operation, Success, answer
from km_server.auth import charge, recognise
from km_server.config import read_version
from km_server.context import STORE


class Identity(msgspec.Struct, frozen=True):
    """The key's tenant and scopes, when it expires (`null`: never), and the server's version."""

    tenant: str
    scopes: tuple[str, ...]
    expires_at_ns: int | None
    version: str


async def get_whoami(request: web.Request) -> web.Response:
    """The identity behind the key that the request shows. Raises ApiError: 401, 429."""
    key = await recognise(request.app[STORE], request.headers.get("Authorization"))
    charge(request, key)
    identity = Identity(
        key.tenant.name, tuple(sorted(scope.value for scope in key.scopes)), key.expires_at_ns, read_version()
    )
    return answer(identity)


OPERATIONS = (
    Operation(
        "GET",
        "/api/v1/whoami",
        "readIdentity",
        "Whose the key is, and what it may do.",
        Success("The identity behind the key.", Identity),
        ask_freely=get_whoami,
        any_key=True,
        errors=(401, 429, 503),
    ),
)
