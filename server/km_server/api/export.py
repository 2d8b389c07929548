"""`GET /api/v1/export`: everything that matches, oldest first, as one stream."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Annotated

from aiohttp import web
from msgspec import UNSET, Meta, UnsetType

from km_server.api.exports import ENDINGS, MEDIA_TYPES, Exporter, Format, make_exporter
from km_server.api.operations import Operation, Success
from km_server.api.parameters import Filters, Include, given, parse_filter, parse_parameters
from km_server.api.streams import Places, send
from km_server.config import read_version
from km_server.store.protocol import TenantStore
from km_server.store.values import Scope, StoredEvent

EXPORTS_MAX = 16
"""Each holds a portion of events, and a HAR its open requests."""

EXPORTS = web.AppKey("exports", Places)


class ExportParameters(Filters, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"from_": "from"}):
    """Of GET /api/v1/export."""

    format: Annotated[Format, Meta(description="JSON lines, CSV, or HAR 1.2.")] = Format.JSONL
    include: Include | UnsetType = UNSET


async def get_export(request: web.Request, store: TenantStore) -> web.StreamResponse:
    """Everything that matches, in constant memory."""
    asked = parse_parameters(request.query, ExportParameters)
    payloads = given(asked.include) is not None
    exporter = make_exporter(asked.format, store.tenant.usd_per_kb, read_version(), payloads=payloads)
    response = web.StreamResponse()
    response.content_type = MEDIA_TYPES[asked.format]
    response.charset = "utf-8"
    name = f"kilometers-export.{ENDINGS[asked.format]}"
    response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    with request.app[EXPORTS].take():
        portions = store.export(parse_filter(asked), payloads=payloads)
        return await send(request, response, write_pieces(portions, exporter))


async def write_pieces(portions: AsyncIterator[Sequence[StoredEvent]], exporter: Exporter) -> AsyncIterator[bytes]:
    """The export in pieces; the first has the first portion, so that a store that is away can still be said."""
    piece = exporter.begin()
    async for portion in portions:
        yield piece + await asyncio.to_thread(exporter.add, portion)
        piece = b""
    yield piece + exporter.end()


OPERATIONS = (
    Operation(
        "GET",
        "/api/v1/export",
        "export",
        "Everything that matches, oldest first, as a stream.",
        Success("The events.", media_types=tuple(dict.fromkeys(MEDIA_TYPES.values()))),
        Scope.READ,
        get_export,
        parameters=ExportParameters,
    ),
)
