"""
What one write transaction does to the database: sessions, events, rollups.

An event is new when its row could be inserted: `ON CONFLICT DO NOTHING` on its identity, many rows to a
statement. Only when fewer rows went in than were offered does anybody look which ones they were.

Many rows to a statement, and not executemany: each step of a statement lets go of the interpreter's lock and
has to win it back from the thread that decodes the next request. Measured beside one busy thread, 500 rows:
1,400 rows/s with executemany, 30,000 with one statement; alone both reach 110,000.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice

from km_server.store.driver import sqlite3
from km_server.store.protocol import Arrival
from km_server.store.rollup import COUNT_MAX, Deltas, Series
from kmd.mcp.names import Stream
from kmd.wire import Event, Session, Status, Verdict

Cell = int | float | str | bytes | None
Row = tuple[Cell, ...]
Identity = tuple[int, int, int, int]

STREAM_CODES = {Stream.TO_SERVER: 0, Stream.TO_CLIENT: 1, Stream.STDERR: 2}
"""How a stream is written in the table; part of the schema, never renumbered."""

ROWS_PER_INSERT = 100
"""Rows in one INSERT: beyond this the gain is gone, and each count is a statement to keep compiled."""

ACCEPTED = Verdict(Status.ACCEPTED)
DUPLICATE = Verdict(Status.DUPLICATE)
UNKNOWN_SESSION = Verdict(Status.REJECTED, "its session is not described in the batch and not known here")

EVENT_COLUMNS = (
    "tenant_id, session_id, stream, position, member, at_ns, kind, method, target, rpc_id, size_bytes, took_ns,"
    " outcome, error_code, truncated, sha256, payload"
)
INSERT_EVENTS = f"INSERT INTO events ({EVENT_COLUMNS}) VALUES "  # noqa: S608 - no value in it
ON_SAME_EVENT = " ON CONFLICT (session_id, stream, position, member) DO NOTHING"

ADD_TO_ROLLUPS = f"""
ON CONFLICT (tenant_id, minute, series_id) DO UPDATE SET
    events = events + excluded.events,
    messages = messages + excluded.messages,
    calls = calls + excluded.calls,
    errors = errors + excluded.errors,
    tool_errors = tool_errors + excluded.tool_errors,
    bytes_to_server = min({COUNT_MAX}, bytes_to_server + excluded.bytes_to_server),
    bytes_to_client = min({COUNT_MAX}, bytes_to_client + excluded.bytes_to_client)
"""
ADD_TO_LATENCIES = """
ON CONFLICT (tenant_id, minute, series_id, bucket) DO UPDATE SET answers = answers + excluded.answers
"""


@dataclass(frozen=True, slots=True)
class KnownSession:
    """A stored session: its row and the server's name, which never changes."""

    id: int
    name: str


@dataclass(slots=True)
class Transaction:
    """An open write transaction and what its new events add to the rollups, written once at its end."""

    connection: sqlite3.Connection
    deltas: Deltas = field(default_factory=Deltas)

    def finish(self) -> None:
        """Write the rollups; the caller commits."""
        add_rollups(self.connection, self.deltas)


def ingest(
    transaction: Transaction, tenant_id: int, sessions: Sequence[Session], arrivals: Sequence[Arrival]
) -> list[Verdict]:
    """Store one batch of one tenant. Returns a verdict per arrival."""
    connection = transaction.connection
    known = {session.session: upsert_session(connection, tenant_id, session) for session in sessions}
    verdicts = [UNKNOWN_SESSION] * len(arrivals)
    places: dict[KnownSession, list[int]] = {}
    for place, arrival in enumerate(arrivals):
        session = arrival.event.session
        if session not in known:
            known[session] = find_session(connection, tenant_id, session)
        if (found := known[session]) is not None:
            places.setdefault(found, []).append(place)
    for found, wanted in places.items():
        offered = [arrivals[place] for place in wanted]
        accepted = insert_events(connection, tenant_id, found.id, offered)
        for place, is_new in zip(wanted, accepted, strict=True):
            verdicts[place] = ACCEPTED if is_new else DUPLICATE
        fresh = [arrival.event for arrival, is_new in zip(offered, accepted, strict=True) if is_new]
        transaction.deltas.add(tenant_id, found.name, fresh)
        extend_session(connection, found.id, fresh)
    return verdicts


def find_session(connection: sqlite3.Connection, tenant_id: int, session: str) -> KnownSession | None:
    """The stored session of this name, if there is one."""
    row = connection.execute(
        "SELECT id, name FROM sessions WHERE tenant_id = ? AND session = ?", (tenant_id, session)
    ).fetchone()
    return KnownSession(*row) if row else None


