"""`GET /api/v1/activity`, `sessions`, `sessions/{session}`, `events/{id}`: what happened."""

from typing import Annotated

import msgspec
from aiohttp import web
from msgspec import Meta

from km_server.api.answers import (
    Item,
    Page,
    SessionsPage,
    Timeline,
    render_item,
    render_page,
    render_session,
    render_sessions,
)
from km_server.api.operations import Operation, PathParameter, Success, answer, not_found
from km_server.api.parameters import (
    NO_NUL,
    NUMBER_MAX_CHARS,
    ActivityParameters,
    SessionsParameters,
    TimelineParameters,
    bad_parameter,
    is_unicode,
    parse_activity,
    parse_sessions,
    parse_timeline,
)
from km_server.store.protocol import TenantStore
from km_server.store.values import Scope

EventId = Annotated[int, Meta(ge=1, le=2**63 - 1)]
SessionName = Annotated[str, Meta(min_length=1, max_length=128, pattern=NO_NUL)]

SESSION = PathParameter("session", msgspec.json.schema(SessionName), "The session's name.")
EVENT = PathParameter("id", msgspec.json.schema(EventId), "The event's `id` in the feed.", "[0-9]+")


async def get_activity(request: web.Request, store: TenantStore) -> web.Response:
    """What happened."""
    query = parse_activity(request.query)
    page = await store.read_activity(query)
    return answer(render_page(page, store.tenant.usd_per_kb, payloads=query.payloads))


async def get_sessions(request: web.Request, store: TenantStore) -> web.Response:
    """Which sessions there were."""
    page = await store.list_sessions(parse_sessions(request.query))
    return answer(render_sessions(page, store.tenant.usd_per_kb))


async def get_session(request: web.Request, store: TenantStore) -> web.Response:
    """One session and its events."""
    name = read_session(request)
    query = parse_timeline(request.query, name)
    found = await store.find_session(name)
    if found is None:
        raise not_found("session")
    rate = store.tenant.usd_per_kb
    page = render_page(await store.read_activity(query), rate, payloads=query.payloads)
    return answer(Timeline(render_session(found, rate), page.items, page.next_cursor))


async def get_event(request: web.Request, store: TenantStore) -> web.Response:
    """One event with its payload."""
    text = request.match_info["id"]
    if len(text) > NUMBER_MAX_CHARS or not 0 < int(text) < 2**63:
        raise bad_parameter("id", "must be a whole number: 1 to 2^63-1")
    found = await store.find_event(int(text))
    if found is None:
        raise not_found("event")
    return answer(render_item(found, store.tenant.usd_per_kb, payloads=True))


def read_session(request: web.Request) -> str:
    """The session that the path names. Raises ApiError 404: no session can have that name."""
    name = request.match_info["session"]
    if not is_unicode(name) or "\0" in name:
        raise not_found("session")
    return name


OPERATIONS = (
    Operation(
        "GET",
        "/api/v1/activity",
        "readActivity",
        "What happened, a page at a time.",
        Success("A page of events.", Page),
        Scope.READ,
        get_activity,
        parameters=ActivityParameters,
    ),
    Operation(
        "GET",
        "/api/v1/sessions",
        "listSessions",
        "Sessions, newest start first.",
        Success("A page of sessions.", SessionsPage),
        Scope.READ,
        get_sessions,
        parameters=SessionsParameters,
    ),
    Operation(
        "GET",
        "/api/v1/sessions/{session}",
        "readSession",
        "One session and its events, oldest first.",
        Success("The session and a page of its events.", Timeline),
        Scope.READ,
        get_session,
        parameters=TimelineParameters,
        in_path=(SESSION,),
        errors=(404,),
    ),
    Operation(
        "GET",
        "/api/v1/events/{id}",
        "readEvent",
        "One event with its payload.",
        Success("The event.", Item),
        Scope.READ,
        get_event,
        in_path=(EVENT,),
        errors=(404,),
    ),
)
