"""Statistics as the API shows them. Pure. The structs are the documentation of the answers."""

from collections.abc import Mapping
from typing import TypedDict

import msgspec
from msgspec import UNSET, UnsetType

from km_server.api.answers import NS_PER_MS
from km_server.api.times import render_time
from km_server.store.histogram import quantile_ns
from km_server.store.rollup import MINUTE_NS, Figures
from km_server.store.values import Bucket, Dimension, Group, Stats, StatsQuery
from kmd.insight.cost import cost_usd


class FigureFields(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of a group, a point in time or of everything. Percentiles are null where nothing was answered."""

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
    """One group; what it was not grouped by is left out, null is none."""

    server: str | UnsetType | None = UNSET
    method: str | UnsetType | None = UNSET
    target: str | UnsetType | None = UNSET


class TotalsAnswer(FigureFields, frozen=True, kw_only=True):
    """Everything in the span."""

    sessions: int


class PointAnswer(FigureFields, frozen=True, kw_only=True):
    """One point of a time series; it begins at `at`. Points without events are left out."""

    at: str


class StatsAnswer(msgspec.Struct, frozen=True, kw_only=True, rename={"from_": "from"}):
    """`from` and `to` are the whole minutes that were counted; null is open. `series` is there when asked for."""

    from_: str | None
    to: str | None
    totals: TotalsAnswer
    groups: list[GroupAnswer]
    groups_omitted: int
    series: list[PointAnswer] | UnsetType = UNSET


def render_stats(stats: Stats, query: StatsQuery, usd_per_kb: float) -> StatsAnswer:
    """The statistics of a span."""
    totals = TotalsAnswer(sessions=stats.sessions, **figure_fields(stats.totals, stats.latencies, usd_per_kb))
    return StatsAnswer(
        from_=render_minute(query.span.first_minute),
        to=render_minute(query.span.end_minute),
        totals=totals,
        groups=[render_group(group, query, usd_per_kb) for group in stats.groups],
        groups_omitted=stats.omitted,
        series=UNSET if query.bucket_minutes is None else [render_point(one, usd_per_kb) for one in stats.buckets],
    )


def render_group(group: Group, query: StatsQuery, usd_per_kb: float) -> GroupAnswer:
    """One group."""
    series, by = group.series, query.group_by
    return GroupAnswer(
        server=(series.server or None) if Dimension.SERVER in by else UNSET,
        method=(series.method or None) if Dimension.METHOD in by else UNSET,
        target=(series.target or None) if Dimension.TARGET in by else UNSET,
        **figure_fields(group.figures, group.latencies, usd_per_kb),
    )


def render_point(bucket: Bucket, usd_per_kb: float) -> PointAnswer:
    """One point of a time series."""
    return PointAnswer(
        at=render_time(bucket.first_minute * MINUTE_NS), **figure_fields(bucket.figures, bucket.latencies, usd_per_kb)
    )


def render_minute(minute: int | None) -> str | None:
    """The start of a minute as RFC 3339."""
    return None if minute is None else render_time(minute * MINUTE_NS)


def figure_fields(figures: Figures, latencies: Mapping[int, int], usd_per_kb: float) -> FigureValues:
    """The fields that a group, a point and the totals share."""
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
