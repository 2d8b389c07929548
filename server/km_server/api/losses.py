"""`GET /api/v1/losses`: what is not here and never will be, as far as anybody knows."""

import msgspec
from aiohttp import web

from km_server.api.operations import Operation, Success, answer
from km_server.api.parameters import NoParameters, parse_parameters
from km_server.api.times import render_time
from km_server.store.protocol import TenantStore
from km_server.store.values import Scope


class SenderItem(msgspec.Struct, frozen=True):
    """One sender: how many events it has had to give up since it was installed, and when it last said so."""

    sender: str
    lost_events: int
    noted_at: str


class Losses(msgspec.Struct, frozen=True):
    """
    `lost_events` is the sum over the senders. `refused`: events that this server refused, by reason: `ahead` of its
    clock, `expired` by the tenant's retention.
    """

    lost_events: int
    senders: list[SenderItem]
    refused: dict[str, int]


async def get_losses(request: web.Request, store: TenantStore) -> web.Response:
    """What was lost before it came, and what was refused."""
    parse_parameters(request.query, NoParameters)
    senders = [
        SenderItem(one.name, one.lost_events, render_time(one.noted_at_ns)) for one in await store.list_senders()
    ]
    refused = dict(await store.read_refusals())
    return answer(Losses(sum(one.lost_events for one in senders), senders, refused))


OPERATIONS = (
    Operation(
        "GET",
        "/api/v1/losses",
        "readLosses",
        "Events that senders gave up before they were delivered, and events that were refused.",
        Success("The counts.", Losses),
        Scope.READ,
        get_losses,
    ),
)
