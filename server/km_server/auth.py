"""
API keys: made, recognised, and the only way to a tenant's part of the store.

A key is `km_` and 256 random bits. Stored is its SHA-256: a fast hash is enough for a secret that nobody can
guess. `guarded` hands a handler the store of the key's tenant, so a handler without a key has no store.
"""

import hashlib
import hmac
from collections.abc import Awaitable, Callable

from aiohttp import web

from km_server.context import STORE
from km_server.errors import ApiError
from km_server.store.protocol import ApiKey, Scope, Store, TenantStore

KEY_PREFIX = "km_"
KEY_BYTES = 32
KEY_MAX_CHARS = 256
"""Nothing longer is worth hashing."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
TenantHandler = Callable[[web.Request, TenantStore], Awaitable[web.StreamResponse]]


def make_key(secret: str) -> str:
    """The text of a key. Takes `secrets.token_urlsafe(KEY_BYTES)`."""
    return KEY_PREFIX + secret


def digest_key(key: str) -> bytes:
    """What is stored of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def parse_bearer(header: str | None) -> str:
    """The key in an Authorization header. Raises ApiError 401."""
    if header is None:
        raise unauthorized("missing_key", "this needs an API key")
    scheme, _, key = header.partition(" ")
    key = key.strip()
    if scheme.lower() != "bearer" or not key.startswith(KEY_PREFIX) or len(key) > KEY_MAX_CHARS:
        raise unauthorized("bad_key", "this is no API key of a km-server")
    return key


async def authenticate(store: Store, header: str | None, scope: Scope) -> ApiKey:
    """The live key that a request shows, if it may do *scope*. Raises ApiError: 401, 403."""
    digest = digest_key(parse_bearer(header))
    key = await store.find_key(digest)
    if key is None or not hmac.compare_digest(key.digest, digest):
        raise unauthorized("bad_key", "this API key is unknown or revoked")
    if scope not in key.scopes:
        raise ApiError(
            403,
            "wrong_scope",
            f"this API key lacks the scope '{scope}'",
            hint=f"make one: km-server keys create --tenant {key.tenant.name} --scope {scope}",
        )
    return key


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
    """*handler* behind a key with *scope*; it gets the store of the key's tenant."""

    async def guard(request: web.Request) -> web.StreamResponse:
        store = request.app[STORE]
        key = await authenticate(store, request.headers.get("Authorization"), scope)
        return await handler(request, store.bind(key.tenant))

    return guard
