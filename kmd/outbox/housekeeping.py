"""Housekeeping: keeps the outbox within its bounds, between commits and never instead of them."""

import time
from collections.abc import Callable

import structlog
import trio

from kmd.errors import OutboxCorrupt, OutboxError
from kmd.memory import give_back_memory
from kmd.outbox.room import Room

GATHER_S = 1.0
"""After a commit: how long until the bounds are looked at."""
QUIET_S = 3.0
"""Without a commit: then memory is given back, once. Under traffic it would only be asked for again."""
LOOK_EVERY_S = 3600.0
"""Age does not wait for commits."""
FORGET_EVERY_S = 3600.0
"""Sessions are small: they need not be looked through after every commit."""

log = structlog.get_logger(__name__)


class Housekeeper:
    """
    `look` has it check soon; `run` works until cancelled.

    fill_percent: which warning level the undelivered events had reached at the last look, 0 for none.
    """

    def __init__(
        self,
        room: Room,
        limiter: trio.CapacityLimiter,
        settled_seq: Callable[[], int],
        told_end_seq: Callable[[], int],
    ) -> None:
        self._room = room
        self._limiter = limiter
        self._settled_seq = settled_seq
        self._told_end_seq = told_end_seq
        self._forget_at = 0.0
        self._wake = trio.Event()
        self.fill_percent = 0

    def look(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        """Step after step while something is due; each step takes its turn with the commits."""
        while True:
            self._wake = trio.Event()
            try:
                await self._keep_house()
            except OutboxCorrupt:
                raise
            except OutboxError as exc:
                log.warning("housekeeping failed", error=str(exc), hint=exc.hint)
            if await self._rest(QUIET_S):
                await trio.to_thread.run_sync(give_back_memory)
                await self._rest(LOOK_EVERY_S)
            await trio.sleep(GATHER_S)

    async def _keep_house(self) -> None:
        limiter = self._limiter
        level = await trio.to_thread.run_sync(self._room.read_level, self._settled_seq(), limiter=limiter)
        if level > self.fill_percent:
            log.warning("undelivered events fill the outbox; at 100 % the oldest go", percent=level)
        self.fill_percent = level
        while await trio.to_thread.run_sync(self._room.make_room, self._settled_seq(), time.time_ns(), limiter=limiter):
            pass
        if trio.current_time() >= self._forget_at:
            while await trio.to_thread.run_sync(
                self._room.forget, self._told_end_seq(), time.time_ns(), limiter=limiter
            ):
                pass
            self._forget_at = trio.current_time() + FORGET_EVERY_S
        while await trio.to_thread.run_sync(self._room.give_back, limiter=limiter):
            pass
        await trio.to_thread.run_sync(self._room.fold_log, limiter=limiter)
        await trio.to_thread.run_sync(self._room.make_ballast)

    async def _rest(self, duration_s: float) -> bool:
        """Whether *duration_s* seconds have passed without a commit."""
        with trio.move_on_after(duration_s):
            await self._wake.wait()
            return False
        return True
