"""An outbox with events and the loop that sends them to a server of the test's own."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from kmd.config import Config, Destination, parse_config
from kmd.mcp.names import Stream
from kmd.outbox.outbox import Intake, Outbox
from kmd.sync.destination import DestinationLoop, Sender, State
from tests.daemon.rows import START, message
from tests.support.misbehaving import Misbehaving

KEY = "km_secret_key"
WAIT_S = 15.0


@dataclass(frozen=True, slots=True)
class Rig:
    """An outbox with events and the loop that sends them."""

    outbox: Outbox
    loop: DestinationLoop

    async def wait(self, probe: Callable[[], bool], *, nudge: bool = False) -> None:
        """Until *probe* is true; with *nudge* no pause of the loop is waited for."""
        with trio.fail_after(WAIT_S):
            while not probe():
                if nudge:
                    self.loop.nudge()
                await trio.sleep(0.005)

    async def wait_trouble(self) -> None:
        """Until a try has failed."""
        await self.wait(lambda: self.loop.state in (State.RETRYING, State.PAUSED))

    async def settle(self) -> None:
        await self.wait(lambda: not self.loop.pending and self.loop.state is State.IDLE, nudge=True)


def settings(**sync: int) -> Config:
    lines = [f"{name} = {value}" for name, value in sync.items()]
    return parse_config("\n".join(["[sync]", *lines]), {})


@asynccontextmanager
async def rig(
    folder: Path, url: str, events: int = 20, config: Config | None = None, key: str = KEY
) -> AsyncIterator[Rig]:
    """The loop runs for as long as the block does."""
    with Outbox(folder / "outbox.db") as outbox:
        session_id = outbox.open_session(START).session_id
        messages = [message(offset, b"payload %d \xff" % offset) for offset in range(events)]
        outbox.commit([Intake(session_id, messages, {Stream.TO_SERVER: events})])
        row = outbox.open_destination("team")
        destination = Destination("team", url, key)
        sender = Sender("kilometers/test", "host")
        loop = DestinationLoop(destination, config or settings(), outbox, row, trio.CapacityLimiter(1), sender)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(loop.run)
            yield Rig(outbox, loop)
            nursery.cancel_scope.cancel()


def offsets(server: Misbehaving) -> list[int]:
    return sorted(identity[2] for identity in server.stored)


def check_all_settled(running: Rig, server: Misbehaving, events: int = 20, quarantined: int = 0) -> None:
    """Every event is on the server, and the outbox knows as much as the loop does."""
    loop, known = running.loop, running.outbox.read_destination("team")
    assert (known.cursor, known.settled, known.quarantined) == (events, events - quarantined, quarantined)
    assert (loop.cursor, loop.settled, loop.quarantined) == (known.cursor, known.settled, known.quarantined)
    assert (loop.state, loop.last_error, loop.hint, loop.next_attempt_s) == (State.IDLE, "", "", None)
    assert len(server.stored) == events - quarantined
