"""
One destination: its cursor, its state, and the loop that sends what is above the cursor, without end.

Every decision is taken in plan, answer and backoff; this file does what they say. Nothing is ever given up:
an event leaves the queue by a receipt, or alone, refused by name, into quarantine.
"""

import random
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

import structlog
import trio

from kmd.config import Config, Destination
from kmd.errors import OutboxError, ServerUnreachable
from kmd.mcp.row import Row
from kmd.outbox.outbox import DestinationRow, Outbox
from kmd.sync.answer import Action, Answer, Reply, judge_answer
from kmd.sync.backoff import PAUSE_S, delay_s
from kmd.sync.plan import PROBE_MAX_EVENTS, Suspect, narrow, plan_batch, render_batch, widen
from kmd.sync.transport import CODECS, Transport, encode
from kmd.wire import Status

GATHER_S = 0.25
"""After the first new event: how long others may join its batch."""

log = structlog.get_logger(__name__)


class State(StrEnum):
    """idle: nothing to do. sending. retrying: trouble that may pass. paused: a person has to act."""

    IDLE = "idle"
    SENDING = "sending"
    RETRYING = "retrying"
    PAUSED = "paused"


@dataclass(frozen=True, slots=True)
class Sender:
    """Who sends: named in each batch."""

    user_agent: str
    host: str


