"""
The outbox: everything kmd knows, in one SQLite file.

`commit` is the only place that takes in messages: one transaction stores the messages of many sessions
together with how far each of their streams is durable, so an acknowledgement sent afterwards is always true.
Nothing here is async; kmd calls the writing half on one thread at a time and the reading half on another.
"""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pysqlite3

from kmd.errors import OutboxCorrupt, OutboxError, OutboxFull
from kmd.mcp.exchange import Position
from kmd.mcp.message import Message
from kmd.mcp.names import Stream
from kmd.mcp.row import Row, SessionEnd, SessionStart
from kmd.outbox.bounds import Limits, Step
from kmd.outbox.database import LAST_SEQ, open_database, transaction, translate
from kmd.outbox.quarantine import Quarantine
from kmd.outbox.repair import check, finish_repair, repair
from kmd.outbox.room import Room
from kmd.outbox.rows import MESSAGE_COLUMNS, SESSION_COLUMNS, parse_row
from kmd.outbox.salvage import LOST
from kmd.outbox.sessions import (
    FORGOTTEN,
    INTEGER_MAX,
    LAST_END_SEQ,
    SELECT_ENDS,
    SELECT_UNENDED,
    UPDATE_SESSION,
    KnownSession,
    OpenSession,
    find_session,
    read_ends,
    store_streams,
)

INSERT_EVENT = """
INSERT INTO events (session_id, stream, offset, idx, at_ns, kind, method, target, rpc_id, size_bytes,
    took_ns, outcome, error_code, sha256, payload)
"""
ROW = "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
ROWS_AT_ONCE = 64
"""
Rows of one statement. The driver lets go of the interpreter at each statement, and a busy thread takes it for
milliseconds: measured beside one, single rows were twenty times slower, and alone they are as fast.
"""
INSERT_NEW = f"{INSERT_EVENT} VALUES {ROW}"
INSERT_MANY = f"{INSERT_EVENT} VALUES {', '.join([ROW] * ROWS_AT_ONCE)}"
INSERT_MISSING = f"""{INSERT_EVENT}
SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15 WHERE NOT EXISTS
    (SELECT 1 FROM events WHERE session_id = ?1 AND stream = ?2 AND offset = ?3 AND idx = ?4)"""
"""For what may be there in part. Not `OR IGNORE`: that uses up a seq for each row that it passes over."""
SELECT_EVENTS = f"""
SELECT e.seq, {SESSION_COLUMNS}, {MESSAGE_COLUMNS.format("e")}
FROM events e JOIN sessions s ON s.id = e.session_id"""
SELECT_EVICTIONS = "SELECT reason, events, bytes FROM evictions WHERE reason <> ?"
SELECT_GAPS = """
SELECT coalesce(sum(gap_bytes >> 32), 0), coalesce(sum(gap_bytes & 0xffffffff), 0) FROM
    (SELECT gap_bytes FROM sessions UNION ALL SELECT bytes FROM evictions WHERE reason = ?)"""
"""In two halves: a few relays that speak of impossible gaps are no reason for an integer overflow."""
SELECT_LOST = "SELECT coalesce(sum(events), 0) FROM evictions WHERE reason = ?"
LOST_REASONS = (Step.DELETE_UNSETTLED._value_, LOST)
NO_LIMITS = Limits(max_bytes=1 << 50)


