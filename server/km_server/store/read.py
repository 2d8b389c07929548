"""
The questions that the server answers, as SQL. Each takes a tenant; none reads a payload unless asked to.

The feed walks the index by time. A filter may match rarely, so a page looks at SCAN_MAX events at most and
says where to continue: every question costs about the same, however much is stored.
"""

from collections.abc import Iterator
from dataclasses import replace

from km_server.store.driver import sqlite3
from km_server.store.insert import STREAM_CODES, Cell
from km_server.store.protocol import (
    ActivityPage,
    ActivityQuery,
    Group,
    Position,
    Span,
    Stats,
    StoredEvent,
)
from km_server.store.rollup import Figures, Series
from kmd.mcp.names import Kind, Outcome
from kmd.wire import Event

SCAN_MAX = 20_000
"""Events that one filtered page looks at."""

PAGE_PAYLOAD_BYTES = 8 * 2**20
"""Payload bytes of one page; an event with more of them comes alone."""

GROUPS_MAX = 1_000
"""Series in one answer. Targets are the agents' to choose, so there may be any number."""

TIME_MAX_NS = 2**63 - 1
STREAMS = {code: stream for stream, code in STREAM_CODES.items()}

FEED_COLUMNS = (
    "e.id, s.name, s.session, e.stream, e.position, e.member, e.at_ns, e.kind, e.method, e.target, e.rpc_id,"
    " e.size_bytes, e.took_ns, e.outcome, e.error_code, e.truncated, e.sha256"
)
NEWEST_FIRST = " ORDER BY e.at_ns DESC, e.id DESC"
SUMMED = ("events", "messages", "calls", "errors", "tool_errors", "bytes_to_server", "bytes_to_client")
SUMS = ", ".join(f"sum({name} >> 32), sum({name} & 4294967295)" for name in SUMMED)
"""Each counter as two sums: one sum() of 64-bit counters could overflow, and SQLite makes that an error."""

Where = tuple[str, list[Cell]]
Text = str | None
Number = int | None
EventRow = tuple[
    int, str, str, int, int, int, int, str, Text, Text, Text, int, Number, Text, Number, int, Text, bytes | None
]


def read_activity(connection: sqlite3.Connection, tenant_id: int, query: ActivityQuery) -> ActivityPage:
    """One page of a tenant's feed."""
    narrowed = narrow_to_session(connection, tenant_id, query)
    if narrowed is None:
        return ActivityPage((), None)
    where = feed_where(tenant_id, narrowed)
    matches = feed_filters(narrowed)
    floor = find_floor(connection, where) if matches[0] else None
    if floor is not None:
        where = (where[0] + " AND (e.at_ns, e.id) >= (?, ?)", [*where[1], floor.at_ns, floor.id])
    rows = select_events(connection, (where[0] + matches[0], where[1] + matches[1]), narrowed)
    return cut_page(rows, narrowed.limit, floor)


def narrow_to_session(connection: sqlite3.Connection, tenant_id: int, query: ActivityQuery) -> ActivityQuery | None:
    """Bound the query by the times of the session that it names; None when that session has no events."""
    if query.session is None:
        return query
    row = connection.execute(
        "SELECT first_at_ns, last_at_ns FROM sessions WHERE tenant_id = ? AND session = ?",
        (tenant_id, query.session),
    ).fetchone()
    if row is None or row[0] is None:
        return None
    return replace(
        query,
        from_ns=max(row[0], query.from_ns or 0),
        to_ns=min(row[1] + 1, TIME_MAX_NS if query.to_ns is None else query.to_ns),
    )


def feed_where(tenant_id: int, query: ActivityQuery) -> Where:
    """The part of the question that the index by time answers."""
    text, values = "e.tenant_id = ?", list[Cell]([tenant_id])
    if query.from_ns is not None:
        text, values = text + " AND e.at_ns >= ?", [*values, query.from_ns]
    if query.to_ns is not None:
        text, values = text + " AND e.at_ns < ?", [*values, query.to_ns]
    if query.after is not None:
        text += " AND (e.at_ns, e.id) < (?, ?)"
        values += [query.after.at_ns, query.after.id]
    return text, values


def feed_filters(query: ActivityQuery) -> Where:
    """The part that has to be looked at row by row."""
    wanted = {
        "s.session": query.session,
        "s.name": query.server,
        "e.method": query.method,
        "e.kind": query.kind,
        "e.outcome": query.outcome,
    }
    given = {column: value for column, value in wanted.items() if value is not None}
    return "".join(f" AND {column} = ?" for column in given), list(given.values())


def find_floor(connection: sqlite3.Connection, where: Where) -> Position | None:
    """The place of the last event that this page may look at; None when the feed ends before."""
    row = connection.execute(
        f"SELECT e.at_ns, e.id FROM events e WHERE {where[0]}{NEWEST_FIRST} LIMIT 1 OFFSET ?",  # noqa: S608
        [*where[1], SCAN_MAX - 1],
    ).fetchone()
    return Position(*row) if row else None


