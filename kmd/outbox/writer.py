"""Group commit: everything that waits becomes one transaction, and its waiters go on once COMMIT has returned."""

from collections.abc import Callable
from dataclasses import dataclass, field

import structlog
import trio

from kmd.errors import OutboxCorrupt, OutboxError, OutboxFull
from kmd.mcp.row import SessionStart
from kmd.outbox.outbox import Intake, Outbox
from kmd.outbox.sessions import KnownSession

GROUP_MAX = 256
"""Connections whose intakes share a commit; each brings at most one at a time."""
GROUP_MAX_BYTES = 4 << 20
"""Payloads of one commit, give or take the last intake: SQLite holds the pages of a transaction in memory."""
RETRY_S = 1.0
"""Pause after a commit that failed. Nothing is acknowledged meanwhile, so relays hold what they have."""

log = structlog.get_logger(__name__)


@dataclass(eq=False, slots=True)
class Pending:
    """An intake and the event that tells its connection that it is durable."""

    intake: Intake
    durable: trio.Event = field(default_factory=trio.Event)


class Writer:
    """
    The one door for commits.

    `committed` is called, on the trio thread, after each commit and when there is no room for one.
    `last_error` is what the latest commit failed with, None when it succeeded.

    A try after a sync that failed is the whole transaction again, never the sync alone: the kernel may have
    dropped the pages that it could not write. The connection stays: SQLite has rolled back to what is safe, and
    writes the log from there; a new connection would find the failed try in the log and take it for committed.
    """

    def __init__(self, outbox: Outbox, committed: Callable[[], None]) -> None:
        self._outbox = outbox
        self._committed = committed
        self._send, self._receive = trio.open_memory_channel[Pending](0)
        self.one_at_a_time = trio.CapacityLimiter(1)
        self.last_error: OutboxError | None = None

    async def commit(self, intake: Intake) -> None:
        """Returns when *intake* is durable."""
        pending = Pending(intake)
        await self._send.send(pending)
        await pending.durable.wait()

    async def open_session(self, start: SessionStart, relay: str = "") -> KnownSession:
        """See Outbox.open_session. Raises OutboxError; the relay that is sent away by it comes again."""
        try:
            known = await trio.to_thread.run_sync(self._outbox.open_session, start, relay, limiter=self.one_at_a_time)
        except OutboxError as exc:
            self._note_failure(exc)
            raise
        self.last_error = None
        return known

    async def run(self) -> None:
        """Commit groups for ever. Raises OutboxCorrupt: then there is nothing to write to any more."""
        async for first in self._receive:
            group = self._gather(first)
            await self._commit_group([pending.intake for pending in group])
            for pending in group:
                pending.durable.set()
            del first, group, pending  # or what was committed would stay in memory until the next commit
            self._committed()

    async def _commit_group(self, intakes: list[Intake]) -> None:
        while True:
            try:
                await trio.to_thread.run_sync(self._outbox.commit, intakes, limiter=self.one_at_a_time)
            except OutboxCorrupt:
                raise
            except OutboxError as exc:
                self._note_failure(exc)
                await trio.sleep(RETRY_S)
            else:
                self.last_error = None
                return

    def _note_failure(self, exc: OutboxError) -> None:
        """Show what a commit failed with, and have the bounds looked at if that was the matter."""
        if self.last_error is None:
            log.error("commit failed, trying again", error=str(exc), hint=exc.hint)
        self.last_error = exc
        if isinstance(exc, OutboxFull):
            self._committed()

    def _gather(self, first: Pending) -> list[Pending]:
        """*first* and what else waits, within the bounds of a group."""
        group, size = [first], first.intake.size_bytes
        while len(group) < GROUP_MAX and size < GROUP_MAX_BYTES:
            try:
                group.append(self._receive.receive_nowait())
            except trio.WouldBlock:
                break
            size += group[-1].intake.size_bytes
        return group