class DestinationLoop:
    """Sends to one destination for as long as `run` runs. `nudge` makes it try now."""

    def __init__(
        self,
        destination: Destination,
        config: Config,
        outbox: Outbox,
        row: DestinationRow,
        writer_limiter: trio.CapacityLimiter,
        sender: Sender,
    ) -> None:
        self.destination = destination
        self.state = State.IDLE
        self.cursor = row.cursor
        self.settled = row.settled
        self.last_success_at_ns = row.last_success_at_ns
        self.last_error = ""
        self.hint = ""
        self.tries = 0
        self._next_attempt_at: float | None = None
        self._config = config
        self._outbox = outbox
        self._writer_limiter = writer_limiter
        self._sender = sender
        self._wake = trio.Event()
        self._settled_something = trio.Event()
        self._attempt = 0
        self._failures = 0
        self._suspect: Suspect | None = None
        self._codec = 0
        self._hurry = False

    @property
    def pending(self) -> int:
        """Events above the cursor that are still there. Commits number them without holes."""
        return max(0, self._outbox.last_seq - max(self.cursor, self._outbox.room.deleted_seq))

    @property
    def quarantined(self) -> int:
        """Events that this destination refused and that are still kept."""
        return self._outbox.quarantine.counts.get(self.destination.name, 0)

    @property
    def next_attempt_s(self) -> float | None:
        """Seconds until the next try, None when none is planned."""
        if self._next_attempt_at is None:
            return None
        return max(0.0, self._next_attempt_at - trio.current_time())

    def notice(self) -> None:
        """New events are there; a loop that backs off goes on backing off."""
        if self.state is State.IDLE:
            self._wake.set()

    def nudge(self) -> None:
        """Try now, whatever the state."""
        self._hurry = True
        self._wake.set()

    async def wait_progress(self) -> None:
        """Until something was settled or a try has failed."""
        await self._settled_something.wait()

    async def run(self) -> None:
        """Send for ever; cancelled from outside."""
        async with self.open_transport() as transport:
            while True:
                if not self.pending:
                    self._rest(State.IDLE, None)
                    await self._wait(None)
                    if not self._hurry:
                        await trio.sleep(GATHER_S)
                    self._hurry = False
                    continue
                wait_s = await self._try(transport)
                if wait_s:
                    await self._wait(wait_s)
                    self._hurry = False

    def open_transport(self) -> Transport:
        """A connection of its own to the destination; a context manager."""
        return Transport(self.destination.url, self.destination.key, self._sender.user_agent)

    async def resend(self, transport: Transport, row: Row) -> Answer:
        """
        Send one quarantined event again, alone, beside the loop and whatever the loop's state is.

        Returns what the answer means; nothing is settled by it. Raises ServerUnreachable.
        """
        while True:
            batch_id, reply = await self._post(transport, [row])
            answer = judge_answer(reply, batch_id, 1, 0, time.time())
            if answer.action is not Action.RECODE or not self._recode():
                return answer

    async def release(self, seq: int) -> None:
        """The destination has taken a quarantined event after all. Raises OutboxError."""
        remove = partial(self._outbox.quarantine.remove, self.destination.name, seq, delivered=True)
        self.settled += await trio.to_thread.run_sync(remove, limiter=self._writer_limiter)

    async def _try(self, transport: Transport) -> float:
        """One batch. Returns how long to wait before the next."""
        self.state = State.SENDING
        self._wake = trio.Event()  # what has come so far is sent now, and must not cut the next pause short
        try:
            rows = await self._next_rows()
            if not rows:
                return 0.0
            answer = await self._send(transport, rows)
            return await self._act(transport, answer, rows)
        except ServerUnreachable as exc:
            return self._retry(Answer(Action.RETRY, str(exc), exc.hint))
        except OutboxError as exc:
            return self._retry(Answer(Action.RETRY, str(exc), exc.hint))
        finally:
            self.tries += 1
            self._settled_something.set()
            self._settled_something = trio.Event()

    async def _next_rows(self) -> Sequence[Row]:
        limit = self._config.batch_events if not self._attempt else min(PROBE_MAX_EVENTS, self._config.batch_events)
        rows = await trio.to_thread.run_sync(self._outbox.read_events, self.cursor, limit, self._config.batch_bytes)
        return plan_batch(rows, self._suspect)

    async def _send(self, transport: Transport, rows: Sequence[Row]) -> Answer:
        batch_id, reply = await self._post(transport, rows)
        answer = judge_answer(reply, batch_id, len(rows), self._failures, time.time())
        self._failures = self._failures + 1 if reply.status == 500 else 0
        return answer

    async def _post(self, transport: Transport, rows: Sequence[Row]) -> tuple[str, Reply]:
        """One POST of *rows*: the batch's name, and what came back."""
        batch_id = uuid.uuid4().hex
        codec = CODECS[self._codec]
        body = await trio.to_thread.run_sync(self._render, rows, batch_id, codec)
        return batch_id, await transport.post(body, codec, self._config.timeout_s)

    def _recode(self) -> bool:
        """Take the next encoding; False when there is none left."""
        if self._codec + 1 == len(CODECS):
            return False
        self._codec += 1
        return True

    def _render(self, rows: Sequence[Row], batch_id: str, codec: str) -> bytes:
        lost = self._outbox.read_lost_events()
        return encode(render_batch(rows, batch_id, self._sender.user_agent, self._sender.host, lost), codec)

    async def _act(self, transport: Transport, answer: Answer, rows: Sequence[Row]) -> float:
        match answer.action:
            case Action.SETTLE:
                verdicts = zip(rows, answer.verdicts, strict=True)
                refused = {row.seq: v.reason for row, v in verdicts if v.status is Status.REJECTED}
                again = sum(verdict.status is Status.DUPLICATE for verdict in answer.verdicts)
                if again:
                    log.info("the server had some events already", destination=self.destination.name, events=again)
                await self._settle(rows, refused)
                return 0.0
            case Action.SPLIT:
                return await self._split(transport, answer, rows)
            case Action.RECODE if self._recode():
                return 0.0
            case Action.RECODE | Action.PAUSE:
                return self._pause(answer)
            case Action.RETRY:
                return self._retry(answer)

    async def _split(self, transport: Transport, answer: Answer, rows: Sequence[Row]) -> float:
        """
        Look for the offender in the halves. One that stands alone goes to quarantine only if the destination takes
        a batch without events: else it refuses everything, and no event is to blame.
        """
        self._failures = 0
        self._suspect = narrow(rows)
        if self._suspect is not None:
            return 0.0
        batch_id, reply = await self._post(transport, [])
        empty = judge_answer(reply, batch_id, 0, 0, time.time())
        match empty.action:
            case Action.SETTLE:
                await self._settle(rows, {rows[0].seq: answer.error})
                return 0.0
            case Action.RETRY:
                return self._retry(empty)
            case _:
                error = f"{answer.error}, and to a batch without events, too"
                return self._pause(Answer(Action.PAUSE, error, empty.hint or "is the URL that of a km-server?"))

    async def _settle(self, rows: Sequence[Row], refused: dict[int, str]) -> None:
        seqs = [row.seq for row in rows]
        now_ns = time.time_ns()
        name = self.destination.name
        await trio.to_thread.run_sync(self._outbox.settle, name, seqs, refused, now_ns, limiter=self._writer_limiter)
        self.cursor = seqs[-1]
        self.settled += len(seqs) - len(refused)
        self.last_success_at_ns = now_ns
        self._suspect = widen(self._suspect, self.cursor)
        if self.last_error and not refused:
            log.info("destination is well again", destination=name)
        if refused:
            log.warning("events were refused and kept aside", destination=name, events=len(refused))
        self.last_error = self.hint = ""
        self._attempt = self._failures = 0

    def _retry(self, answer: Answer) -> float:
        wait_s = delay_s(self._attempt, rand=random.random, retry_after_s=answer.retry_after_s)
        self._attempt += 1
        self._trouble(State.RETRYING, answer, wait_s)
        return wait_s

    def _pause(self, answer: Answer) -> float:
        self._attempt += 1
        self._trouble(State.PAUSED, answer, PAUSE_S)
        return PAUSE_S

    def _trouble(self, state: State, answer: Answer, wait_s: float) -> None:
        if answer.error != self.last_error:
            log.warning("cannot deliver", destination=self.destination.name, state=state, error=answer.error)
        self.last_error, self.hint = answer.error, answer.hint
        self._rest(state, wait_s)

    def _rest(self, state: State, wait_s: float | None) -> None:
        self.state = state
        self._next_attempt_at = None if wait_s is None else trio.current_time() + wait_s

    async def _wait(self, duration_s: float | None) -> None:
        """Until woken, or for *duration_s* at most."""
        with trio.move_on_after(duration_s if duration_s is not None else float("inf")):
            await self._wake.wait()
        self._wake = trio.Event()
