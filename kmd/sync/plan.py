"""What the next POST carries. Pure: rows in, batch out."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from kmd.mcp.row import Row
from kmd.wire import Batch, Event, Session, payload_fields

PROBE_MAX_EVENTS = 50
"""While a destination is ill, each try is small."""
PAYLOAD_TEXT_MAX_BYTES = 1 << 20
"""Larger payloads travel as base64, so that the largest still fits the server's bound on a body."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """
    A refused stretch of events, halved until the offender stands alone.

    until_seq: the last event of the refused batch; max_events: how many the next try may carry.
    """

    until_seq: int
    max_events: int


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


def widen(suspect: Suspect | None, settled_seq: int) -> Suspect | None:
    """After a part was taken up to *settled_seq*: the offender is in the rest, halved again, or there is none."""
    if suspect is None or settled_seq >= suspect.until_seq:
        return None
    rest = suspect.until_seq - settled_seq
    return Suspect(suspect.until_seq, max_events=max(1, rest // 2))


def render_batch(rows: Sequence[Row], batch_id: str, sent_by: str, host: str, lost_events: int = 0) -> bytes:
    """The JSON body of a batch: each event, each of their sessions once, and what will never come."""
    sessions = {
        row.session.session: Session(
            session=row.session.session,
            name=row.session.name,
            command=row.session.command,
            started_at_ns=row.session.started_at_ns,
            ended_at_ns=row.ended_at_ns,
            host=host,
        )
        for row in rows
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
