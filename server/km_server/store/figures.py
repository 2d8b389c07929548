"""
Statistics, as askings: sums over rollups, never over events.

A span is read in pieces of days, hours and minutes (rollup.split_span), so a year costs about what a day does.
"""

from collections.abc import Sequence

from km_server.store.asking import Asking, Row, Values
from km_server.store.rollup import COUNTERS, MINUTE_NS, WIDTHS, Figures, Piece, split_span
from km_server.store.values import Bucket, Dimension, Group, Series, Span, Stats, StatsQuery

GROUPS_MAX = 1_000
"""Groups in one answer. Targets are the agents' to choose, so there may be any number."""

TIME_MAX_NS = 2**63 - 1
SUMS = ", ".join(f"CAST(sum({name} >> 32) AS BIGINT), CAST(sum({name} & 4294967295) AS BIGINT)" for name in COUNTERS)
"""Each counter as two sums: one sum of 64-bit counters could overflow, and that is an error."""

NAMES = ", ".join(COUNTERS)
NOWHERE = Piece(1, 0, 0)


def read_stats(tenant_id: int, query: StatsQuery) -> Asking[Stats]:
    """The figures of a tenant's span. Ask it inside one snapshot: it puts several questions."""
    pieces = split_span(query.span.first_minute, query.span.end_minute, widths_within(query.bucket_minutes))
    totals = yield from read_totals(tenant_id, query, pieces)
    groups, omitted = yield from read_groups(tenant_id, query, pieces)
    return Stats(
        sessions=(yield from count_sessions(tenant_id, query)),
        totals=totals[0],
        latencies=totals[1],
        groups=groups,
        omitted=omitted,
        buckets=(yield from read_buckets(tenant_id, query, pieces)) if query.bucket_minutes else (),
    )


def widths_within(bucket_minutes: int | None) -> list[int]:
    """The rollups that never reach over the edge of a bucket, widest first."""
    return [width for width in WIDTHS if bucket_minutes is None or bucket_minutes % width == 0]


def rows_of(
    table: str,
    columns: str,
    tenant_id: int,
    query: StatsQuery,
    pieces: Sequence[Piece],
    values: Values,
    *,
    named: bool = False,
) -> str:
    """A subquery: the rollup rows of the pieces that the query does not filter out, as `r`; *named*: and `n`."""
    parts = []
    for piece in pieces or [NOWHERE]:
        tenant, width, first, end = (values.mark(value) for value in (tenant_id, *piece))
        where = f"tenant_id = {tenant} AND width = {width} AND start >= {first} AND start < {end}"
        parts.append(f"SELECT start, series_id, {columns} FROM {table} WHERE {where}")
    rows = f"({' UNION ALL '.join(parts)}) r"
    wanted = {"n.server": query.server, "n.method": query.method, "n.target": query.target}
    given = {column: value for column, value in wanted.items() if value is not None}
    if given or named:
        rows += " JOIN series n ON n.id = r.series_id"
    return rows + "".join(f" AND {column} = {values.mark(value)}" for column, value in given.items())


def read_totals(tenant_id: int, query: StatsQuery, pieces: Sequence[Piece]) -> Asking[tuple[Figures, dict[int, int]]]:
    """The figures of everything that the query asks for, and how many answers are in each latency bucket."""
    values = Values()
    rows = yield values.question(f"SELECT {SUMS} FROM {rows_of('rollups', NAMES, tenant_id, query, pieces, values)}")
    values = Values()
    source = rows_of("latencies", "bucket, answers", tenant_id, query, pieces, values)
    counts = yield values.question(f"SELECT bucket, CAST(sum(answers) AS BIGINT) FROM {source} GROUP BY bucket")
    return parse_figures(rows[0]), {row[0]: row[1] for row in counts}


def read_groups(tenant_id: int, query: StatsQuery, pieces: Sequence[Piece]) -> Asking[tuple[list[Group], int]]:
    """The busiest groups, most messages first, and how many more there are."""
    if not query.group_by:
        return [], 0
    columns = ", ".join(f"n.{dimension}" for dimension in query.group_by)
    names = ", ".join(query.group_by)
    values = Values()
    source = rows_of("rollups", NAMES, tenant_id, query, pieces, values, named=True)
    grouped = f"SELECT {columns}, sum(messages) AS busy, {SUMS} FROM {source} GROUP BY {columns}"
    rows = yield values.question(
        f"SELECT count(*) OVER (), g.* FROM ({grouped}) g ORDER BY busy DESC, {names} LIMIT {values.mark(GROUPS_MAX)}"
    )
    depth = len(query.group_by)
    omitted = (rows[0][0] - len(rows)) if rows else 0
    latencies = yield from read_group_latencies(tenant_id, query, pieces, only_top=omitted > 0)
    groups = [
        Group(
            series_of(query.group_by, row[1 : 1 + depth]),
            parse_figures(row[2 + depth :]),
            latencies.get(tuple(row[1 : 1 + depth]), {}),
        )
        for row in rows
    ]
    return groups, omitted


