"""Sessions as stored, as askings: the list, newest start first, and one by its name."""

from km_server.store.asking import Asking, Row, Values
from km_server.store.rollup import COUNTERS, Figures
from km_server.store.values import SessionPage, SessionQuery, StoredSession
from kmd.wire import Session

COLUMNS = (
    "id, session, name, command, host, started_at_ns, ended_at_ns, closed_first, first_at_ns, last_at_ns, "
    + ", ".join(COUNTERS)
)


def parse_session(row: Row) -> StoredSession:
    """A row of COLUMNS."""
    session = Session(
        session=row[1],
        name=row[2],
        command=row[3],
        host=row[4],
        started_at_ns=row[5],
        ended_at_ns=row[6],
        closed_first=row[7],
    )
    return StoredSession(row[0], session, row[8], row[9], Figures(*row[10:]))


def list_sessions(tenant_id: int, query: SessionQuery) -> Asking[SessionPage]:
    """One page of a tenant's sessions."""
    values = Values(tenant_id)
    where = "tenant_id = $1"
    if query.server is not None:
        where += f" AND name = {values.mark(query.server)}"
    if query.from_ns is not None:
        where += f" AND last_at_ns >= {values.mark(query.from_ns)}"
    if query.to_ns is not None:
        where += f" AND first_at_ns < {values.mark(query.to_ns)}"
    if query.after is not None:
        where += f" AND (started_at_ns, id) < ({values.marks(query.after)})"
    rows = yield values.question(
        f"SELECT {COLUMNS} FROM sessions WHERE {where} ORDER BY started_at_ns DESC, id DESC"
        f" LIMIT {values.mark(query.limit + 1)}"
    )
    found = [parse_session(row) for row in rows]
    taken = found[: query.limit]
    return SessionPage(taken, taken[-1].position if len(taken) < len(found) else None)


def find_session(tenant_id: int, session: str) -> Asking[StoredSession | None]:
    """The session of this name."""
    values = Values(tenant_id, session)
    rows = yield values.question(f"SELECT {COLUMNS} FROM sessions WHERE tenant_id = $1 AND session = $2")
    return parse_session(rows[0]) if rows else None