def upsert_session(connection: sqlite3.Connection, tenant_id: int, session: Session) -> KnownSession | None:
    """Make the session, or fill in what was not known of it; what is known stays, the end may move."""
    row = connection.execute(
        "SELECT id, name, command, host, started_at_ns, ended_at_ns FROM sessions WHERE tenant_id = ? AND session = ?",
        (tenant_id, session.session),
    ).fetchone()
    if row is None:
        connection.execute(
            "INSERT INTO sessions (tenant_id, session, name, command, host, started_at_ns, ended_at_ns)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                tenant_id,
                session.session,
                session.name,
                session.command,
                session.host,
                session.started_at_ns,
                session.ended_at_ns,
            ),
        )
        return find_session(connection, tenant_id, session.session)
    stored_id, name, *details = row
    merged = [
        details[0] or session.command,
        details[1] or session.host,
        details[2] or session.started_at_ns,
        details[3] if session.ended_at_ns is None else session.ended_at_ns,
    ]
    if merged != details:
        connection.execute(
            "UPDATE sessions SET command = ?, host = ?, started_at_ns = ?, ended_at_ns = ? WHERE id = ?",
            (*merged, stored_id),
        )
    return KnownSession(stored_id, name)


def extend_session(connection: sqlite3.Connection, session_id: int, fresh: Sequence[Event]) -> None:
    """Widen the session's times to its new events, and count them."""
    if not fresh:
        return
    first = min(event.at_ns for event in fresh)
    last = max(event.at_ns for event in fresh)
    connection.execute(
        "UPDATE sessions SET first_at_ns = min(coalesce(first_at_ns, ?1), ?1),"
        " last_at_ns = max(coalesce(last_at_ns, ?2), ?2), events = events + ?3 WHERE id = ?4",
        (first, last, len(fresh), session_id),
    )


def insert_events(
    connection: sqlite3.Connection, tenant_id: int, session_id: int, arrivals: Sequence[Arrival]
) -> list[bool]:
    """Insert the events of one session. Returns for each whether it is new; of twins, the first one is."""
    newest = read_newest_id(connection)
    rows = [render_row(tenant_id, session_id, arrival) for arrival in arrivals]
    inserted = insert_many(connection, INSERT_EVENTS, rows, ON_SAME_EVENT)
    if inserted == len(rows):
        return [True] * len(rows)
    fresh: set[Identity] = set(
        connection.execute("SELECT session_id, stream, position, member FROM events WHERE id > ?", (newest,))
    )
    return [take(fresh, row[1:5]) for row in rows]


def take(identities: set[Identity], identity: Row) -> bool:
    """Remove *identity* if it is there; says whether it was."""
    before = len(identities)
    identities.discard(identity)
    return len(identities) < before


def read_newest_id(connection: sqlite3.Connection) -> int:
    """The highest id that any event has had; later rows get higher ones."""
    return int(connection.execute("SELECT coalesce(max(id), 0) FROM events").fetchone()[0])


def render_row(tenant_id: int, session_id: int, arrival: Arrival) -> Row:
    """The event's row, in the order of EVENT_COLUMNS. (Plain texts: a StrEnum would be adapted, slowly.)"""
    event = arrival.event
    return (
        tenant_id,
        session_id,
        STREAM_CODES[event.stream],
        event.offset,
        event.index,
        event.at_ns,
        event.kind.value,
        event.method,
        event.target,
        event.rpc_id,
        event.size_bytes,
        event.took_ns,
        event.outcome.value if event.outcome is not None else None,
        event.error_code,
        int(event.truncated),
        event.sha256,
        arrival.payload,
    )


def insert_many(connection: sqlite3.Connection, head: str, rows: Iterable[Row], tail: str) -> int:
    """Run `head (?,…),(?,…) tail` over *rows*, many at a time. Returns how many rows changed."""
    changed = 0
    for part in chunked(rows, ROWS_PER_INSERT):
        marks = "(" + ",".join("?" * len(part[0])) + ")"
        statement = head + ",".join([marks] * len(part)) + tail
        changed += connection.execute(statement, tuple(chain.from_iterable(part))).rowcount
    return changed


def chunked(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """Consecutive lists of 1..size rows."""
    remaining = iter(rows)
    while part := list(islice(remaining, size)):
        yield part


def add_rollups(connection: sqlite3.Connection, deltas: Deltas) -> None:
    """Add the deltas to the stored counters."""
    ids: dict[tuple[int, Series], int] = {}
    for slot in deltas.figures:
        if (slot.tenant_id, slot.series) not in ids:
            ids[slot.tenant_id, slot.series] = intern_series(connection, slot.tenant_id, slot.series)
    figures = (
        (slot.tenant_id, slot.minute, ids[slot.tenant_id, slot.series], *counted.counters())
        for slot, counted in deltas.figures.items()
    )
    insert_many(connection, "INSERT INTO rollups VALUES ", figures, ADD_TO_ROLLUPS)
    latencies = (
        (slot.tenant_id, slot.minute, ids[slot.tenant_id, slot.series], bucket, answers)
        for (slot, bucket), answers in deltas.latencies.items()
    )
    insert_many(connection, "INSERT INTO latencies VALUES ", latencies, ADD_TO_LATENCIES)


def intern_series(connection: sqlite3.Connection, tenant_id: int, series: Series) -> int:
    """The id of a series, made when it is new."""
    wanted = (tenant_id, *series)
    find = "SELECT id FROM series WHERE tenant_id = ? AND server = ? AND method = ? AND target = ?"
    row = connection.execute(find, wanted).fetchone()
    if row is None:
        connection.execute("INSERT INTO series (tenant_id, server, method, target) VALUES (?, ?, ?, ?)", wanted)
        row = connection.execute(find, wanted).fetchone()
    return int(row[0])
