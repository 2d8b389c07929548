"""
Counting, as SQL that both databases understand: from events to the figures of sessions and rollups.

`fresh` is a table of the transaction's own: a row per session, series, minute and latency bucket, made in one pass
over the events to be counted. Everything else is sums over it. Events that go are counted with sign -1: what they
had added is taken away again, exactly.

The line of a JSON-RPC batch (kind `batch`) carries the bytes and is no message; its members are messages and carry
none. A line of stderr is an event and no message. `probe` and `input_required` are no errors.
"""

from km_server.store.asking import Asking, Cell, Question
from km_server.store.rollup import COUNT_MAX, COUNTERS, DAY_NS, MINUTE_NS, WIDTHS

STREAM_CODES = {"to_server": 0, "to_client": 1, "stderr": 2}
"""How a stream is written in the tables; part of the schema, never renumbered."""

NEARLY_FULL = (2**31 - 2**24) << 32
"""Sums of bytes beyond this are kept as COUNT_MAX. It leaves room for the low halves of 16 million events."""


def capped_sum(value: str) -> str:
    """The sum of a number of 0..2^63-1: in halves, since one sum could overflow, which is an error."""
    high, low = f"sum(({value}) >> 32)", f"sum(({value}) & 4294967295)"
    return (
        f"CASE WHEN {high} >= {NEARLY_FULL >> 32} THEN {COUNT_MAX} ELSE CAST({high} * 4294967296 + {low} AS BIGINT) END"
    )


FIGURES = ", ".join(
    [
        "count(*)",
        "count(*) FILTER (WHERE e.kind <> 'batch' AND e.stream <> 2)",
        "count(*) FILTER (WHERE e.kind = 'request')",
        "count(*) FILTER (WHERE e.outcome = 'rpc_error')",
        "count(*) FILTER (WHERE e.outcome = 'tool_error')",
        capped_sum("CASE WHEN e.stream = 0 AND e.member = 0 THEN e.size_bytes ELSE 0 END"),
        capped_sum("CASE WHEN e.stream = 1 AND e.member = 0 THEN e.size_bytes ELSE 0 END"),
    ]
)
"""The counters of a group of events `e`, in the order of COUNTERS."""

NAMES = ", ".join(COUNTERS)

CREATE_FRESH = (
    "CREATE TEMP TABLE IF NOT EXISTS fresh (session_id BIGINT, series_id BIGINT, minute BIGINT, bucket BIGINT, "
    + ", ".join(f"{name} BIGINT" for name in COUNTERS)
    + ", first_at_ns BIGINT, last_at_ns BIGINT)"
)


def fill_fresh(source: str) -> str:
    """The statement that fills `fresh`. source: what follows FROM, with the events as `e`."""
    return (
        f"INSERT INTO fresh SELECT e.session_id, e.series_id, e.at_ns / {MINUTE_NS}, e.bucket, {FIGURES},"
        f" min(e.at_ns), max(e.at_ns) FROM {source} GROUP BY 1, 2, 3, 4"
    )


def set_counters(table: str, new: str) -> str:
    """The assignments that add the counters of *new* (which may be negative) to those of *table*."""
    parts = []
    for name in COUNTERS:
        old, more = f"{table}.{name}", f"{new}.{name}"
        plain = f"{old} + {more}"
        if name.startswith("bytes_"):
            gone = f"WHEN {more} < -{old} THEN 0 WHEN {more} <= 0 THEN {plain}"  # of what had been capped
            full = f"WHEN {old} > {COUNT_MAX} - {more} THEN {COUNT_MAX}"
            plain = f"CASE {gone} {full} ELSE {plain} END"
        parts.append(f"{name} = {plain}")
    return ", ".join(parts)


def total(name: str) -> str:
    """The sum of a counter: of bytes there may be more than a number holds."""
    return capped_sum(name) if name.startswith("bytes_") else f"CAST(sum({name}) AS BIGINT)"


SIGNED = ", ".join(f"{total(name)} * CAST($2 AS BIGINT) AS {name}" for name in COUNTERS)
"""Sums of `fresh` with the sign of what happens to the events: $2 is 1 or -1."""

EACH_WIDTH = "(" + " UNION ALL ".join(f"SELECT {width} AS width" for width in sorted(WIDTHS)) + ") w"

