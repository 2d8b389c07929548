"""
Taking events away, as askings: by session, by time, by age. Step by step, so that no transaction grows with the data.

What an event had added to the figures goes with it in the same transaction: after each step the figures equal a
recount. By age whole days go, so their rollups are dropped instead of being counted down.
"""

from dataclasses import dataclass

from km_server.store.asking import Asking, Question, Values
from km_server.store.counting import TAKE_FROM_SESSIONS, fill_fresh, recount_day, uncount
from km_server.store.rollup import DAY_NS, MINUTE_NS

STEP_EVENTS = 5_000
"""Events that go in one transaction: some tens of milliseconds during which others wait."""

TIME_MAX_NS = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Step:
    """What one step took away, and whether it was the last one."""

    events: int
    sessions: int
    is_last: bool


def remove_session(tenant_id: int, session: str) -> Asking[Step]:
    """A step of removing a session; the last one takes the session itself."""
    found = yield Question("SELECT id FROM sessions WHERE tenant_id = $1 AND session = $2", (tenant_id, session))
    if not found:
        return Step(0, 0, is_last=True)
    rows = yield Question(
        "SELECT e.id FROM events e WHERE e.tenant_id = $1 AND e.session_id = $2 LIMIT $3",
        (tenant_id, found[0][0], STEP_EVENTS),
    )
    yield from remove_events(tenant_id, [row[0] for row in rows])
    if len(rows) == STEP_EVENTS:
        return Step(len(rows), 0, is_last=False)
    yield Question("DELETE FROM sessions WHERE tenant_id = $1 AND id = $2", (tenant_id, found[0][0]))
    return Step(len(rows), 1, is_last=True)


def remove_span(tenant_id: int, from_ns: int, to_ns: int) -> Asking[Step]:
    """A step of removing the events of from_ns..to_ns-1."""
    ids = yield from select_span(tenant_id, from_ns, to_ns)
    yield from remove_events(tenant_id, ids)
    if len(ids) == STEP_EVENTS:
        return Step(len(ids), 0, is_last=False)
    return Step(len(ids), (yield from tidy_sessions(tenant_id, from_ns, to_ns)), is_last=True)


def select_span(tenant_id: int, from_ns: int, to_ns: int) -> Asking[list[int]]:
    """The ids of the first events of a range."""
    rows = yield Question(
        "SELECT e.id FROM events e WHERE e.tenant_id = $1 AND e.at_ns >= $2 AND e.at_ns < $3"
        " ORDER BY e.at_ns, e.id LIMIT $4",
        (tenant_id, from_ns, to_ns, STEP_EVENTS),
    )
    return [row[0] for row in rows]


def remove_events(tenant_id: int, ids: list[int]) -> Asking[None]:
    """Remove events, and what they had added to the figures."""
    if not ids:
        return
    values = Values(tenant_id)
    found = values.question(f"events e WHERE e.tenant_id = $1 AND e.id IN ({values.marks(ids)})")
    yield from uncount(tenant_id, found.text, found.values)
    yield Question(f"DELETE FROM {found.text.replace('events e', 'events AS e')}", found.values)


def tidy_sessions(tenant_id: int, from_ns: int, to_ns: int) -> Asking[int]:
    """After a range went: sessions that it left empty go too, the others get their times. Returns how many went."""
    gone = yield Question(
        "DELETE FROM sessions WHERE tenant_id = $1 AND events = 0 AND first_at_ns IS NOT NULL RETURNING id",
        (tenant_id,),
    )
    edge = "SELECT {0}(e.at_ns) FROM events e WHERE e.tenant_id = $1 AND e.session_id = sessions.id"
    yield Question(
        f"UPDATE sessions SET first_at_ns = ({edge.format('min')}), last_at_ns = ({edge.format('max')})"
        " WHERE tenant_id = $1 AND"
        " ((first_at_ns >= $2 AND first_at_ns < $3) OR (last_at_ns >= $2 AND last_at_ns < $3))",
        (tenant_id, from_ns, to_ns),
    )
    return len(gone)


