"""The only `import httpx`: one bounded POST, and what came back."""

import errno
import gzip
import os
import socket
import ssl
from types import TracebackType
from typing import Self

import httpx
import trio
import zstandard

from kmd.errors import ServerUnreachable, explain_certificate, walk_causes
from kmd.sync.answer import Reply
from kmd.trust import UNUSABLE, explain_opening, open_trust

PATH = "/api/v1/events/batch"
CODECS = ("zstd", "gzip", "identity")
"""In order of preference; a 415 moves on to the next."""
CONNECT_TIMEOUT_S = 5.0
BODY_MAX_BYTES = 1 << 20
"""A receipt for a full batch is a few tens of KiB; what is longer is none."""
ZSTD_LEVEL = 3
NETWORK_HINT = "check the URL's host and port, and the network"
NO_TLS_HINT = "does the server speak TLS on this port? perhaps http:// is meant"


def encode(body: bytes, codec: str) -> bytes:
    """*body* in the Content-Encoding *codec*."""
    match codec:
        case "zstd":
            return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(body)
        case "gzip":
            return gzip.compress(body, compresslevel=6, mtime=0)
        case _:
            return body


class Transport:
    """
    A client for one destination. A context manager; the key goes to this URL only, redirects are not followed.

    What it trusts (kmd.trust) is read when it first connects, and anew after TLS has failed: a certificate that was
    added there is known at the next try.
    """

    def __init__(self, url: str, key: str, user_agent: str, ca_file: str = "") -> None:
        self._url = url + PATH
        self._ca_file = ca_file
        # No encoding is taken back: a receipt is small, and nothing that inflates or is damaged need be dealt with.
        self._headers = {"Content-Type": "application/json", "User-Agent": user_agent, "Accept-Encoding": "identity"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._client: httpx.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._let_go()

    async def _let_go(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with trio.CancelScope(shield=True):
                await client.aclose()

    def _open(self) -> httpx.AsyncClient:
        """The client. Raises ServerUnreachable: what is said of certificates or proxies cannot be used."""
        if self._client is None:
            limits = httpx.Limits(max_connections=1, keepalive_expiry=60.0)
            try:
                verify = open_trust(self._ca_file)
                self._client = httpx.AsyncClient(
                    headers=self._headers, verify=verify, follow_redirects=False, limits=limits
                )
            except (*UNUSABLE, httpx.InvalidURL) as exc:
                raise explain_opening(exc, self._ca_file) from None
        return self._client

    async def post(self, body: bytes, codec: str, timeout_s: float) -> Reply:
        """
        POST an encoded batch. Raises ServerUnreachable when there is no whole answer within *timeout_s*.

        httpx bounds each socket operation; the whole is bounded here, or a dripping body would never end.
        """
        client = self._open()
        try:
            with trio.fail_after(timeout_s):
                return await self._post(client, body, codec, timeout_s)
        except trio.TooSlowError as exc:
            raise ServerUnreachable(f"no answer within {timeout_s:.0f} s", hint="is the server well?") from exc
        except httpx.ConnectError as exc:
            if any(isinstance(cause, ssl.SSLError) for cause in walk_causes(exc)):
                await self._let_go()
            raise explain_connect_error(exc) from exc
        except httpx.ConnectTimeout as exc:
            raise ServerUnreachable(f"no connection within {CONNECT_TIMEOUT_S:.0f} s", hint=NETWORK_HINT) from exc
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as exc:
            hint = "is the server well, or a proxy before it?"
            raise ServerUnreachable(f"the connection failed ({type(exc).__name__})", hint=hint) from exc

    async def _post(self, client: httpx.AsyncClient, body: bytes, codec: str, timeout_s: float) -> Reply:
        timeout = httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S)
        headers = {} if codec == "identity" else {"Content-Encoding": codec}
        request = client.build_request("POST", self._url, content=body, headers=headers, timeout=timeout)
        response = await client.send(request, stream=True)
        try:
            answer = await read_body(response)
        finally:
            client.cookies.clear()  # kept, they would grow with each answer, and go into each request
            await response.aclose()
        return Reply(
            status=response.status_code,
            retry_after=response.headers.get("Retry-After", ""),
            body=answer,
        )


async def read_body(response: httpx.Response) -> bytes:
    """
    The first BODY_MAX_BYTES of the body.

    A longer one is ended by a cancellation, which unwinds httpx's nested generators in order; leaving the loop
    would leave them to the garbage collector.
    """
    body = bytearray()
    with trio.CancelScope() as enough:
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) >= BODY_MAX_BYTES:
                enough.cancel()
    return bytes(body[:BODY_MAX_BYTES])


def explain_connect_error(exc: httpx.ConnectError) -> ServerUnreachable:
    """One sentence for a connection that was not made, with what TLS or the resolver had to say, and what to do."""
    for cause in walk_causes(exc):
        match cause:
            case ssl.SSLCertVerificationError():
                problem, hint = explain_certificate(cause.verify_code, cause.verify_message)
                return ServerUnreachable(problem, hint=hint)
            case ssl.SSLError():
                return ServerUnreachable(f"TLS failed ({cause.reason or 'no TLS'})", hint=NO_TLS_HINT)
            case socket.gaierror():
                return ServerUnreachable("the server's name does not resolve", hint="check the name, or the network")
            case OSError(errno=errno.ECONNREFUSED):
                return ServerUnreachable("the connection is refused", hint="is km-server running there?")
            case OSError(errno=int(number)):
                return ServerUnreachable(f"no connection: {os.strerror(number)}", hint=NETWORK_HINT)
    return ServerUnreachable(f"no connection: {str(exc) or type(exc.__cause__ or exc).__name__}", hint=NETWORK_HINT)
