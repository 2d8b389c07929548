"""Every operation of the server, in the order of the document; `/api/openapi.json` itself among them."""

from functools import cache

import msgspec
from aiohttp import web

from km_server.api import export, feed, health, live, losses, removal, statistics, whoami
from km_server.api.openapi import render_document
from km_server.api.operations import JSON, Operation, Success
from km_server.ingest import routes as ingest


async def get_document(request: web.Request) -> web.Response:
    """The OpenAPI document that describes every operation."""
    return web.Response(body=encoded_document(), content_type=JSON)


@cache
def encoded_document() -> bytes:
    """The document as JSON, rendered once for each process."""
    return msgspec.json.encode(render_document(OPERATIONS))


OPERATIONS = (
    *ingest.OPERATIONS,
    *feed.OPERATIONS,
    *statistics.OPERATIONS,
    *export.OPERATIONS,
    *live.OPERATIONS,
    *losses.OPERATIONS,
    *removal.OPERATIONS,
    *whoami.OPERATIONS,
    *health.OPERATIONS,
    Operation(
        "GET",
        "/api/openapi.json",
        "readDocument",
        "This document: OpenAPI 3.1.",
        Success("The document."),
        ask_freely=get_document,
    ),
)