def expire(tenant_id: int, cutoff_ns: int) -> Asking[Step]:
    """A step of removing the events before *cutoff_ns*, the start of a day."""
    yield from drop_days(tenant_id, cutoff_ns)
    ids = yield from select_span(tenant_id, 0, cutoff_ns)
    if ids:
        values = Values(tenant_id)
        found = values.question(f"events e WHERE e.tenant_id = $1 AND e.id IN ({values.marks(ids)})")
        yield Question(fill_fresh(found.text), found.values)
        yield Question(TAKE_FROM_SESSIONS, (tenant_id, -1))
        yield Question(f"DELETE FROM {found.text.replace('events e', 'events AS e')}", found.values)
    if len(ids) == STEP_EVENTS:
        return Step(len(ids), 0, is_last=False)
    sessions = (yield from tidy_sessions(tenant_id, 0, cutoff_ns)) if ids else 0
    return Step(len(ids), sessions + (yield from remove_empty(tenant_id, cutoff_ns)), is_last=True)


def remove_empty(tenant_id: int, cutoff_ns: int) -> Asking[int]:
    """
    Remove sessions that began and ended before *cutoff_ns* and have no event. Returns how many went.

    A sender that comes again with what has expired describes its session each time.
    """
    gone = yield Question(
        "DELETE FROM sessions WHERE tenant_id = $1 AND started_at_ns < $2 AND coalesce(ended_at_ns, 0) < $2"
        " AND events = 0 RETURNING id",
        (tenant_id, cutoff_ns),
    )
    return len(gone)


def drop_days(tenant_id: int, cutoff_ns: int) -> Asking[None]:
    """Remove the rollups of the days before *cutoff_ns*."""
    for table in ("rollups", "latencies"):
        yield Question(
            f"DELETE FROM {table} WHERE tenant_id = $1 AND width IN (1, 60, 1440) AND start < $2",
            (tenant_id, cutoff_ns // MINUTE_NS),
        )


def next_day(tenant_id: int, day: int) -> Asking[int | None]:
    """The first day from *day* on that has events or rollups."""
    rows = yield Question(
        "SELECT (SELECT min(at_ns) FROM events WHERE tenant_id = $1 AND at_ns >= $2),"
        " (SELECT min(start) FROM rollups WHERE tenant_id = $1 AND width = 1440 AND start >= $3)",
        (tenant_id, min(day * DAY_NS, TIME_MAX_NS), day * (DAY_NS // MINUTE_NS)),
    )
    at_ns, start = rows[0]
    found = [time // unit for time, unit in ((at_ns, DAY_NS), (start, DAY_NS // MINUTE_NS)) if time is not None]
    return min(found) if found else None


def rebuild_next(tenant_id: int, day: int) -> Asking[tuple[int, int] | None]:
    """Make anew the rollups of the first day from *day* on. Returns that day and its events; None: there is none."""
    found = yield from next_day(tenant_id, day)
    if found is None:
        return None
    return found, (yield from recount_day(tenant_id, found))


def count_events(tenant_id: int) -> Asking[int]:
    """How many events a tenant has."""
    rows = yield Question(
        "SELECT CAST(coalesce(sum(events), 0) AS BIGINT) FROM sessions WHERE tenant_id = $1", (tenant_id,)
    )
    return int(rows[0][0])


def count_refusals(tenant_id: int, refused: dict[str, int]) -> Asking[None]:
    """Add to the tenant's refusals by reason."""
    for reason, events in sorted(refused.items()):
        yield Question(
            "INSERT INTO refusals (tenant_id, reason, events) VALUES ($1, $2, $3)"
            " ON CONFLICT (tenant_id, reason) DO UPDATE SET events = refusals.events + excluded.events",
            (tenant_id, reason, events),
        )


def read_refusals(tenant_id: int) -> Asking[dict[str, int]]:
    """The tenant's refusals by reason."""
    rows = yield Question("SELECT reason, events FROM refusals WHERE tenant_id = $1", (tenant_id,))
    return {row[0]: row[1] for row in rows}
