"""
What one write transaction does to the file: sessions, events, figures.

An event is new when its row could be inserted: `ON CONFLICT DO NOTHING` on its identity, many rows to a
statement. Only when fewer rows went in than were offered does anybody look which ones they were. Ids grow, so what
a transaction has to count at its end are the rows above the highest id at its begin.

Many rows to a statement, and not executemany: each step of a statement lets go of the interpreter's lock and
has to win it back from the thread that decodes the next request. Measured beside one busy thread, 500 rows:
1,400 rows/s with executemany, 30,000 with one statement; alone both reach 110,000.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from km_server.store.asking import Asking, Cell
from km_server.store.counting import EMPTY_FRESH, STREAM_CODES, count_fresh
from km_server.store.fate import UNKNOWN_SESSION, Clock
from km_server.store.histogram import bucket_of
from km_server.store.judge import ACCEPTED, DUPLICATE, Offer, make_offer, merge
from km_server.store.removal import count_refusals
from km_server.store.sqlite.driver import sqlite3
from km_server.store.values import Arrival, Tenant
from kmd.wire import Session, Verdict

T = TypeVar("T")
Identity = tuple[int, int, int, int]
SeriesIds = dict[tuple[int, str, str, str], int]
"""The id of each tenant's server, method and target; '' is none."""

ROWS_PER_INSERT = 100
"""Rows in one INSERT: beyond this the gain is gone, and each count is a statement to keep compiled."""

SERIES_KEPT = 50_000
"""Series whose ids are remembered; beyond it they are looked up anew."""

OWN_COLUMNS = (
    "stream, position, member, series_id, at_ns, size_bytes, took_ns, bucket, risk, error_code, truncated, kind,"
    " method, target, rpc_id, outcome, sha256, extra, payload"
)
WIDTH = OWN_COLUMNS.count(",") + 1
INSERT_EVENTS = f"INSERT INTO events (tenant_id, session_id, packed, {OWN_COLUMNS}) VALUES "
ROW_MARKS = "(?1,?2,0" + ",?" * WIDTH + ")"
"""All rows of a statement are of one tenant's one session: ?1 and ?2."""

ON_SAME_EVENT = " ON CONFLICT (session_id, stream, position, member) DO NOTHING"
NEW_EVENTS = "events e WHERE +e.tenant_id = $1 AND e.id > $2"
"""By id, and not by the tenant's index: all of them were written a moment ago."""


@dataclass(frozen=True, slots=True)
class KnownSession:
    """A stored session: its row and the server's name, which never changes."""

    id: int
    name: str


@dataclass(slots=True)
class Transaction:
    """An open write transaction; its new events are counted once, at its end. `tenants`: whose there may be."""

    connection: sqlite3.Connection
    series: SeriesIds
    begin_id: int = field(init=False)
    tenants: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.begin_id = read_newest_id(self.connection)

    def run(self, asking: Asking[T]) -> T:
        """Run an asking within this transaction; it finds nothing of another one's counting."""
        self.connection.execute(EMPTY_FRESH)
        return answer(self.connection, asking)

    def count(self) -> None:
        """Count the new events, before anything else looks at the figures and before the commit."""
        for tenant_id in sorted(self.tenants):
            self.run(count_fresh(tenant_id, NEW_EVENTS, (tenant_id, self.begin_id)))
        self.tenants.clear()
        self.begin_id = read_newest_id(self.connection)


def answer(connection: sqlite3.Connection, asking: Asking[T]) -> T:
    """Put an asking's questions one after the other."""
    try:
        question = next(asking)
        while True:
            values = {str(number): value for number, value in enumerate(question.values, 1)}
            question = asking.send(connection.execute(question.text, values).fetchall())
    except StopIteration as stop:
        result: T = stop.value
        return result


def ingest(
    transaction: Transaction, tenant: Tenant, clock: Clock, sessions: Sequence[Session], arrivals: Sequence[Arrival]
) -> list[Verdict]:
    """Store one batch of one tenant. Returns a verdict per arrival."""
    offer = make_offer(sessions, arrivals, clock)
    known = find_sessions(transaction.connection, tenant.id, offer)
    for name, places in offer.places.items():
        found = known.get(name)
        if found is None:
            offer.answer(name, UNKNOWN_SESSION)
            continue
        offered = [arrivals[place] for place in places]
        if offered:
            transaction.tenants.add(tenant.id)
        for place, is_new in zip(places, insert_events(transaction, tenant.id, found, offered), strict=True):
            offer.verdicts[place] = ACCEPTED if is_new else DUPLICATE
    if refused := offer.refused():
        transaction.run(count_refusals(tenant.id, refused))
    return offer.settled()


def find_sessions(connection: sqlite3.Connection, tenant_id: int, offer: Offer) -> dict[str, KnownSession]:
    """The sessions of an offer, those that it describes made or filled in."""
    known = {}
    for name, (session, _) in sorted(offer.sessions.items()):  # as in PostgreSQL: equal starts are listed alike
        known[name] = upsert_session(connection, tenant_id, session)
    for name in offer.places.keys() - offer.sessions.keys():
        row = connection.execute(
            "SELECT id, name FROM sessions WHERE tenant_id = ? AND session = ?", (tenant_id, name)
        ).fetchone()
        if row:
            known[name] = KnownSession(*row)
    return known