def select_events(connection: sqlite3.Connection, where: Where, query: ActivityQuery) -> Iterator[StoredEvent]:
    """The events that match, newest first: one more than the page holds, to see whether there is more."""
    payload = "e.payload" if query.payloads else "NULL"
    rows = connection.execute(
        f"SELECT {FEED_COLUMNS}, {payload} FROM events e JOIN sessions s ON s.id = e.session_id"  # noqa: S608
        f" WHERE {where[0]}{NEWEST_FIRST} LIMIT ?",
        [*where[1], query.limit + 1],
    )
    for row in rows:
        yield parse_event(row)


def parse_event(row: EventRow) -> StoredEvent:
    """A row of FEED_COLUMNS and a payload."""
    event = Event(
        session=row[2],
        stream=STREAMS[row[3]],
        offset=row[4],
        index=row[5],
        at_ns=row[6],
        kind=Kind(row[7]),
        method=row[8],
        target=row[9],
        rpc_id=row[10],
        size_bytes=row[11],
        took_ns=row[12],
        outcome=None if row[13] is None else Outcome(row[13]),
        error_code=row[14],
        truncated=bool(row[15]),
        sha256=row[16],
    )
    return StoredEvent(row[0], row[1], event, row[17])


def cut_page(rows: Iterator[StoredEvent], limit: int, floor: Position | None) -> ActivityPage:
    """Take events up to the page's bounds; *floor* is where to continue when they ran out there."""
    taken: list[StoredEvent] = []
    payload_bytes = 0
    for stored in rows:
        payload_bytes += len(stored.payload or b"")
        if len(taken) == limit or (taken and payload_bytes > PAGE_PAYLOAD_BYTES):
            return ActivityPage(taken, taken[-1].position)
        taken.append(stored)
    return ActivityPage(taken, floor)


def read_stats(connection: sqlite3.Connection, tenant_id: int, span: Span) -> Stats:
    """The figures of a tenant's span. Call it inside one read transaction: it asks four questions."""
    where, values = span_where(tenant_id, span)
    totals = connection.execute(f"SELECT {SUMS} FROM rollups WHERE {where}", values).fetchone()  # noqa: S608
    latencies, by_series = read_latencies(connection, where, values)
    groups, omitted = read_groups(connection, where, values, by_series)
    return Stats(
        sessions=count_sessions(connection, tenant_id, span),
        totals=parse_figures(totals),
        latencies=latencies,
        groups=groups,
        omitted=omitted,
    )


def span_where(tenant_id: int, span: Span) -> Where:
    """The rollup rows of a tenant's span."""
    text, values = "tenant_id = ?", list[Cell]([tenant_id])
    if span.first_minute is not None:
        text, values = text + " AND minute >= ?", [*values, span.first_minute]
    if span.end_minute is not None:
        text, values = text + " AND minute < ?", [*values, span.end_minute]
    return text, values


def count_sessions(connection: sqlite3.Connection, tenant_id: int, span: Span) -> int:
    """Sessions with events, whose first and last event enclose some of the span."""
    first, end = span_ns(span)
    row = connection.execute(
        "SELECT count(*) FROM sessions WHERE tenant_id = ? AND last_at_ns >= ? AND first_at_ns < ?",
        (tenant_id, first, end),
    ).fetchone()
    return int(row[0])


def span_ns(span: Span) -> tuple[int, int]:
    """The span in nanoseconds; open ends become the ends of time."""
    minute_ns = 60 * 10**9
    first = (span.first_minute or 0) * minute_ns
    end = TIME_MAX_NS if span.end_minute is None else min(span.end_minute * minute_ns, TIME_MAX_NS)
    return first, end


def read_latencies(
    connection: sqlite3.Connection, where: str, values: list[Cell]
) -> tuple[dict[int, int], dict[int, dict[int, int]]]:
    """Answers per bucket: of everything, and per series id."""
    totals: dict[int, int] = {}
    by_series: dict[int, dict[int, int]] = {}
    rows = connection.execute(
        f"SELECT series_id, bucket, sum(answers) FROM latencies WHERE {where} GROUP BY 1, 2",  # noqa: S608
        values,
    )
    for series_id, bucket, answers in rows:
        totals[bucket] = totals.get(bucket, 0) + answers
        by_series.setdefault(series_id, {})[bucket] = answers
    return totals, by_series


def read_groups(
    connection: sqlite3.Connection, where: str, values: list[Cell], latencies: dict[int, dict[int, int]]
) -> tuple[list[Group], int]:
    """The busiest series, most messages first, and how many more there are."""
    rows = connection.execute(
        f"SELECT count(*) OVER (), g.series_id, n.server, n.method, n.target, g.* FROM"  # noqa: S608
        f" (SELECT series_id, {SUMS}, sum(messages) AS busy FROM rollups WHERE {where} GROUP BY series_id) g"
        " JOIN series n ON n.id = g.series_id"
        " ORDER BY g.busy DESC, n.server, n.method, n.target LIMIT ?",
        [*values, GROUPS_MAX],
    ).fetchall()
    groups = [Group(Series(*row[2:5]), parse_figures(row[6:-1]), latencies.get(row[1], {})) for row in rows]
    return groups, (rows[0][0] - len(groups)) if rows else 0


def parse_figures(sums: tuple[int | None, ...]) -> Figures:
    """The counters from their high and low sums (see SUMS); all None when there were no rows."""
    pairs = zip(sums[0::2], sums[1::2], strict=True)
    return Figures(*(((high or 0) << 32) + (low or 0) for high, low in pairs))
