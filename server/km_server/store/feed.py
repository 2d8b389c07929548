"""
The feed: pages of events, one event, what is new. As askings: the same for both databases.

The feed walks the index by time. A filter may match rarely, so a page looks at SCAN_MAX events at most and says
where to continue: every question costs about the same, however much is stored. No payload is read unless it is
asked for or searched, and then only so many bytes at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from km_server.store.asking import Asking, Question, Row, Values
from km_server.store.counting import STREAM_CODES
from km_server.store.payload import unpack
from km_server.store.values import (
    ActivityPage,
    ActivityQuery,
    Filter,
    News,
    Order,
    Position,
    StoredEvent,
)
from kmd.mcp.names import Kind, Outcome, Stream
from kmd.wire import Event

SCAN_MAX = 20_000
"""Events that one filtered page looks at."""

PAGE_PAYLOAD_BYTES = 8 * 2**20
"""Payload bytes of one page; an event with more of them comes alone."""

SEARCH_STEP = 250
SEARCH_MAX = 4_000
"""Events whose payloads one searching page looks at: to unpack them takes some tens of milliseconds."""

TIME_MAX_NS = 2**63 - 1
STREAMS = {code: Stream(name) for name, code in STREAM_CODES.items()}

FEED_COLUMNS = (
    "e.id, s.name, s.session, e.stream, e.position, e.member, e.at_ns, e.kind, e.method, e.target, e.rpc_id,"
    " e.size_bytes, e.took_ns, e.outcome, e.error_code, e.truncated, e.sha256, e.risk"
)
FEED_TABLES = "events e JOIN sessions s ON s.id = e.session_id"
EMPTY = ActivityPage((), None)


@dataclass(frozen=True, slots=True)
class Walk:
    """
    A way through one tenant's events.

    session_id: only this session's. few: there are so few of those that they are found by session and sorted.
    """

    tenant_id: int
    where: Filter
    order: Order
    session_id: int | None = None
    few: bool = False

    @property
    def is_filtered(self) -> bool:
        """Whether an event of the range may be left out."""
        return bool(self.match(Values()))

    @property
    def by_time(self) -> str:
        """The page's order as an ORDER BY clause."""
        way = "DESC" if self.order is Order.NEWEST_FIRST else "ASC"
        return f" ORDER BY e.at_ns {way}, e.id {way}"

    def range(self, values: Values, after: Position | None, floor: Position | None = None) -> str:
        """The part of the question that an index answers. floor: the last place to look at."""
        # A sign before a column keeps both planners from an index on it.
        text = ("+" if self.few else "") + f"e.tenant_id = {values.mark(self.tenant_id)}"
        if self.few:
            text += f" AND e.session_id = {values.mark(self.session_id)}"
        if self.where.from_ns is not None:
            text += f" AND e.at_ns >= {values.mark(self.where.from_ns)}"
        if self.where.to_ns is not None:
            text += f" AND e.at_ns < {values.mark(self.where.to_ns)}"
        below, above = ("<", ">=") if self.order is Order.NEWEST_FIRST else (">", "<=")
        for sign, place in ((below, after), (above, floor)):
            if place is not None:
                text += f" AND (e.at_ns, e.id) {sign} ({values.marks(place)})"
        return text

    def match(self, values: Values) -> str:
        """The part that has to be looked at row by row."""
        where = self.where
        equal = {
            "e.session_id": None if self.few else self.session_id,
            "s.name": where.server,
            "e.method": where.method,
            "e.target": where.target,
            "e.stream": None if where.stream is None else STREAM_CODES.get(where.stream, -1),
            "e.kind": where.kind,
            "e.outcome": where.outcome,
        }
        text = "".join(
            f" AND {column} = {values.mark(wanted)}" for column, wanted in equal.items() if wanted is not None
        )
        if where.risk_at_least is not None:
            text += f" AND e.risk >= {values.mark(where.risk_at_least)}"
        return text


def read_activity(tenant_id: int, query: ActivityQuery) -> Asking[ActivityPage]:
    """One page of a tenant's feed."""
    walk = yield from plan_walk(tenant_id, query)
    if walk is None:
        return EMPTY
    floor = None
    if (walk.is_filtered or query.where.text is not None) and not walk.few:
        floor = yield from find_floor(walk, query.after)
    if query.where.text is not None:
        return (yield from search(walk, query, floor))
    rows = yield select_events(walk, query.after, floor, query.limit + 1)
    page = cut_page([parse_event(row) for row in rows], query, floor)
    if query.payloads:
        return replace(page, events=(yield from attach(tenant_id, page.events)))
    return page


def plan_walk(tenant_id: int, query: ActivityQuery) -> Asking[Walk | None]:
    """How to find the events; None when the session that is asked for has none."""
    if query.where.session is None:
        return Walk(tenant_id, query.where, query.order)
    found = yield Question(
        "SELECT id, first_at_ns, last_at_ns, events FROM sessions WHERE tenant_id = $1 AND session = $2",
        (tenant_id, query.where.session),
    )
    if not found or found[0][1] is None:
        return None
    session_id, first, last, events = found[0]
    where = replace(
        query.where,
        from_ns=max(first, query.where.from_ns or 0),
        to_ns=min(last + 1, TIME_MAX_NS if query.where.to_ns is None else query.where.to_ns, TIME_MAX_NS),
    )
    return Walk(tenant_id, where, query.order, session_id, few=events <= SCAN_MAX)


