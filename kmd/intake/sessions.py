"""Which sessions are live, and the one place where a connection becomes a session."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from kmd.intake.capacity import Capacity
from kmd.intake.relay_life import read_mark
from kmd.mcp.conversation import Conversation
from kmd.mcp.names import Stream
from kmd.mcp.row import SessionStart
from kmd.outbox.sessions import KnownSession
from kmd.outbox.writer import Writer


@dataclass(eq=False, slots=True)
class LiveSession:
    """A session whose relay is connected now; the counts are since it connected. is_over: its end was committed."""

    start: SessionStart
    events: int = 0
    gap_bytes: int = 0
    bytes_seen: dict[Stream, int] = field(default_factory=dict)
    durable: dict[Stream, int] = field(default_factory=dict)
    conversation: Conversation | None = None
    is_over: bool = False

    def count(self, stream: Stream, length: int) -> None:
        self.bytes_seen[stream] = self.bytes_seen.get(stream, 0) + length


class Sessions:
    """
    The live sessions by id. One connection per session: a second waits until the first has been drained.

    left: set when a relay has left a session that it had not ended; whoever waits for it puts a new one there.
    left_at_ns: when that was, by session (Unix time).
    """

    def __init__(self, writer: Writer, capacity: Capacity, max_message_bytes: int, *, keep_payloads: bool) -> None:
        self.writer = writer
        self.capacity = capacity
        self.max_message_bytes = max_message_bytes
        self.keep_payloads = keep_payloads
        self._live: dict[str, LiveSession] = {}
        self._locks: dict[str, trio.Lock] = {}
        self.left = trio.Event()
        self.left_at_ns: dict[str, int] = {}

    @property
    def live(self) -> list[LiveSession]:
        return list(self._live.values())

    def is_present(self, session: str) -> bool:
        """Whether a relay is connected for it, or a spool of it is being taken in."""
        return session in self._locks

    @asynccontextmanager
    async def enter(self, start: SessionStart) -> AsyncIterator[tuple[LiveSession, KnownSession]]:
        """A session for as long as its relay is connected, with what the outbox has of it already."""
        lock = self._locks.setdefault(start.session, trio.Lock())
        async with lock:
            known = await self.writer.open_session(start, read_mark(start.relay_pid))
            self.left_at_ns.pop(start.session, None)
            live = LiveSession(start, gap_bytes=known.gap_bytes)
            self._live[start.session] = live
            try:
                yield live, known
            finally:
                del self._live[start.session]
                if not live.is_over:
                    self.left_at_ns[start.session] = time.time_ns()
                    self.left.set()
                if not lock.statistics().tasks_waiting:
                    del self._locks[start.session]