@dataclass(frozen=True, slots=True)
class Intake:
    """
    What one connection has to commit: messages, and how far each stream is durable once they are.

    open_requests: where the requests stand that are unanswered then, oldest first.
    """

    session_id: int
    messages: Sequence[Message]
    durable: Mapping[Stream, int]
    gap_bytes: int = 0
    ended_at_ns: int | None = None
    closed_first: str | None = None
    keep_payloads: bool = True
    open_requests: Mapping[Stream, Sequence[Position]] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Bytes of all its payloads together."""
        return sum([len(message.payload or b"") for message in self.messages])


@dataclass(frozen=True, slots=True)
class Totals:
    """Sizes for status. oldest_pending_at_ns: when the oldest event above the lowest cursor was observed.
    evicted: by reason, how many events and payload bytes a bound has removed."""

    first_seq: int
    last_seq: int
    bytes: int
    gap_bytes: int
    oldest_pending_at_ns: int | None
    evicted: dict[str, tuple[int, int]]

    @property
    def events(self) -> int:
        return self.last_seq - self.first_seq + 1 if self.first_seq else 0


@dataclass(frozen=True, slots=True)
class DestinationRow:
    """
    What the outbox remembers of a destination. settled: events that it has taken over time. ends_cursor: up to which
    end of a session it has been told. course: what sync has to remember (kmd.sync.course).
    """

    cursor: int
    settled: int
    quarantined: int
    last_success_at_ns: int | None
    ends_cursor: int
    course: str


class Outbox:
    """An open outbox. A context manager; raises the errors of kmd.errors, never SQLite's own."""

    def __init__(
        self, path: Path, limits: Limits = NO_LIMITS, *, check_first: bool = False, is_damaged: bool = False
    ) -> None:
        """
        Open or make the file; a damaged one is repaired. check_first: read through it, as after a crash. is_damaged:
        somebody has met damage in it, which that may not find.
        """
        self.path = path
        try:
            finish_repair(path)
        except OSError as exc:
            problem = f"{path}: a repair cannot be finished ({exc.strerror})"
            raise OutboxError(problem, hint="look at its folder") from exc
        try:
            if is_damaged:
                raise OutboxCorrupt("the outbox is damaged")
            self._open(limits, check_first=check_first)
        except OutboxCorrupt:
            repair(path)
            self._open(limits, check_first=False)

    def _open(self, limits: Limits, *, check_first: bool) -> None:
        self._writer, self._reader = open_database(self.path)
        try:
            if check_first:
                check(self._writer)
            self.room = Room(self._writer, self.path, limits)
            self.room.set_limits(limits)
            self.quarantine = Quarantine(self._writer, self._reader, lambda: self.room.limits.max_bytes)
            self.last_seq = self._scalar(LAST_SEQ)
            self.last_end_seq = self._scalar(LAST_END_SEQ)
        except pysqlite3.Error as exc:
            self._close()
            raise translate(exc) from exc
        except OutboxError:
            self._close()
            raise

    def _close(self) -> None:
        self._reader.close()
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    # The writing half: one caller at a time.

    def open_session(self, start: SessionStart, relay: str = "") -> KnownSession:
        """
        Find or make a session; a relay that connects again goes on where its streams are durable.

        relay: which process that is (kmd.intake.relay_life), "" when that is not known.
        """
        with self._transaction() as db:
            return find_session(db, start, relay)

    def commit(self, intakes: Iterable[Intake]) -> None:
        """Store all of *intakes* in one transaction; what is there already stays as it is."""
        with self._transaction() as db:
            for intake in intakes:
                rows = [render_row(intake, message) for message in intake.messages]
                try:
                    insert_new(db, rows)
                except pysqlite3.IntegrityError:
                    db.executemany(INSERT_MISSING, rows)
                store_streams(db, intake.session_id, intake.durable, intake.open_requests)
                if intake.gap_bytes or intake.ended_at_ns is not None:
                    row = (intake.gap_bytes, intake.ended_at_ns, intake.closed_first, intake.session_id)
                    db.execute(UPDATE_SESSION, row)
            last_seq = db.execute(LAST_SEQ).fetchone()[0]
            last_end_seq = db.execute(LAST_END_SEQ).fetchone()[0]
        self.last_seq, self.last_end_seq = last_seq, last_end_seq

    def open_destination(self, name: str) -> DestinationRow:
        """Find or make a destination; a new one starts at the beginning of what is kept."""
        with self._transaction() as db:
            db.execute("INSERT OR IGNORE INTO destinations (name, cursor, settled) VALUES (?, 0, 0)", (name,))
        return self.read_destination(name)

    def settle(self, name: str, seqs: Sequence[int], refused: Mapping[int, str], now_ns: int) -> None:
        """Move a destination's cursor over *seqs* (ascending); *refused* of them go to quarantine with a reason."""
        with self._transaction() as db:
            if refused:
                self.quarantine.keep(db, name, refused, now_ns)
            db.execute(
                "UPDATE destinations SET cursor = max(cursor, ?), settled = settled + ?, last_success_at_ns = ?"
                " WHERE name = ?",
                (seqs[-1], len(seqs) - len(refused), now_ns, name),
            )
        if refused:
            self.quarantine.recount()

    def settle_ends(self, name: str, ends_cursor: int, now_ns: int) -> None:
        """A destination knows the ends of sessions up to *ends_cursor*."""
        query = "UPDATE destinations SET ends_cursor = max(ends_cursor, ?), last_success_at_ns = ? WHERE name = ?"
        with self._transaction() as db:
            db.execute(query, (ends_cursor, now_ns, name))

    def keep_course(self, name: str, course: str) -> None:
        """Remember how a destination is doing."""
        with self._transaction() as db:
            db.execute("UPDATE destinations SET course = ? WHERE name = ?", (course, name))

    @contextmanager
    def _transaction(self) -> Iterator[Any]:
        """One transaction; when there was no room for it, room is looked for, so that the next try may succeed."""
        try:
            with transaction(self._writer) as db:
                yield db
        except OutboxFull:
            self.room.find_space()
            raise

    # The reading half: its own connection, never waits for a commit.

    def read_events(self, after_seq: int, limit: int, max_payload_bytes: int = 1 << 62) -> list[Row]:
        """The next events above *after_seq*, at most *limit*; at least one, then up to the payload bound."""
        rows: list[Row] = []
        payload_bytes = 0
        with closing(
            self._read(f"{SELECT_EVENTS} WHERE e.seq > ? ORDER BY e.seq LIMIT ?", (after_seq, limit))
        ) as found:
            for values in found:
                row = parse_row(values)
                payload_bytes += len(row.message.payload or b"")
                if rows and payload_bytes > max_payload_bytes:
                    break
                rows.append(row)
        return rows

    def read_ends(self, after_seq: int, limit: int) -> list[SessionEnd]:
        """The next sessions that ended after the end numbered *after_seq*, at most *limit*."""
        return read_ends(self._read(SELECT_ENDS, (after_seq, limit)))

    def read_open_sessions(self) -> list[OpenSession]:
        """The sessions that are not over."""
        return [OpenSession(row[0], row[1], row[2] or "", row[3]) for row in self._read(SELECT_UNENDED)]

    def read_last_seq(self) -> int:
        """The latest commit that readers can see; `last_seq` follows a moment later."""
        return self._scalar(LAST_SEQ)

    def read_destination(self, name: str) -> DestinationRow:
        query = "SELECT cursor, settled, last_success_at_ns, ends_cursor, course FROM destinations WHERE name = ?"
        cursor, settled, last_success_at_ns, ends_cursor, course = next(self._read(query, (name,)))
        quarantined = self.quarantine.counts.get(name, 0)
        return DestinationRow(cursor, settled, quarantined, last_success_at_ns, ends_cursor, course)

    def read_lost_events(self) -> int:
        """How many events went, ever, before every destination had them."""
        return sum(next(self._read(SELECT_LOST, (reason,)))[0] for reason in LOST_REASONS)

    def read_totals(self, lowest_cursor: int) -> Totals:
        """Sizes of the outbox; *lowest_cursor* is the one of the destination that is furthest behind."""
        # Two queries: SQLite answers min or max from the index, but scans the table for both at once.
        first = self._scalar("SELECT coalesce(min(seq), 0) FROM events")
        last = self._scalar(LAST_SEQ)
        query = "SELECT at_ns FROM events WHERE seq > ? ORDER BY seq LIMIT 1"
        oldest = next(self._read(query, (lowest_cursor,)), None)
        pages = self._scalar("PRAGMA page_count") - self._scalar("PRAGMA freelist_count")
        used = pages * self._scalar("PRAGMA page_size")
        high, low = next(self._read(SELECT_GAPS, (FORGOTTEN,)))
        gap_bytes = min((high << 32) + low, INTEGER_MAX)
        evicted = {reason: (events, size) for reason, events, size in self._read(SELECT_EVICTIONS, (FORGOTTEN,))}
        return Totals(first, last, used, gap_bytes, oldest[0] if oldest else None, evicted)

    def _read(self, query: str, values: tuple[object, ...] = ()) -> Generator[Any]:
        """The rows; damage may be met at any of them."""
        try:
            yield from self._reader.execute(query, values)
        except pysqlite3.Error as exc:
            raise translate(exc) from exc

    def _scalar(self, query: str) -> int:
        number: int = next(self._read(query))[0]
        return number


def insert_new(db: Any, rows: Sequence[tuple[object, ...]]) -> None:
    """Insert *rows*, none of which may be there. Raises pysqlite3.IntegrityError when one is."""
    whole = len(rows) - len(rows) % ROWS_AT_ONCE
    for start in range(0, whole, ROWS_AT_ONCE):
        db.execute(INSERT_MANY, list(chain.from_iterable(rows[start : start + ROWS_AT_ONCE])))
    db.executemany(INSERT_NEW, rows[whole:])


def render_row(intake: Intake, m: Message) -> tuple[object, ...]:
    """The values of INSERT_EVENT. Plain texts for the enums: SQLite's driver would adapt each one in Python."""
    return (
        intake.session_id,
        m.stream._value_,
        m.offset,
        m.index,
        m.at_ns,
        m.kind._value_,
        m.method,
        m.target,
        m.rpc_id,
        m.size_bytes,
        m.took_ns,
        m.outcome and m.outcome._value_,
        m.error_code,
        m.sha256,
        m.payload if intake.keep_payloads else None,
    )
