"""Which sessions are live, and the one place where a connection becomes a session."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from kmd.intake.capacity import Capacity
from kmd.mcp.conversation import Conversation
from kmd.mcp.names import Stream
from kmd.mcp.row import SessionStart
from kmd.outbox.sessions import KnownSession
from kmd.outbox.writer import Writer


@dataclass(eq=False, slots=True)
class LiveSession:
    """A session whose relay is connected now; the counts are since it connected."""

    start: SessionStart
    events: int = 0
    gap_bytes: int = 0
    bytes_seen: dict[Stream, int] = field(default_factory=dict)
    durable: dict[Stream, int] = field(default_factory=dict)
    conversation: Conversation | None = None

    def count(self, stream: Stream, length: int) -> None:
        self.bytes_seen[stream] = self.bytes_seen.get(stream, 0) + length


class Sessions:
    """The live sessions by id. One connection per session: a second waits until the first has been drained."""

    def __init__(self, writer: Writer, capacity: Capacity, max_message_bytes: int, *, keep_payloads: bool) -> None:
        self.writer = writer
        self.capacity = capacity
        self.max_message_bytes = max_message_bytes
        self.keep_payloads = keep_payloads
        self._live: dict[str, LiveSession] = {}
        self._locks: dict[str, trio.Lock] = {}

    @property
    def live(self) -> list[LiveSession]:
        return list(self._live.values())

    @asynccontextmanager
    async def enter(self, start: SessionStart) -> AsyncIterator[tuple[LiveSession, KnownSession]]:
        """A session for as long as its relay is connected, with what the outbox has of it already."""
        lock = self._locks.setdefault(start.session, trio.Lock())
        async with lock:
            known = await self.writer.open_session(start)
            live = LiveSession(start, gap_bytes=known.gap_bytes)
            self._live[start.session] = live
            try:
                yield live, known
            finally:
                del self._live[start.session]
                if not lock.statistics().tasks_waiting:
                    del self._locks[start.session]