def find_floor(walk: Walk, after: Position | None) -> Asking[Position | None]:
    """The place of the last event that this page may look at; None when the feed ends before."""
    values = Values()
    text = f"SELECT e.at_ns, e.id FROM events e WHERE {walk.range(values, after)}{walk.by_time}"
    rows = yield values.question(f"{text} LIMIT 1 OFFSET {values.mark(SCAN_MAX - 1)}")
    return Position(*rows[0]) if rows else None


def select_events(walk: Walk, after: Position | None, floor: Position | None, limit: int) -> Question:
    """The next events that match."""
    values = Values()
    where = walk.range(values, after, floor) + walk.match(values)
    text = f"SELECT {FEED_COLUMNS} FROM {FEED_TABLES} WHERE {where}{walk.by_time}"
    return values.question(f"{text} LIMIT {values.mark(limit)}")


def parse_event(row: Row) -> StoredEvent:
    """A row of FEED_COLUMNS."""
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
    return StoredEvent(row[0], row[1], event, None, row[17])


def cut_page(rows: Sequence[StoredEvent], query: ActivityQuery, floor: Position | None) -> ActivityPage:
    """Take events up to the page's bounds; *floor* is where to continue when they ran out there."""
    taken = rows[: query.limit]
    if query.payloads:
        taken = taken[: count_within(taken, PAGE_PAYLOAD_BYTES)]
    return ActivityPage(taken, taken[-1].position if len(taken) < len(rows) else floor)


def count_within(events: Sequence[StoredEvent], limit_bytes: int) -> int:
    """How many of the first events have payloads of so many bytes together; at least one."""
    total = 0
    for place, stored in enumerate(events):
        total += stored.event.size_bytes
        if place and total > limit_bytes:
            return place
    return len(events)


def attach(tenant_id: int, events: Sequence[StoredEvent]) -> Asking[list[StoredEvent]]:
    """The events with their payloads and extra fields."""
    if not events:
        return []
    values = Values(tenant_id)
    ids = values.marks([stored.id for stored in events])
    rows = yield values.question(
        f"SELECT e.id, e.packed, e.payload, e.extra FROM events e WHERE e.tenant_id = $1 AND e.id IN ({ids})"
    )
    found = {row[0]: row for row in rows}
    whole = []
    for stored in events:
        row = found.get(stored.id)
        if row is not None:
            whole.append(replace(stored, payload=unpack(row[1], row[2]), extra=row[3]))
    return whole


def search(walk: Walk, query: ActivityQuery, floor: Position | None) -> Asking[ActivityPage]:
    """A page of the events that hold a text."""
    needle = (query.where.text or "").encode().lower()
    found: list[StoredEvent] = []
    place, looked = query.after, 0
    while looked < SEARCH_MAX:
        rows = yield select_events(walk, place, floor, SEARCH_STEP)
        step = [parse_event(row) for row in rows]
        step = step[: count_within(step, PAGE_PAYLOAD_BYTES)]
        for stored in (yield from attach(walk.tenant_id, step)):
            if holds(stored, needle):
                found.append(stored if query.payloads else replace(stored, payload=None, extra=None))
            if len(found) == query.limit or (query.payloads and count_within(found, PAGE_PAYLOAD_BYTES) < len(found)):
                return ActivityPage(found, stored.position)
        if len(step) == len(rows) < SEARCH_STEP:
            return ActivityPage(found, floor)
        place, looked = step[-1].position, looked + len(step)
    return ActivityPage(found, place)


def holds(stored: StoredEvent, needle: bytes) -> bool:
    """Whether a lower-case text is in an event, ASCII letters of either case being the same."""
    names = (stored.server, stored.event.method or "", stored.event.target or "")
    return any(needle in name.encode().lower() for name in names) or needle in (stored.payload or b"").lower()


def find_event(tenant_id: int, event_id: int) -> Asking[StoredEvent | None]:
    """One event with its payload."""
    rows = yield Question(
        f"SELECT {FEED_COLUMNS} FROM {FEED_TABLES} WHERE e.tenant_id = $1 AND e.id = $2",
        (tenant_id, event_id),
    )
    whole = yield from attach(tenant_id, [parse_event(row) for row in rows])
    return whole[0] if whole else None


def read_news(tenant_id: int, mark: int, until: int, where: Filter, limit: int) -> Asking[News]:
    """Events with ids above *mark*, up to *until*, the first ones first."""
    walk = Walk(tenant_id, where, Order.OLDEST_FIRST)
    values = Values()
    text = f"SELECT {FEED_COLUMNS} FROM {FEED_TABLES} WHERE {walk.range(values, None)}{walk.match(values)}"
    if where.session is not None:
        text += f" AND s.session = {values.mark(where.session)}"
    text += f" AND e.id > {values.mark(mark)} AND e.id <= {values.mark(until)} ORDER BY e.id"
    rows = yield values.question(f"{text} LIMIT {values.mark(limit)}")
    events = [parse_event(row) for row in rows]
    has_more = len(events) == limit
    reached = events[-1].id if has_more else until
    if where.text is not None:
        needle = where.text.encode().lower()
        whole = yield from attach(tenant_id, events)
        events = [replace(stored, payload=None, extra=None) for stored in whole if holds(stored, needle)]
    return News(events, max(mark, reached), has_more)
