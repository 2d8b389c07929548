"""
Departures: a session whose relay was killed is over, and that is said.

Such a relay leaves no BYE, and no spool either when kmd had taken in all that it sent. When a relay has left
without a word, and once after kmd has started, the sessions that are not over are looked at: those whose relay lives no
more end, with `relay` in the place of who closed first. One that left a spool ends when that is adopted.
"""

import time
from itertools import chain, repeat
from pathlib import Path

import structlog
import trio

from kmd.errors import OutboxCorrupt, OutboxError
from kmd.intake.adoption import SUFFIX
from kmd.intake.relay_life import is_gone
from kmd.intake.session_intake import CLOSED_BY_RELAY
from kmd.intake.sessions import Sessions
from kmd.outbox.outbox import Intake, Outbox
from kmd.outbox.sessions import OpenSession

FIRST_LOOK_S = 1.0
"""After kmd's start. What is judged is whether a process lives: nobody need be waited for."""
LOOK_AGAIN_S = (1.0, 30.0, 300.0)
"""After a relay has left: it may take a moment to die, or live and come again."""
LOOK_EVERY_S = 3600.0

log = structlog.get_logger(__name__)


class Departures:
    """Ends the sessions of killed relays while `run` runs."""

    def __init__(self, outbox: Outbox, sessions: Sessions, spool_dir: Path) -> None:
        self._outbox = outbox
        self._sessions = sessions
        self._spool_dir = spool_dir

    async def run(self) -> None:
        await trio.sleep(FIRST_LOOK_S)
        while True:
            self._sessions.left = left = trio.Event()
            await self.look()
            if not self._sessions.left_at_ns:
                await left.wait()
            else:
                await self._look_on(left)

    async def _look_on(self, left: trio.Event) -> None:
        """Somebody left without a word: look again, less and less often, until the next one leaves."""
        for pause_s in chain(LOOK_AGAIN_S, repeat(LOOK_EVERY_S)):
            with trio.move_on_after(pause_s):
                await left.wait()
                return
            await self.look()
            if not self._sessions.left_at_ns:
                return

    async def look(self) -> None:
        """End the sessions whose relay is gone."""
        try:
            found = await trio.to_thread.run_sync(self._outbox.read_open_sessions)
        except OutboxCorrupt:
            raise
        except OutboxError as exc:
            log.warning("open sessions cannot be read", error=str(exc), hint=exc.hint)
            return
        left_at_ns = self._sessions.left_at_ns
        for name in left_at_ns.keys() - {one.session for one in found if one.relay}:
            del left_at_ns[name]
        for one in found:
            if not self._sessions.is_present(one.session) and is_gone(one.relay) and not self._has_spool(one.session):
                await self._end(one, left_at_ns.pop(one.session, one.last_at_ns))

    async def _end(self, one: OpenSession, ended_at_ns: int) -> None:
        intake = Intake(
            session_id=one.session_id,
            messages=[],
            durable={},
            ended_at_ns=min(ended_at_ns, time.time_ns()),
            closed_first=CLOSED_BY_RELAY,
        )
        await self._sessions.writer.commit(intake)
        log.info("a relay was killed; its session is over", session=one.session)

    def _has_spool(self, session: str) -> bool:
        return any(self._spool_dir.glob(f"{session}*{SUFFIX}"))