def upsert_session(connection: sqlite3.Connection, tenant_id: int, session: Session) -> KnownSession:
    """Make the session, or fill in what was not known of it; what is known stays, the end may move."""
    row = connection.execute(
        "SELECT id, name, command, host, started_at_ns, ended_at_ns, closed_first FROM sessions"
        " WHERE tenant_id = ? AND session = ?",
        (tenant_id, session.session),
    ).fetchone()
    if row is None:
        made = connection.execute(
            "INSERT INTO sessions (tenant_id, session, name, command, host, started_at_ns, ended_at_ns, closed_first)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
            (tenant_id, session.session, session.name, *details_of(session)),
        ).fetchall()
        return KnownSession(made[0][0], session.name)
    stored_id, name, command, host, started_at_ns, ended_at_ns, closed_first = row
    stored = Session(
        session=session.session,
        name=name,
        command=command,
        host=host,
        started_at_ns=started_at_ns,
        ended_at_ns=ended_at_ns,
        closed_first=closed_first,
    )
    merged = merge(stored, session)
    if merged != stored:
        connection.execute(
            "UPDATE sessions SET command = ?, host = ?, started_at_ns = ?, ended_at_ns = ?, closed_first = ?"
            " WHERE id = ?",
            (*details_of(merged), stored_id),
        )
    return KnownSession(stored_id, name)


def details_of(session: Session) -> tuple[str, str, int, int | None, str]:
    """What may be filled in later, in the order of the statements."""
    return session.command, session.host, session.started_at_ns, session.ended_at_ns, session.closed_first


def insert_events(
    transaction: Transaction, tenant_id: int, session: KnownSession, arrivals: Sequence[Arrival]
) -> list[bool]:
    """Insert the events of one session. Returns for each whether it is new; of twins, the first one is."""
    connection = transaction.connection
    newest = read_newest_id(connection)
    inserted = 0
    for start in range(0, len(arrivals), ROWS_PER_INSERT):
        part = arrivals[start : start + ROWS_PER_INSERT]
        cells: list[Cell] = [tenant_id, session.id]
        for arrival in part:
            cells += render_row(transaction, tenant_id, session.name, arrival)
        statement = INSERT_EVENTS + ",".join([ROW_MARKS] * len(part)) + ON_SAME_EVENT
        inserted += connection.execute(statement, cells).rowcount
    if inserted == len(arrivals):
        return [True] * inserted
    fresh: set[Identity] = set(
        connection.execute("SELECT session_id, stream, position, member FROM events WHERE id > ?", (newest,))
    )
    return [take(fresh, identify(session.id, arrival)) for arrival in arrivals]


def identify(session_id: int, arrival: Arrival) -> Identity:
    """The four values that name an event's row."""
    event = arrival.event
    return session_id, STREAM_CODES[event.stream], event.offset, event.index


def take(identities: set[Identity], identity: Identity) -> bool:
    """Remove *identity* if it is there; says whether it was."""
    before = len(identities)
    identities.discard(identity)
    return len(identities) < before


def read_newest_id(connection: sqlite3.Connection) -> int:
    """The highest id of an event; later rows get higher ones."""
    return int(connection.execute("SELECT coalesce(max(id), 0) FROM events").fetchone()[0])


def render_row(transaction: Transaction, tenant_id: int, server: str, arrival: Arrival) -> tuple[Cell, ...]:
    """The event's own cells, in the order of OWN_COLUMNS. (`_value_`: a StrEnum itself would be adapted, slowly.)"""
    event = arrival.event
    took_ns = event.took_ns
    return (
        STREAM_CODES[event.stream],
        event.offset,
        event.index,
        intern_series(transaction, tenant_id, server, event.method or "", event.target or ""),
        event.at_ns,
        event.size_bytes,
        took_ns,
        None if took_ns is None else bucket_of(took_ns),
        arrival.risk,
        event.error_code,
        int(event.truncated),
        event.kind._value_,
        event.method,
        event.target,
        event.rpc_id,
        None if event.outcome is None else event.outcome._value_,
        event.sha256,
        arrival.extra,
        arrival.payload,
    )


def intern_series(transaction: Transaction, tenant_id: int, server: str, method: str, target: str) -> int:
    """The id of a series, made when it is new."""
    wanted = (tenant_id, server, method, target)
    known = transaction.series.get(wanted)
    if known is not None:
        return known
    if len(transaction.series) >= SERIES_KEPT:
        transaction.series.clear()
    connection = transaction.connection
    find = "SELECT id FROM series WHERE tenant_id = ? AND server = ? AND method = ? AND target = ?"
    row = connection.execute(find, wanted).fetchone()
    if row is None:
        connection.execute("INSERT INTO series (tenant_id, server, method, target) VALUES (?, ?, ?, ?)", wanted)
        row = connection.execute(find, wanted).fetchone()
    transaction.series[wanted] = int(row[0])
    return int(row[0])
