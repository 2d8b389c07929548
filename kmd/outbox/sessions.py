"""
Sessions in the outbox: found or made when a relay connects, and listed by when they ended.

`streams.open` holds the positions of a stream's unanswered requests, as pairs of 64-bit numbers (offset, index).
Each commit writes them with its offsets, so whoever goes on after a restart pairs even the oldest of them.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from kmd.mcp.exchange import Position
from kmd.mcp.message import Message
from kmd.mcp.names import Stream
from kmd.mcp.row import SessionEnd, SessionStart
from kmd.outbox.rows import MESSAGE_COLUMNS, SESSION_COLUMNS, parse_row

UPSERT_STREAM = """
INSERT INTO streams (session_id, stream, durable, open) VALUES (?, ?, ?, ?)
ON CONFLICT DO UPDATE SET durable = max(durable, excluded.durable), open = excluded.open"""
UPDATE_SESSION = """
UPDATE sessions SET gap_bytes = max(gap_bytes, ?1), closed_first = coalesce(?3, closed_first),
    end_seq = CASE WHEN ?2 IS NULL OR ended_at_ns IS ?2 THEN end_seq
        ELSE (SELECT coalesce(max(end_seq), 0) + 1 FROM sessions WHERE end_seq IS NOT NULL) END,
    ended_at_ns = coalesce(?2, ended_at_ns)
WHERE id = ?4"""
LAST_END_SEQ = "SELECT coalesce(max(end_seq), 0) FROM sessions WHERE end_seq IS NOT NULL"
SELECT_OPEN = f"""
SELECT e.seq, {SESSION_COLUMNS}, {MESSAGE_COLUMNS.format("e").replace("e.payload", "NULL")}
FROM events e JOIN sessions s ON s.id = e.session_id
WHERE e.session_id = ? AND e.stream = ? AND e.offset = ? AND e.idx = ?"""
SELECT_ENDS = """
SELECT end_seq, session, name, command, pid, started_at_ns, ended_at_ns, closed_first FROM sessions
WHERE end_seq > ? AND ended_at_ns IS NOT NULL ORDER BY end_seq LIMIT ?"""


@dataclass(frozen=True, slots=True)
class KnownSession:
    """A session as the outbox has it. open_requests: those without an answer, oldest first, without payloads."""

    session_id: int
    durable: dict[Stream, int]
    gap_bytes: int
    open_requests: list[Message] = field(default_factory=list)


def find_session(db: Any, start: SessionStart) -> KnownSession:
    """Within a transaction: find or make a session; it is not over while a relay is connected."""
    row = (start.session, start.name, start.command, start.pid, start.started_at_ns)
    db.execute(
        "INSERT OR IGNORE INTO sessions (session, name, command, pid, started_at_ns) VALUES (?, ?, ?, ?, ?)", row
    )
    db.execute("UPDATE sessions SET ended_at_ns = NULL WHERE session = ?", (start.session,))
    query = "SELECT id, gap_bytes FROM sessions WHERE session = ?"
    session_id, gap_bytes = db.execute(query, (start.session,)).fetchone()
    query = "SELECT stream, durable, open FROM streams WHERE session_id = ?"
    streams = db.execute(query, (session_id,)).fetchall()
    durable = {Stream(stream): offset for stream, offset, _ in streams}
    places = [(session_id, stream, *position) for stream, _, packed in streams for position in unpack(packed)]
    return KnownSession(session_id, durable, gap_bytes, read_messages(db, places))


def read_messages(db: Any, places: Sequence[tuple[int, str, int, int]]) -> list[Message]:
    """The messages at (session id, stream, offset, index) that are still kept, in the order of their commits."""
    found = [row for place in places if (row := db.execute(SELECT_OPEN, place).fetchone()) is not None]
    return [row.message for row in sorted(map(parse_row, found), key=lambda row: row.seq)]


def store_streams(
    db: Any, session_id: int, durable: Mapping[Stream, int], open_: Mapping[Stream, Sequence[Position]]
) -> None:
    """Within a transaction: how far each stream is durable, and which of its requests are unanswered."""
    rows = [(session_id, s._value_, offset, pack(open_.get(s, ()))) for s, offset in durable.items()]
    db.executemany(UPSERT_STREAM, rows)


def read_ends(rows: Any) -> list[SessionEnd]:
    """The values of SELECT_ENDS."""
    return [
        SessionEnd(end_seq=seq, start=SessionStart(*start), ended_at_ns=ended_at_ns, closed_first=closed_first or "")
        for seq, *start, ended_at_ns, closed_first in rows
    ]


def pack(positions: Sequence[Position]) -> bytes | None:
    """Positions as the bytes of `streams.open`."""
    numbers = list(chain.from_iterable(positions))
    return struct.pack(f"<{len(numbers)}q", *numbers) if numbers else None


def unpack(packed: bytes | None) -> list[Position]:
    """The positions in `streams.open`; none where a flipped bit has made it anything else."""
    if not packed or len(packed) % 16:
        return []
    return [(offset, index) for offset, index in struct.iter_unpack("<qq", packed)]
