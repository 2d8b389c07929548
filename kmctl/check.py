"""
Does a km-server answer at this URL, and does it take events with this key? One POST of an empty batch.

Deciding what the answer means is pure (`judge_answer`, `judge_failure`); only `check_server` touches the network,
and only it imports trio and httpx, which cost most of a second to load together.
"""

import errno
import socket
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from kmd.errors import DeliveryError, ServerUnreachable, explain_certificate, walk_causes
from kmd.trust import UNUSABLE, explain_opening, open_trust
from kmd.wire import Batch, Receipt

if TYPE_CHECKING:
    import httpx

PATH = "/api/v1/events/batch"
CHECK_TIMEOUT_S = 10.0
"""For the whole exchange: name, connection, TLS, answer. A person waits."""
BODY_MAX_BYTES = 1 << 16
"""The receipt for an empty batch has about a hundred bytes."""
LATER = "try again, or write the file all the same with --no-check"
WRONG_URL = "give the root URL of a km-server, for example https://km.example.com"


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back: the status, where a redirect points, at most BODY_MAX_BYTES of the body, the server's time."""

    status: int
    location: str
    body: bytes
    date: str = ""


def check_server(url: str, key: str, batch_id: str, ca_file: str = "") -> None:
    """
    Send an empty batch named *batch_id* to *url*. Returns when its receipt comes back.

    Raises: DeliveryError (the server refuses, or is no km-server) or ServerUnreachable, with what to do.
    """
    reply = ask_server(url, PATH, key, msgspec.json.encode(Batch(batch_id=batch_id)), ca_file)
    if problem := judge_answer(reply, batch_id, url):
        raise problem


def ask_server(url: str, path: str, key: str, body: bytes | None = None, ca_file: str = "") -> Reply:
    """
    The answer to a GET of *path*, or, with a *body*, to a POST. ca_file: see kmd.trust.

    Raises ServerUnreachable: there is no whole answer within CHECK_TIMEOUT_S.
    """
    import httpx
    import trio

    async def ask() -> Reply:
        with trio.fail_after(CHECK_TIMEOUT_S):
            return await send(url + path, key, body, ca_file)

    try:
        return trio.run(ask)
    except trio.TooSlowError as exc:
        raise ServerUnreachable(f"{url}: no answer within {CHECK_TIMEOUT_S:.0f} s", hint=LATER) from exc
    except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as exc:
        raise judge_failure(exc, url) from exc


async def send(address: str, key: str, body: bytes | None, ca_file: str) -> Reply:
    """
    One request without redirects and without content codings, so that BODY_MAX_BYTES bounds it.

    Raises ServerUnreachable: what is said of certificates or proxies cannot be used. Raises httpx's errors and OSError.
    """
    import httpx

    headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    try:
        opened = httpx.AsyncClient(timeout=CHECK_TIMEOUT_S, verify=open_trust(ca_file), follow_redirects=False)
    except (*UNUSABLE, httpx.InvalidURL) as exc:
        problem = explain_opening(exc, ca_file)
        what = "TLS: " if isinstance(exc, OSError) else ""
        raise ServerUnreachable(f"{address}: {what}{problem}", hint=problem.hint) from None
    async with (
        opened as client,
        client.stream("GET" if body is None else "POST", address, content=body, headers=headers) as response,
    ):
        told = response.headers
        return Reply(response.status_code, told.get("Location", ""), await read_body(response), told.get("Date", ""))


async def read_body(response: "httpx.Response") -> bytes:
    """
    The first BODY_MAX_BYTES of the body, as they came.

    Ended by a cancellation: it unwinds httpx's nested generators in order, which leaving the loop would not.
    """
    import trio

    body = bytearray()
    with trio.CancelScope() as enough:
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) >= BODY_MAX_BYTES:
                enough.cancel()
    return bytes(body[:BODY_MAX_BYTES])


def judge_answer(reply: Reply, batch_id: str, url: str) -> DeliveryError | None:
    """What is wrong with an answer, None when it is the receipt for *batch_id*."""
    status = reply.status
    if 200 <= status < 300:
        if is_receipt(reply.body, batch_id):
            return None
        return DeliveryError(f"{url}: something answers there, but it is no km-server", hint=WRONG_URL)
    if status == 401:
        hint = "check the key; 'km-server keys create --tenant NAME --scope ingest' on the server makes a new one"
        return DeliveryError(f"{url}: the server refused the key (401)", hint=hint)
    if status == 403:
        hint = "ask for a key with the scope 'ingest'"
        return DeliveryError(f"{url}: the key may not send events (403)", hint=hint)
    if 300 <= status < 400:
        where = f" to {reply.location}" if reply.location else ""
        hint = "redirects are never followed: give the final URL"
        return DeliveryError(f"{url}: redirects{where} ({status})", hint=hint)
    if status in (408, 425, 429) or status >= 500:
        return DeliveryError(f"{url}: the server is not ready ({status})", hint=LATER)
    return DeliveryError(f"{url}: there is no km-server ({status})", hint=WRONG_URL)


def is_receipt(body: bytes, batch_id: str) -> bool:
    """Whether *body* is the receipt of exactly this batch."""
    try:
        return msgspec.json.decode(body, type=Receipt).batch_id == batch_id
    except (ValueError, RecursionError):  # msgspec's errors and bad UTF-8 are ValueErrors
        return False


def judge_failure(exc: BaseException, url: str) -> ServerUnreachable:
    """Why there was no answer at all, from the errors that led to *exc*."""
    for cause in walk_causes(exc):
        match cause:
            case ssl.SSLCertVerificationError():
                problem, hint = explain_certificate(cause.verify_code, cause.verify_message)
                return ServerUnreachable(f"{url}: TLS: {problem}", hint=hint)
            case ssl.SSLError():
                hint = "does the server speak TLS on this port? perhaps http:// is meant"
                return ServerUnreachable(f"{url}: TLS failed ({getattr(cause, 'reason', None) or 'no TLS'})", hint=hint)
            case socket.gaierror():
                return ServerUnreachable(f"{url}: no such host", hint="check the name, or the network")
            case UnicodeError():
                return ServerUnreachable(f"{url}: no such host", hint="check the name")
            case OSError(errno=errno.ECONNREFUSED):
                hint = "is km-server running there? 'km-server serve' starts one ('--host 0.0.0.0' for other machines)"
                return ServerUnreachable(f"{url}: connection refused", hint=hint)
    return ServerUnreachable(f"{url}: the connection failed ({type(exc).__name__})", hint=LATER)
