"""What the next POST carries. Pure: rows in, batch out."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from kmd.mcp.row import Row, SessionEnd, SessionStart
from kmd.wire import Batch, Event, Session, payload_fields

PROBE_MAX_EVENTS = 50
"""While a destination is ill, each try is small."""
PAYLOAD_TEXT_MAX_BYTES = 1 << 20
"""Larger payloads travel as base64, so that the largest still fits the server's bound on a body."""


GROW_AFTER = 32
"""Batches at the limit before a larger one is tried: a server's limit costs one refusal in so many requests."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """
    A refused stretch of events, halved until the offender stands alone.

    until_seq: the last event of the refused batch; max_events: how many the next try may carry; taken_events: the
    largest part of the stretch that was taken.
    """

    until_seq: int
    max_events: int
    taken_events: int = 0


class Limit(msgspec.Struct, frozen=True, omit_defaults=True):
    """
    How many events a destination takes at once, as its refusals have shown.

    events: of the next batch, 0 for as many as configured. known: that many were taken before. streak: batches of
    *events* events that were taken since.
    """

    events: int = 0
    known: int = 0
    streak: int = 0


def plan_batch(rows: Sequence[Row], suspect: Suspect | None) -> Sequence[Row]:
    """
    Choose the events that the next POST carries.

    Takes: rows in `seq` order, all above the destination's cursor, within the batch limits already.
    Returns: a prefix of them; while a refused stretch is being halved, only events of that stretch.
    """
    if suspect is None:
        return rows
    guilty = [row for row in rows if row.seq <= suspect.until_seq]
    return guilty[: suspect.max_events] or rows


def narrow(rows: Sequence[Row]) -> Suspect | None:
    """After *rows* were refused: try half of them; None when one event stands alone and is the offender."""
    if len(rows) == 1:
        return None
    return Suspect(until_seq=rows[-1].seq, max_events=len(rows) // 2)


def widen(suspect: Suspect | None, settled_seq: int, events: int = 0) -> Suspect | None:
    """After *events* were taken up to *settled_seq*: the offender is in the rest, halved again, or there is none."""
    if suspect is None or settled_seq >= suspect.until_seq:
        return None
    rest = suspect.until_seq - settled_seq
    return Suspect(suspect.until_seq, max(1, rest // 2), max(suspect.taken_events, events))


def limit_events(limit: Limit, configured: int) -> int:
    """How many events the next batch may carry."""
    return min(configured, limit.events) if limit.events else configured


def learn_taken(limit: Limit, suspect: Suspect | None, settled_seq: int, events: int, configured: int) -> Limit:
    """
    After a batch of *events* was taken up to *settled_seq*.

    A refused stretch that was taken in parts to its last event held no offender: it was too long. A limit that has
    held for a while is doubled, as servers are changed, until it is the configured one.
    """
    if events >= configured:
        return Limit()
    if suspect is not None:
        if settled_seq < suspect.until_seq:
            return limit
        return Limit(taken := max(1, suspect.taken_events, events), taken)
    if not limit.events or events < limit.events:
        return limit
    if limit.streak + 1 < GROW_AFTER:
        return Limit(limit.events, limit.events, limit.streak + 1)
    return Limit(min(limit.events * 2, configured), limit.events)


def learn_refused(limit: Limit, events: int) -> Limit | None:
    """After a batch of *events* was refused: the limit again, if that is known to be the matter."""
    return Limit(limit.known, limit.known) if 0 < limit.known < events else None


def render_session(start: SessionStart, ended_at_ns: int | None, closed_first: str, host: str) -> Session:
    """A session as the wire describes it."""
    return Session(
        session=start.session,
        name=start.name,
        command=start.command,
        started_at_ns=start.started_at_ns,
        ended_at_ns=ended_at_ns,
        closed_first=closed_first if ended_at_ns is not None else "",
        host=host,
    )


def render_batch(
    rows: Sequence[Row],
    batch_id: str,
    sent_by: str,
    host: str,
    lost_events: int = 0,
    ends: Sequence[SessionEnd] = (),
) -> bytes:
    """The JSON body of a batch: each event, each of their sessions once, sessions that ended, what will never come."""
    sessions = {end.start.session: render_session(end.start, end.ended_at_ns, end.closed_first, host) for end in ends}
    sessions |= {
        row.session.session: render_session(row.session, row.ended_at_ns, row.closed_first, host) for row in rows
    }
    events = tuple(render_event(row) for row in rows)
    return msgspec.json.encode(
        Batch(
            batch_id=batch_id,
            sent_by=sent_by,
            lost_events=lost_events,
            sessions=tuple(sessions.values()),
            events=events,
        )
    )


def render_event(row: Row, *, with_payload: bool = True) -> Event:
    """A row as the wire's Event."""
    m = row.message
    text, in_base64 = payload_fields(m.payload, PAYLOAD_TEXT_MAX_BYTES) if with_payload else (None, None)
    return Event(
        session=row.session.session,
        stream=m.stream,
        offset=m.offset,
        index=m.index,
        at_ns=m.at_ns,
        kind=m.kind,
        method=m.method,
        target=m.target,
        rpc_id=m.rpc_id,
        size_bytes=m.size_bytes,
        took_ns=m.took_ns,
        outcome=m.outcome,
        error_code=m.error_code,
        truncated=m.sha256 is not None,
        sha256=m.sha256,
        payload=text,
        payload_base64=in_base64,
    )
