"""
API keys: recognised, and the only way to a tenant's part of the store.

`guarded` hands a handler the store of the key's tenant, so a handler without a key has no store.
"""

import hmac
import time
from collections.abc import Awaitable, Callable
from urllib.parse import unquote_to_bytes

from aiohttp import web

from km_server.context import KEY, RATE_HEADERS, REQUEST_RATE, STORE
from km_server.errors import ApiError
from km_server.key_text import KEY_MAX_CHARS, KEY_PREFIX, digest_key
from km_server.limits import too_many
from km_server.store.protocol import Store, TenantStore
from km_server.store.values import ApiKey, Scope

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
TenantHandler = Callable[[web.Request, TenantStore], Awaitable[web.StreamResponse]]


def parse_bearer(header: str | None) -> str:
    """The key in an Authorization header. Raises ApiError 401."""
    if header is None:
        raise unauthorized("missing_key", "this needs an API key")
    scheme, _, key = header.partition(" ")
    key = key.strip()
    if scheme.lower() != "bearer" or not key.startswith(KEY_PREFIX) or len(key) > KEY_MAX_CHARS:
        raise unauthorized("bad_key", "this is no API key of a km-server")
    return key


async def recognise(store: Store, header: str | None) -> ApiKey:
    """The live key that a request shows. Raises ApiError 401."""
    digest = digest_key(parse_bearer(header))
    key = await store.find_key(digest)
    if key is None or not hmac.compare_digest(key.digest, digest):
        raise unauthorized("bad_key", "this API key is unknown or revoked")
    return key


def require_scope(key: ApiKey, scope: Scope) -> None:
    """Raises ApiError 403 unless the key may do *scope*."""
    if scope not in key.scopes:
        raise ApiError(
            403,
            "wrong_scope",
            f"this API key lacks the scope '{scope}'",
            hint=f"make one: km-server keys create --tenant {key.tenant.name} --scope {scope}",
        )


def unauthorized(code: str, message: str) -> ApiError:
    """A 401 with the challenge that RFC 9110 section 11.6.1 asks for."""
    return ApiError(
        401,
        code,
        message,
        hint="send Authorization: Bearer km_…; make a key with: km-server keys create",
        headers={"WWW-Authenticate": "Bearer"},
    )


def guarded(scope: Scope, handler: TenantHandler) -> Handler:
    """*handler* behind a key with *scope* and its rate; it gets the store of the key's tenant."""

    async def guard(request: web.Request) -> web.StreamResponse:
        store = request.app[STORE]
        key = await recognise(store, request.headers.get("Authorization"))
        request[KEY] = key
        charge(request, key)  # before its scope is looked at: asking for what it may not do costs the same
        require_scope(key, scope)
        refuse_undecodable(request)
        return await handler(request, store.bind(key.tenant))

    return guard


def refuse_undecodable(request: web.Request) -> None:
    """Raises ApiError 400, 404: query or path is not UTF-8. The URL library would put U+FFFD or the escapes there."""
    url = request.rel_url
    if not is_utf8(url.raw_query_string):
        raise ApiError(400, "bad_parameter", "the query is not UTF-8", hint="encode each parameter as UTF-8")
    if not is_utf8(url.raw_path):
        raise ApiError(404, "not_found", "there is no such path", hint="encode the path as UTF-8")


def is_utf8(escaped: str) -> bool:
    """Whether a part of a URL stands for text, without lone surrogates."""
    try:
        unquote_to_bytes(escaped).decode("utf-8")
    except UnicodeError:
        return False
    return True


def charge(request: web.Request, key: ApiKey) -> None:
    """Count the request against its key's rate. Raises ApiError 429."""
    grant = request.app[REQUEST_RATE].ask(key.id, time.monotonic())
    if grant is None:
        return
    request[RATE_HEADERS] = grant.headers
    if grant.wait_s:
        raise too_many("requests", grant)
