"""All destinations: started from the configuration, started anew when it changes, asked together."""

from dataclasses import replace

import structlog
import trio

from kmd.config import Config
from kmd.errors import OutboxCorrupt
from kmd.outbox.outbox import Outbox
from kmd.sync.destination import DestinationLoop, Sender

RESTART_S = 60.0
"""Before a destination loop that failed through a fault of ours is started again."""

log = structlog.get_logger(__name__)


class Fleet:
    """The destination loops that run now."""

    def __init__(
        self, outbox: Outbox, writer_limiter: trio.CapacityLimiter, sender: Sender, nursery: trio.Nursery
    ) -> None:
        self._outbox = outbox
        self._writer_limiter = writer_limiter
        self._sender = sender
        self._nursery = nursery
        self._running: dict[str, tuple[DestinationLoop, trio.CancelScope]] = {}
        self._one_at_a_time = trio.Lock()
        self._is_first = True

    @property
    def loops(self) -> list[DestinationLoop]:
        return [loop for loop, _ in self._running.values()]

    @property
    def lowest_cursor(self) -> int:
        """The cursor of the destination that is furthest behind; the last event when there is no destination."""
        return min((loop.cursor for loop in self.loops), default=self._outbox.last_seq)

    @property
    def told_end_seq(self) -> int:
        """Up to which end of a session every destination has been told; the last one when there is no destination."""
        return min((loop.ends_cursor for loop in self.loops), default=self._outbox.last_end_seq)

    async def apply(self, config: Config) -> None:
        """
        Run exactly the destinations of *config*. One that is new starts with the oldest event that is kept.

        The old ones stay listed until the new ones are there: without them everything would seem to be settled.
        When the configuration is read again nothing is waited for that was waited for before: somebody has acted.
        """
        is_first, self._is_first = self._is_first, False
        async with self._one_at_a_time:
            for _, scope in self._running.values():
                scope.cancel()
            running = {}
            for destination in config.destinations:
                row = await trio.to_thread.run_sync(
                    self._outbox.open_destination, destination.name, limiter=self._writer_limiter
                )
                row = row if is_first else replace(row, course="")
                loop = DestinationLoop(destination, config, self._outbox, row, self._writer_limiter, self._sender)
                running[destination.name] = loop, trio.CancelScope()
            self._running = running
            for loop, scope in running.values():
                self._nursery.start_soon(run_within, scope, loop)

    def notice(self) -> None:
        """New events were committed."""
        for loop in self.loops:
            loop.notice()


async def run_within(scope: trio.CancelScope, loop: DestinationLoop) -> None:
    """Run *loop* until its scope is cancelled. A fault of ours in one destination must not stop the rest of kmd."""
    with scope:
        while True:
            try:
                await loop.run()
            except OutboxCorrupt:
                raise
            except Exception as exc:
                loop.note_fault(exc, RESTART_S)
                log.exception("a destination failed and is started again", destination=loop.destination.name)
                await trio.sleep(RESTART_S)