ADD_TO_SESSIONS = f"""
UPDATE sessions SET first_at_ns = CASE WHEN sessions.first_at_ns <= f.low THEN sessions.first_at_ns ELSE f.low END,
    last_at_ns = CASE WHEN sessions.last_at_ns >= f.high THEN sessions.last_at_ns ELSE f.high END,
    {set_counters("sessions", "f")}
FROM (SELECT session_id, min(first_at_ns) AS low, max(last_at_ns) AS high, {SIGNED} FROM fresh GROUP BY session_id) f
WHERE sessions.id = f.session_id AND sessions.tenant_id = $1
"""

TAKE_FROM_SESSIONS = f"""
UPDATE sessions SET {set_counters("sessions", "f")}
FROM (SELECT session_id, {SIGNED} FROM fresh GROUP BY session_id) f
WHERE sessions.id = f.session_id AND sessions.tenant_id = $1
"""

ADD_TO_ROLLUPS = f"""
INSERT INTO rollups (tenant_id, width, start, series_id, {NAMES})
SELECT CAST($1 AS BIGINT), w.width, minute - minute % w.width, series_id, {SIGNED}
FROM fresh CROSS JOIN {EACH_WIDTH} WHERE true GROUP BY 2, 3, 4 ORDER BY 2, 3, 4
ON CONFLICT (tenant_id, width, start, series_id) DO UPDATE SET {set_counters("rollups", "excluded")}
"""

ADD_TO_LATENCIES = f"""
INSERT INTO latencies (tenant_id, width, start, series_id, bucket, answers)
SELECT CAST($1 AS BIGINT), w.width, minute - minute % w.width, series_id, bucket,
    CAST(sum(events) AS BIGINT) * CAST($2 AS BIGINT)
FROM fresh CROSS JOIN {EACH_WIDTH} WHERE bucket IS NOT NULL GROUP BY 2, 3, 4, 5 ORDER BY 2, 3, 4, 5
ON CONFLICT (tenant_id, width, start, series_id, bucket) DO UPDATE SET answers = latencies.answers + excluded.answers
"""

TOUCHED = (
    "tenant_id = $1 AND (width, start, series_id) IN"
    f" (SELECT w.width, minute - minute % w.width, series_id FROM fresh CROSS JOIN {EACH_WIDTH})"
)
"""The rollups that `fresh` has changed."""

EMPTY_FRESH = "DELETE FROM fresh"
"""Between two uses: a transaction counts once, and a store empties the table with it."""


def count_fresh(tenant_id: int, source: str, values: tuple[Cell, ...] = ()) -> Asking[None]:
    """Add new events of one tenant to its figures; they are what *source* (with *values*) finds."""
    yield Question(fill_fresh(source), values)
    yield Question(ADD_TO_SESSIONS, (tenant_id, 1))
    yield from add_to_rollups(tenant_id, 1)


def uncount(tenant_id: int, source: str, values: tuple[Cell, ...]) -> Asking[None]:
    """Take events that are about to go out of the figures; a session's first and last time stay."""
    yield Question(fill_fresh(source), values)
    yield Question(TAKE_FROM_SESSIONS, (tenant_id, -1))
    yield from add_to_rollups(tenant_id, -1)
    yield Question(f"DELETE FROM rollups WHERE events = 0 AND {TOUCHED}", (tenant_id,))
    yield Question(f"DELETE FROM latencies WHERE answers = 0 AND {TOUCHED}", (tenant_id,))


def add_to_rollups(tenant_id: int, sign: int) -> Asking[None]:
    """Write what `fresh` holds to the rollups."""
    yield Question(ADD_TO_ROLLUPS, (tenant_id, sign))
    yield Question(ADD_TO_LATENCIES, (tenant_id, sign))


def recount_day(tenant_id: int, day: int) -> Asking[int]:
    """Make one day's rollups anew from its events. Returns how many events that were."""
    first, minutes = day * DAY_NS, day * (DAY_NS // MINUTE_NS)
    for table in ("rollups", "latencies"):
        yield Question(
            f"DELETE FROM {table} WHERE tenant_id = $1 AND start >= $2 AND start < $3"
            f" AND width IN ({', '.join(map(str, WIDTHS))})",
            (tenant_id, minutes, minutes + DAY_NS // MINUTE_NS),
        )
    source = "events e WHERE e.tenant_id = $1 AND e.at_ns >= $2 AND e.at_ns < $3"
    yield Question(fill_fresh(source), (tenant_id, first, first + DAY_NS))
    counted = yield Question("SELECT CAST(coalesce(sum(events), 0) AS BIGINT) FROM fresh")
    yield from add_to_rollups(tenant_id, 1)
    return int(counted[0][0])
