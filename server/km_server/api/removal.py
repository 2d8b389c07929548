"""`DELETE /api/v1/sessions/{session}` and `DELETE /api/v1/events`: take away for good."""

import structlog
from aiohttp import web

from km_server.api.answers import RemovedAnswer
from km_server.api.feed import SESSION, read_session
from km_server.api.operations import Operation, Success, answer, not_found
from km_server.api.parameters import Spanned, parse_parameters, parse_range
from km_server.context import KEY
from km_server.errors import ApiError
from km_server.store.protocol import TenantStore
from km_server.store.values import Removed, Scope

log = structlog.get_logger("km_server")


async def delete_session(request: web.Request, store: TenantStore) -> web.Response:
    """Remove a session with all its events."""
    removed = await store.delete_session(read_session(request))
    if removed.sessions == 0:
        raise not_found("session")
    return report(request, removed)


async def delete_events(request: web.Request, store: TenantStore) -> web.Response:
    """Remove the events of a span. An open span on both ends would be everything: that must be said."""
    span = parse_range(parse_parameters(request.query, Spanned))
    if span.from_ns is None and span.to_ns is None:
        raise ApiError(
            400,
            "bad_parameter",
            "'from' or 'to' is needed",
            hint="to remove everything say from=0",
        )
    return report(request, await store.delete_span(span.from_ns, span.to_ns))


def report(request: web.Request, removed: Removed) -> web.Response:
    """The answer; the log keeps which key did it."""
    key = request[KEY]
    log.info("removed", tenant=key.tenant.name, key=key.id, events=removed.events, sessions=removed.sessions)
    return answer(RemovedAnswer(removed.events, removed.sessions))


OPERATIONS = (
    Operation(
        "DELETE",
        "/api/v1/sessions/{session}",
        "deleteSession",
        "Remove a session with all its events, for good; the statistics no longer count them.",
        Success("What was removed.", RemovedAnswer),
        Scope.ADMIN,
        delete_session,
        in_path=(SESSION,),
        errors=(404,),
    ),
    Operation(
        "DELETE",
        "/api/v1/events",
        "deleteEvents",
        "Remove the events of a span, for good; the statistics no longer count them.",
        Success("What was removed.", RemovedAnswer),
        Scope.ADMIN,
        delete_events,
        parameters=Spanned,
    ),
)
