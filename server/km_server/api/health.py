"""
For whatever starts and watches the server. No key is needed, nothing of a tenant is told.

live: the process answers. ready: the store does, for a question and for a (vain) write.
"""

import asyncio

import msgspec
from aiohttp import web

from km_server.api.operations import Operation, Success, answer
from km_server.config import read_version
from km_server.context import DOOR, METRICS, STORE
from km_server.errors import ApiError, StoreError
from km_server.metrics import CONTENT_TYPE

READY_TIMEOUT_S = 2.0
"""Probes usually give up after a few seconds: answer before."""


class LiveAnswer(msgspec.Struct, frozen=True):
    """The process answers."""

    status: str
    version: str


class ReadyAnswer(msgspec.Struct, frozen=True):
    """The store can be read and written. `problem`: what an operator should look at all the same."""

    status: str
    store: str
    problem: str


async def get_live(request: web.Request) -> web.Response:
    """Says that the loop runs."""
    return answer(LiveAnswer("ok", read_version()))


async def get_ready(request: web.Request) -> web.Response:
    """Says whether requests can be served. Raises ApiError 503."""
    if request.app[DOOR].draining.is_set():
        raise not_ready("the server is ending")
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            await request.app[STORE].check()
            facts = await request.app[STORE].facts()
    except TimeoutError:
        raise not_ready("the store did not answer in time") from None
    except StoreError as exc:
        raise not_ready(str(exc)) from None
    return answer(ReadyAnswer("ok", facts.kind, facts.problem))


def not_ready(message: str) -> ApiError:
    """The answer while the store is away."""
    return ApiError(503, "not_ready", message, hint="see the server's log", headers={"Retry-After": "5"})


async def get_metrics(request: web.Request) -> web.Response:
    """The numbers, for Prometheus."""
    return web.Response(body=request.app[METRICS].render(), headers={"Content-Type": CONTENT_TYPE})


OPERATIONS = (
    Operation(
        "GET",
        "/health/live",
        "isLive",
        "Whether the process answers.",
        Success("It does.", LiveAnswer),
        ask_freely=get_live,
    ),
    Operation(
        "GET",
        "/health/ready",
        "isReady",
        "Whether the store can be read and written.",
        Success("It can.", ReadyAnswer),
        ask_freely=get_ready,
        errors=(503,),
    ),
    Operation(
        "GET",
        "/metrics",
        "readMetrics",
        "The numbers, for Prometheus.",
        Success("The numbers.", media_types=("text/plain",)),
        ask_freely=get_metrics,
    ),
)
