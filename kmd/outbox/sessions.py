"""
Sessions in the outbox: found or made when a relay connects, and listed by when they ended.

`streams.open` holds the positions of a stream's unanswered requests, as pairs of 64-bit numbers (offset, index).
Each commit writes them with its offsets, so whoever goes on after a restart pairs even the oldest of them.

A session is forgotten when nothing of it is left to do: it ended some time ago, every destination knows that, and a
bound has removed the last of its events. A relay that came again nonetheless would send under the same identities.
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
FORGET_STEP = 500
"""How many ended sessions one step looks at, so that commits can go between two steps."""
FORGET_AFTER_NS = 24 * 3600 * 10**9
"""An end that is younger may still be told again: by a relay that did not hear the answer, or by its spool."""
FORGOTTEN = "sessions that were forgotten"
"""The row of `evictions` that keeps the bytes of their gaps; status counts those as gaps and not as evictions."""
SELECT_ENDED = f"SELECT id, end_seq FROM sessions WHERE end_seq > ? ORDER BY end_seq LIMIT {FORGET_STEP}"
SELECT_FORGETTABLE = """
SELECT s.id, s.gap_bytes FROM sessions s WHERE s.end_seq > ?1 AND s.end_seq <= ?2
    AND s.end_seq < (SELECT max(end_seq) FROM sessions WHERE end_seq IS NOT NULL)
    AND (s.ended_at_ns < ?3 OR s.ended_at_ns > ?4)
    AND NOT EXISTS (SELECT 1 FROM events e WHERE e.session_id = s.id)
    AND NOT EXISTS (SELECT 1 FROM quarantine q WHERE q.session_id = s.id)"""
"""The last end stays: the next one is numbered after it."""
INTEGER_MAX = (1 << 63) - 1
SELECT_UNENDED = """
SELECT s.id, s.session, s.relay, max(s.started_at_ns, coalesce((SELECT at_ns FROM events WHERE seq =
    (SELECT max(seq) FROM events WHERE session_id = s.id)), 0))
FROM sessions s WHERE s.ended_at_ns IS NULL"""


@dataclass(frozen=True, slots=True)
class KnownSession:
    """
    A session as the outbox has it. open_requests: those without an answer, oldest first, without payloads.

    ended_at_ns, closed_first: the end that it had before it was opened again.
    """

    session_id: int
    durable: dict[Stream, int]
    gap_bytes: int
    open_requests: list[Message] = field(default_factory=list)
    ended_at_ns: int | None = None
    closed_first: str = ""


@dataclass(frozen=True, slots=True)
class OpenSession:
    """A session that is not over. relay: which process its relay is. last_at_ns: when it was last heard of."""

    session_id: int
    session: str
    relay: str
    last_at_ns: int


def find_session(db: Any, start: SessionStart, relay: str) -> KnownSession:
    """Within a transaction: find or make a session; it is not over while a relay is connected."""
    row = (start.session, start.name, start.command, start.pid, start.started_at_ns)
    db.execute(
        "INSERT OR IGNORE INTO sessions (session, name, command, pid, started_at_ns) VALUES (?, ?, ?, ?, ?)", row
    )
    query = "SELECT id, gap_bytes, ended_at_ns, closed_first FROM sessions WHERE session = ?"
    session_id, gap_bytes, *end = db.execute(query, (start.session,)).fetchone()
    db.execute(
        "UPDATE sessions SET ended_at_ns = NULL, closed_first = NULL, relay = ? WHERE id = ?", (relay, session_id)
    )
    query = "SELECT stream, durable, open FROM streams WHERE session_id = ?"
    streams = db.execute(query, (session_id,)).fetchall()
    durable = {Stream(stream): offset for stream, offset, _ in streams}
    places = [(session_id, stream, *position) for stream, _, packed in streams for position in unpack(packed)]
    return KnownSession(session_id, durable, gap_bytes, read_messages(db, places), end[0], end[1] or "")


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


def forget_sessions(db: Any, after_end_seq: int, told_end_seq: int, now_ns: int) -> int:
    """
    Within a transaction: forget those of the next FORGET_STEP ended sessions of which nothing is left to do.

    told_end_seq: up to which end every destination has been told. Returns the last end that was looked at; 0: none is
    left to look at.
    """
    looked = db.execute(SELECT_ENDED, (after_end_seq,)).fetchall()
    if not looked:
        return 0
    until = min(looked[-1][1], told_end_seq)
    # An end that lies in the future was stamped by a clock that was wrong.
    times = (now_ns - FORGET_AFTER_NS, now_ns + FORGET_AFTER_NS)
    found = db.execute(SELECT_FORGETTABLE, (after_end_seq, until, *times)).fetchall()
    if found:
        ids = [(session_id,) for session_id, _ in found]
        db.executemany("DELETE FROM streams WHERE session_id = ?", ids)
        db.executemany("DELETE FROM sessions WHERE id = ?", ids)
        keep_gaps(db, sum(gap_bytes for _, gap_bytes in found), len(found))
    last: int = looked[-1][1]
    return last


def keep_gaps(db: Any, gap_bytes: int, sessions: int) -> None:
    """Add to what forgotten sessions have lost, which is counted for ever."""
    query = "SELECT events, bytes FROM evictions WHERE reason = ?"
    before = db.execute(query, (FORGOTTEN,)).fetchone() or (0, 0)
    row = (FORGOTTEN, before[0] + sessions, min(before[1] + gap_bytes, INTEGER_MAX))
    db.execute("INSERT OR REPLACE INTO evictions (reason, events, bytes, until_seq) VALUES (?, ?, ?, 0)", row)


def read_ends(rows: Any) -> list[SessionEnd]:
    """The ends of sessions in rows of SELECT_ENDS."""
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
