"""What the reading routes answer: pages and statistics as JSON structs. Pure. Unknown fields may appear later."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TypedDict

import msgspec
from msgspec import UNSET, UnsetType

from km_server.api.parameters import render_cursor
from km_server.store.histogram import quantile_ns
from km_server.store.rollup import MINUTE_NS, Figures, billed_bytes
from km_server.store.values import ActivityPage, Span, Stats, StoredEvent
from kmd.insight.cost import cost_usd
from kmd.wire import payload_fields

NS_PER_MS = 1e6
NS_PER_S = 10**9


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One event of the feed. `payload` or `payload_base64` is there when asked for; null when not kept."""

    id: int
    session: str
    server: str
    stream: str
    offset: int
    index: int
    at: str
    at_ns: int
    kind: str
    method: str | None
    target: str | None
    rpc_id: str | None
    size_bytes: int
    duration_ms: float | None
    took_ns: int | None
    outcome: str | None
    error_code: int | None
    cost_usd: float
    truncated: bool
    sha256: str | None
    payload: str | UnsetType | None = UNSET
    payload_base64: str | UnsetType | None = UNSET


class Page(msgspec.Struct, frozen=True):
    """`next_cursor` is null at the end of the feed."""

    items: list[Item]
    next_cursor: str | None


class FigureFields(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of a group or of everything. The percentiles are null where nothing was answered."""

    events: int
    messages: int
    calls: int
    errors: int
    tool_errors: int
    bytes_to_server: int
    bytes_to_client: int
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    cost_usd: float


class FigureValues(TypedDict):
    """FigureFields as keyword arguments."""

    events: int
    messages: int
    calls: int
    errors: int
    tool_errors: int
    bytes_to_server: int
    bytes_to_client: int
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    cost_usd: float


class GroupAnswer(FigureFields, frozen=True, kw_only=True):
    """One server, method and target."""

    server: str
    method: str | None
    target: str | None


class TotalsAnswer(FigureFields, frozen=True, kw_only=True):
    """Everything in the span."""

    sessions: int


class StatsAnswer(msgspec.Struct, frozen=True, kw_only=True, rename={"from_": "from"}):
    """`from` and `to` are the whole minutes that were counted; null is open."""

    from_: str | None
    to: str | None
    totals: TotalsAnswer
    groups: list[GroupAnswer]
    groups_omitted: int


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
        cost_usd=cost_usd(billed_bytes(event), usd_per_kb),
        truncated=event.truncated,
        sha256=event.sha256,
        payload=text,
        payload_base64=encoded,
    )


def render_time(at_ns: int) -> str:
    """RFC 3339 in UTC with nine digits of a second."""
    seconds, fraction_ns = divmod(at_ns, NS_PER_S)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{fraction_ns:09d}Z"


def render_stats(stats: Stats, span: Span, usd_per_kb: float) -> StatsAnswer:
    """The statistics of a span."""
    groups = [
        GroupAnswer(
            server=group.series.server or "",
            method=group.series.method or None,
            target=group.series.target or None,
            **figure_fields(group.figures, group.latencies, usd_per_kb),
        )
        for group in stats.groups
    ]
    totals = TotalsAnswer(sessions=stats.sessions, **figure_fields(stats.totals, stats.latencies, usd_per_kb))
    return StatsAnswer(
        from_=render_minute(span.first_minute),
        to=render_minute(span.end_minute),
        totals=totals,
        groups=groups,
        groups_omitted=stats.omitted,
    )


def render_minute(minute: int | None) -> str | None:
    """The start of a minute as RFC 3339."""
    return None if minute is None else render_time(minute * MINUTE_NS)


def figure_fields(figures: Figures, latencies: Mapping[int, int], usd_per_kb: float) -> FigureValues:
    """The fields that a group and the totals share."""
    return {
        "events": figures.events,
        "messages": figures.messages,
        "calls": figures.calls,
        "errors": figures.errors,
        "tool_errors": figures.tool_errors,
        "bytes_to_server": figures.bytes_to_server,
        "bytes_to_client": figures.bytes_to_client,
        "p50_ms": quantile_ms(latencies, 0.50),
        "p95_ms": quantile_ms(latencies, 0.95),
        "p99_ms": quantile_ms(latencies, 0.99),
        "cost_usd": cost_usd(figures.bytes_to_server + figures.bytes_to_client, usd_per_kb),
    }


def quantile_ms(latencies: Mapping[int, int], quantile: float) -> float | None:
    """A percentile in milliseconds."""
    value_ns = quantile_ns(latencies, quantile)
    return None if value_ns is None else value_ns / NS_PER_MS