def read_group_latencies(
    tenant_id: int, query: StatsQuery, pieces: Sequence[Piece], *, only_top: bool
) -> Asking[dict[tuple[str, ...], dict[int, int]]]:
    """Answers per bucket of all groups, or of the busiest ones (chosen as read_groups does)."""
    columns = ", ".join(f"n.{dimension}" for dimension in query.group_by)
    names = ", ".join(query.group_by)
    values = Values()
    where = ""
    if only_top:
        source = rows_of("rollups", "messages", tenant_id, query, pieces, values, named=True)
        top = f"SELECT {columns} FROM {source} GROUP BY {columns} ORDER BY sum(messages) DESC, {columns}"
        top += f" LIMIT {values.mark(GROUPS_MAX)}"
        where = f" WHERE ({columns}) IN (SELECT {names} FROM ({top}) top)"
    source = rows_of("latencies", "bucket, answers", tenant_id, query, pieces, values)
    # First by number, then by name: most rows are gone before a text is compared.
    summed = f"SELECT r.series_id, r.bucket, CAST(sum(r.answers) AS BIGINT) AS answers FROM {source} GROUP BY 1, 2"
    rows = yield values.question(
        f"SELECT {columns}, g.bucket, CAST(sum(g.answers) AS BIGINT) FROM ({summed}) g"
        f" JOIN series n ON n.id = g.series_id{where} GROUP BY {columns}, g.bucket"
    )
    found: dict[tuple[str, ...], dict[int, int]] = {}
    for *group, bucket, answers in rows:
        found.setdefault(tuple(group), {})[bucket] = answers
    return found


def series_of(group_by: Sequence[Dimension], names: Sequence[str]) -> Series:
    """The series that a row of a grouped question is about; None for each name it was not grouped by."""
    given = dict(zip(group_by, names, strict=True))
    return Series(given.get(Dimension.SERVER), given.get(Dimension.METHOD), given.get(Dimension.TARGET))


def read_buckets(tenant_id: int, query: StatsQuery, pieces: Sequence[Piece]) -> Asking[list[Bucket]]:
    """The time series."""
    values = Values()
    width = values.mark(query.bucket_minutes)
    source = rows_of("rollups", NAMES, tenant_id, query, pieces, values)
    begin = f"r.start - r.start % CAST({width} AS BIGINT)"
    rows = yield values.question(f"SELECT {begin}, {SUMS} FROM {source} GROUP BY 1 ORDER BY 1")
    values = Values()
    values.mark(query.bucket_minutes)
    source = rows_of("latencies", "bucket, answers", tenant_id, query, pieces, values)
    counts = yield values.question(
        f"SELECT {begin}, r.bucket, CAST(sum(r.answers) AS BIGINT) FROM {source} GROUP BY 1, 2"
    )
    latencies: dict[int, dict[int, int]] = {}
    for start, bucket, answers in counts:
        latencies.setdefault(start, {})[bucket] = answers
    return [Bucket(row[0], parse_figures(row[1:]), latencies.get(row[0], {})) for row in rows]


def count_sessions(tenant_id: int, query: StatsQuery) -> Asking[int]:
    """Sessions with events, whose first and last event enclose some of the span."""
    first, end = span_ns(query.span)
    values = Values(tenant_id, first, end)
    server = "" if query.server is None else f" AND name = {values.mark(query.server)}"
    rows = yield values.question(
        f"SELECT count(*) FROM sessions WHERE tenant_id = $1 AND last_at_ns >= $2 AND first_at_ns < $3{server}"
    )
    return int(rows[0][0])


def span_ns(span: Span) -> tuple[int, int]:
    """The span in nanoseconds; open ends become the ends of time."""
    first = min((span.first_minute or 0) * MINUTE_NS, TIME_MAX_NS)
    end = TIME_MAX_NS if span.end_minute is None else min(span.end_minute * MINUTE_NS, TIME_MAX_NS)
    return first, end


def parse_figures(sums: Row) -> Figures:
    """The counters from their high and low sums (see SUMS); all None when there were no rows."""
    pairs = zip(sums[0::2], sums[1::2], strict=True)
    return Figures(*(((high or 0) << 32) + (low or 0) for high, low in pairs))
