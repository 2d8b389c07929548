"""
Events that a destination refused, kept for a person: a copy of each, which no bound on events touches.

An entry is named by its destination and the event's seq. The copies have a bound of their own, a share of the
outbox; beyond it the oldest entries go, and are counted like everything else that goes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pysqlite3

from kmd.mcp.row import Row
from kmd.outbox.database import transaction, translate
from kmd.outbox.rows import MESSAGE_COLUMNS, SESSION_COLUMNS, parse_row

SHARE = 0.25
"""Of the outbox's bound. A server that refuses everything must not crowd out what others still wait for."""
ENTRY_BYTES = 512
"""About what an entry takes besides its payload."""
CROWDED_OUT = "refused events"
DROPPED = "refused events dropped by hand"
"""Reasons under which `kmctl status` counts what went."""

INSERT = f"""
INSERT OR REPLACE INTO quarantine
SELECT r.destination, r.seq, r.reason, r.refused_at_ns, e.session_id, {MESSAGE_COLUMNS.format("e")}
FROM (SELECT ? AS destination, ? AS seq, ? AS reason, ? AS refused_at_ns) r LEFT JOIN events e ON e.seq = r.seq"""
"""An event that a bound has removed in the meantime leaves an entry without an event."""
SELECT = f"""
SELECT q.destination, q.reason, q.refused_at_ns, q.seq, {SESSION_COLUMNS}, {MESSAGE_COLUMNS.format("q")}
FROM quarantine q LEFT JOIN sessions s ON s.id = q.session_id"""
NEWER = f"""
SELECT destination, seq, sum(coalesce(length(payload), 0) + {ENTRY_BYTES}) OVER
    (ORDER BY refused_at_ns DESC, destination DESC, seq DESC) AS newer_bytes FROM quarantine"""
"""Each entry with the size of itself and all newer ones."""
COUNT_EVICTION = """
INSERT INTO evictions VALUES (?, ?, ?, 0)
ON CONFLICT DO UPDATE SET events = events + excluded.events, bytes = bytes + excluded.bytes"""


@dataclass(frozen=True, slots=True)
class Entry:
    """A refused event: what the destination said, and when. row: None when a bound had removed it already."""

    destination: str
    seq: int
    reason: str
    refused_at_ns: int
    row: Row | None


class Quarantine:
    """
    The entries of one outbox. `counts` has how many each destination has.

    `keep` and `remove` are called where commits run, one at a time; the rest reads.
    """

    def __init__(self, writer: Any, reader: Any, max_bytes: Callable[[], int]) -> None:
        self._writer = writer
        self._reader = reader
        self._max_bytes = max_bytes
        self.counts: Mapping[str, int] = self._count(writer)

    def keep(self, db: Any, destination: str, refused: Mapping[int, str], now_ns: int) -> None:
        """Within the transaction *db*: copy the *refused* events (their reasons by seq); `recount` afterwards."""
        db.executemany(INSERT, [(destination, seq, reason, now_ns) for seq, reason in refused.items()])
        room = int(self._max_bytes() * SHARE)
        total = f"SELECT coalesce(sum(coalesce(length(payload), 0) + {ENTRY_BYTES}), 0) FROM quarantine"
        if db.execute(total).fetchone()[0] > room:
            where = f"(destination, seq) IN (SELECT destination, seq FROM ({NEWER}) WHERE newer_bytes > ?)"
            delete(db, where, (room,), CROWDED_OUT)

    def recount(self) -> None:
        """After the commit of what `keep` did."""
        self.counts = self._count(self._writer)

    def remove(self, destination: str, seq: int | None, *, delivered: bool) -> int:
        """
        Take out one entry, or with seq None all of *destination*; returns how many there were.

        delivered: the destination has them now, and they count as settled; else a person wants them gone.
        """
        where = "destination = ? AND (seq = ? OR ? IS NULL)"
        with transaction(self._writer) as db:
            removed = delete(db, where, (destination, seq, seq), "" if delivered else DROPPED)
            if delivered:
                db.execute("UPDATE destinations SET settled = settled + ? WHERE name = ?", (removed, destination))
        self.recount()
        return removed

    def find(self, destination: str | None, seq: int) -> list[Entry]:
        """The entries of event *seq*: one for each destination that refused it, or at most the one asked for."""
        where = "WHERE q.seq = ?1 AND (q.destination = ?2 OR ?2 IS NULL) ORDER BY q.destination"
        return list(self._read(where, (seq, destination)))

    def read(self, destination: str | None, after: tuple[str, int], limit: int) -> list[Entry]:
        """The next entries after (destination, seq), at most *limit*, all destinations' or one's; no payloads."""
        where = "WHERE (q.destination, q.seq) > (?1, ?2) AND (q.destination = ?3 OR ?3 IS NULL)"
        where += " ORDER BY q.destination, q.seq LIMIT ?4"
        return list(self._read(where, (*after, destination, limit), with_payload=False))

    def _read(self, where: str, values: Sequence[object], *, with_payload: bool = True) -> Iterator[Entry]:
        query = SELECT if with_payload else SELECT.replace("q.payload", "NULL")
        try:
            rows = self._reader.execute(f"{query} {where}", values).fetchall()
        except pysqlite3.Error as exc:
            raise translate(exc) from exc
        for name, reason, refused_at_ns, seq, *of_event in rows:
            row = parse_row((seq, *of_event)) if of_event[0] is not None else None
            yield Entry(name, seq, reason, refused_at_ns, row)

    def _count(self, connection: Any) -> dict[str, int]:
        try:
            return dict(connection.execute("SELECT destination, count(*) FROM quarantine GROUP BY destination"))
        except pysqlite3.Error as exc:
            raise translate(exc) from exc


def delete(db: Any, where: str, values: Sequence[object], reason: str) -> int:
    """Delete entries, and count them under *reason* unless it is empty; returns how many went."""
    measure = f"SELECT count(*), coalesce(sum(length(payload)), 0) FROM quarantine WHERE {where}"
    events, size = db.execute(measure, values).fetchone()
    db.execute(f"DELETE FROM quarantine WHERE {where}", values)
    if events and reason:
        db.execute(COUNT_EVICTION, (reason, events, size))
    return int(events)
