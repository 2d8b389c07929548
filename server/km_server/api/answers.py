"""Events and sessions as the API shows them. Pure. The structs are the documentation of the answers."""

import msgspec
from msgspec import UNSET, UnsetType

from km_server.api.cursor import render_cursor
from km_server.api.times import render_maybe, render_time
from km_server.store.rollup import billed_bytes
from km_server.store.values import ActivityPage, SessionPage, StoredEvent, StoredSession
from kmd.insight.cost import cost_usd
from kmd.mcp.names import Kind, Outcome, Stream
from kmd.wire import payload_fields

NS_PER_MS = 1e6


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """
    One event. `payload` or `payload_base64` is there when asked for; null when not kept.

    `extra` has the fields that the sender gave and this version does not know; it is there when there are any.
    """

    id: int
    session: str
    server: str
    stream: Stream
    offset: int
    index: int
    at: str
    at_ns: int
    kind: Kind
    method: str | None
    target: str | None
    rpc_id: str | None
    size_bytes: int
    duration_ms: float | None
    took_ns: int | None
    outcome: Outcome | None
    error_code: int | None
    risk: int | None
    cost_usd: float
    truncated: bool
    sha256: str | None
    extra: msgspec.Raw | UnsetType = UNSET
    payload: str | UnsetType | None = UNSET
    payload_base64: str | UnsetType | None = UNSET


class Page(msgspec.Struct, frozen=True):
    """`next_cursor` is null at the end."""

    items: list[Item]
    next_cursor: str | None


class SessionItem(msgspec.Struct, frozen=True, kw_only=True):
    """One run of one wrapped server; `first_at` and `last_at` are of its stored events, null while it has none."""

    session: str
    server: str
    command: str
    host: str
    closed_first: str
    started_at: str
    started_at_ns: int
    ended_at: str | None
    ended_at_ns: int | None
    first_at: str | None
    last_at: str | None
    events: int
    messages: int
    calls: int
    errors: int
    tool_errors: int
    bytes_to_server: int
    bytes_to_client: int
    cost_usd: float


class SessionsPage(msgspec.Struct, frozen=True):
    """`next_cursor` is null at the end."""

    items: list[SessionItem]
    next_cursor: str | None


class Timeline(msgspec.Struct, frozen=True):
    """A session and its events, oldest first."""

    session: SessionItem
    items: list[Item]
    next_cursor: str | None


class RemovedAnswer(msgspec.Struct, frozen=True):
    """What a deletion took away."""

    events: int
    sessions: int


def render_page(page: ActivityPage, usd_per_kb: float, *, payloads: bool) -> Page:
    """A page of the feed."""
    items = [render_item(stored, usd_per_kb, payloads=payloads) for stored in page.events]
    return Page(items, None if page.next is None else render_cursor(page.next))


def render_item(stored: StoredEvent, usd_per_kb: float, *, payloads: bool) -> Item:
    """One event. What it costs is its share of the bytes that the statistics count."""
    event = stored.event
    text, encoded = payload_fields(stored.payload) if payloads else (UNSET, UNSET)
    return Item(
        id=stored.id,
        session=event.session,
        server=stored.server,
        stream=event.stream,
        offset=event.offset,
        index=event.index,
        at=render_time(event.at_ns),
        at_ns=event.at_ns,
        kind=event.kind,
        method=event.method,
        target=event.target,
        rpc_id=event.rpc_id,
        size_bytes=event.size_bytes,
        duration_ms=None if event.took_ns is None else event.took_ns / NS_PER_MS,
        took_ns=event.took_ns,
        outcome=event.outcome,
        error_code=event.error_code,
        risk=stored.risk,
        cost_usd=cost_usd(billed_bytes(event), usd_per_kb),
        truncated=event.truncated,
        sha256=event.sha256,
        extra=UNSET if stored.extra is None else msgspec.Raw(stored.extra),
        payload=text,
        payload_base64=encoded,
    )


def render_sessions(page: SessionPage, usd_per_kb: float) -> SessionsPage:
    """A page of the sessions."""
    items = [render_session(stored, usd_per_kb) for stored in page.sessions]
    return SessionsPage(items, None if page.next is None else render_cursor(page.next))


def render_session(stored: StoredSession, usd_per_kb: float) -> SessionItem:
    """One session."""
    session, figures = stored.session, stored.figures
    return SessionItem(
        session=session.session,
        server=session.name,
        command=session.command,
        host=session.host,
        closed_first=session.closed_first,
        started_at=render_time(session.started_at_ns),
        started_at_ns=session.started_at_ns,
        ended_at=render_maybe(session.ended_at_ns),
        ended_at_ns=session.ended_at_ns,
        first_at=render_maybe(stored.first_at_ns),
        last_at=render_maybe(stored.last_at_ns),
        events=figures.events,
        messages=figures.messages,
        calls=figures.calls,
        errors=figures.errors,
        tool_errors=figures.tool_errors,
        bytes_to_server=figures.bytes_to_server,
        bytes_to_client=figures.bytes_to_client,
        cost_usd=cost_usd(figures.bytes_to_server + figures.bytes_to_client, usd_per_kb),
    )
