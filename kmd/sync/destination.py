"""
One destination: its cursor, its state, and the loop that sends what is above the cursor, without end.

Every decision is taken in plan, answer and backoff; this file does what they say. Nothing is ever given up:
an event leaves the queue by a receipt, or alone, refused by name, into quarantine.
"""

import random
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

import structlog
import trio

from kmd.config import Config, Destination
from kmd.errors import OutboxCorrupt, OutboxError, ServerUnreachable
from kmd.mcp.row import Row, SessionEnd
from kmd.outbox.outbox import DestinationRow, Outbox
from kmd.sync.answer import Action, Answer, Reply, judge_answer
from kmd.sync.backoff import PAUSE_S, delay_s
from kmd.sync.course import Course, mark_of, parse_course, render_course
from kmd.sync.plan import (
    PROBE_MAX_EVENTS,
    Limit,
    Suspect,
    learn_refused,
    learn_taken,
    limit_events,
    narrow,
    plan_batch,
    render_batch,
    widen,
)
from kmd.sync.transport import CODECS, Transport, encode
from kmd.wire import Status

GATHER_S = 0.25
"""After the first new event: how long others may join its batch."""
ENDS_MAX = 500
"""Ends of sessions that one batch tells."""

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
        self.ends_cursor = row.ends_cursor
        self.settled = row.settled
        self.last_success_at_ns = row.last_success_at_ns
        self.course = parse_course(row.course, mark_of(destination.url, destination.key))
        self.last_error = self.course.error
        self.hint = self.course.hint
        self.tries = 0
        self._next_attempt_at: float | None = None
        self._config = config
        self._outbox = outbox
        self._writer_limiter = writer_limiter
        self._sender = sender
        self._wake = trio.Event()
        self._settled_something = trio.Event()
        self._attempt = self.course.attempt
        self._failures = 0
        self._suspect: Suspect | None = None
        self._codec = max(0, CODECS.index(self.course.codec)) if self.course.codec in CODECS else 0
        self._limit = self.course.limit
        self._hurry = False
        self._told: dict[str, int] = {}

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

    @property
    def owes_ends(self) -> bool:
        """Whether sessions have ended that the destination may not know of."""
        return self._outbox.last_end_seq > self.ends_cursor

    def notice(self) -> None:
        """New events are there; a loop that backs off goes on backing off."""
        if self.state is State.IDLE:
            self._wake.set()

    def nudge(self) -> None:
        """Try now, whatever the state."""
        self._hurry = True
        self._wake.set()

    def note_fault(self, exc: Exception, wait_s: float) -> None:
        """`run` has ended through a fault of ours, and is started again after so many seconds."""
        self.last_error, self.hint = f"a fault in kmd ({type(exc).__name__})", "see kmd's log, and report it"
        self._rest(State.RETRYING, wait_s)
        self._announce()

    async def wait_progress(self) -> None:
        """Until something was settled or a try has failed."""
        await self._settled_something.wait()

    async def run(self) -> None:
        """Send for ever; cancelled from outside."""
        async with self.open_transport() as transport:
            await self._resume()
            while True:
                if not self.pending and not self.owes_ends:
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

    async def _resume(self) -> None:
        """Go on where the kmd before this one stopped: what it waited for is waited for."""
        if wait_s := self.course.wait_s(time.time()):
            self._rest(State.PAUSED if self.course.is_paused else State.RETRYING, wait_s)
            await self._wait(wait_s)

    def open_transport(self) -> Transport:
        """A connection of its own to the destination; a context manager."""
        one = self.destination
        return Transport(one.url, one.key, self._sender.user_agent, one.ca_file)

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
        """One batch; the ends of sessions when no event waits. Returns how long to wait before the next."""
        self.state = State.SENDING
        self._wake = trio.Event()  # what has come so far is sent now, and must not cut the next pause short
        try:
            if not self.pending:
                return await self._tell_ends(transport)
            last_seq = self._outbox.last_seq
            rows = await self._next_rows()
            if not rows:  # numbers that no event has: of a sequence that was damaged
                self.cursor = max(self.cursor, last_seq)
                return 0.0
            answer = await self._send(transport, rows)
            return await self._act(transport, answer, rows)
        except OutboxCorrupt:
            raise
        except (ServerUnreachable, OutboxError) as exc:
            return await self._retry(Answer(Action.RETRY, str(exc), exc.hint))
        finally:
            self.tries += 1
            self._announce()

    def _announce(self) -> None:
        self._settled_something.set()
        self._settled_something = trio.Event()

    async def _next_rows(self) -> Sequence[Row]:
        limit = limit_events(self._limit, self._config.batch_events)
        limit = min(PROBE_MAX_EVENTS, limit) if self._attempt else limit
        rows = await trio.to_thread.run_sync(self._outbox.read_events, self.cursor, limit, self._config.batch_bytes)
        return plan_batch(rows, self._suspect)

    async def _send(self, transport: Transport, rows: Sequence[Row]) -> Answer:
        batch_id, reply = await self._post(transport, rows)
        answer = judge_answer(reply, batch_id, len(rows), self._failures, time.time())
        self._failures = self._failures + 1 if reply.status == 500 else 0
        return answer

    async def _post(
        self, transport: Transport, rows: Sequence[Row], ends: Sequence[SessionEnd] = ()
    ) -> tuple[str, Reply]:
        """One POST of *rows*: the batch's name, and what came back."""
        batch_id = uuid.uuid4().hex
        codec = CODECS[self._codec]
        body = await trio.to_thread.run_sync(self._render, rows, ends, batch_id, codec)
        return batch_id, await transport.post(body, codec, self._config.timeout_s)

    def _recode(self) -> bool:
        """Take the next encoding; False when there is none left."""
        if self._codec + 1 == len(CODECS):
            return False
        self._codec += 1
        return True

    def _render(self, rows: Sequence[Row], ends: Sequence[SessionEnd], batch_id: str, codec: str) -> bytes:
        lost = self._outbox.read_lost_events()
        return encode(render_batch(rows, batch_id, self._sender.user_agent, self._sender.host, lost, ends), codec)

    async def _tell_ends(self, transport: Transport) -> float:
        """Tell which sessions have ended, those left out whose last batch of events has said so."""
        until = self._outbox.last_end_seq
        found = await trio.to_thread.run_sync(self._outbox.read_ends, self.ends_cursor, ENDS_MAX)
        until = found[-1].end_seq if len(found) == ENDS_MAX else max([until, *(end.end_seq for end in found)])
        ends = [end for end in found if self._told.get(end.start.session) != end.ended_at_ns]
        if ends:
            batch_id, reply = await self._post(transport, [], ends)
            answer = judge_answer(reply, batch_id, 0, 0, time.time())
            match answer.action:
                case Action.RETRY:
                    return await self._retry(answer)
                case Action.RECODE if self._recode():
                    return 0.0
                case Action.PAUSE | Action.RECODE:
                    return await self._pause(answer)
                case Action.SPLIT:  # no event hangs on it
                    log.warning("ends of sessions were refused", destination=self.destination.name, error=answer.error)
                case Action.SETTLE:
                    pass
        await self._run_writing(partial(self._outbox.settle_ends, self.destination.name, until, time.time_ns()))
        self.ends_cursor = until
        self._told.clear()
        await self._recover()
        return 0.0

    async def _act(self, transport: Transport, answer: Answer, rows: Sequence[Row]) -> float:
        match answer.action:
            case Action.SETTLE:
                verdicts = zip(rows, answer.verdicts, strict=True)
                refused = {row.seq: v.reason for row, v in verdicts if v.status is Status.REJECTED}
                again = sum(verdict.status is Status.DUPLICATE for verdict in answer.verdicts)
                if again:
                    log.info("the server had some events already", destination=self.destination.name, events=again)
                configured = self._config.batch_events
                self._limit = learn_taken(self._limit, self._suspect, rows[-1].seq, len(rows), configured)
                await self._settle(rows, refused)
                return 0.0
            case Action.SPLIT:
                return await self._split(transport, answer, rows)
            case Action.RECODE if self._recode():
                return 0.0
            case Action.RECODE | Action.PAUSE:
                return await self._pause(answer)
            case Action.RETRY:
                return await self._retry(answer)

    async def _split(self, transport: Transport, answer: Answer, rows: Sequence[Row]) -> float:
        """
        Look for the offender in the halves. One that stands alone goes to quarantine only if the destination takes
        a batch without events: else it refuses everything, and no event is to blame.
        """
        self._failures = 0
        if self._suspect is None and (limit := learn_refused(self._limit, len(rows))):
            self._limit = limit
            return 0.0
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
                return await self._retry(empty)
            case _:
                error = f"{answer.error}, and to a batch without events, too"
                return await self._pause(Answer(Action.PAUSE, error, empty.hint or "is the URL that of a km-server?"))

    async def _settle(self, rows: Sequence[Row], refused: dict[int, str]) -> None:
        seqs = [row.seq for row in rows]
        now_ns = time.time_ns()
        name = self.destination.name
        await self._run_writing(partial(self._outbox.settle, name, seqs, refused, now_ns))
        self.cursor = seqs[-1]
        self.settled += len(seqs) - len(refused)
        self.last_success_at_ns = now_ns
        self._suspect = widen(self._suspect, self.cursor, len(seqs))
        self._told |= {row.session.session: row.ended_at_ns for row in rows if row.ended_at_ns is not None}
        if refused:
            log.warning("events were refused and kept aside", destination=name, events=len(refused))
        await self._recover()

    async def _recover(self) -> None:
        """The destination has answered as it should."""
        if self.last_error:
            log.info("destination is well again", destination=self.destination.name)
        self.last_error = self.hint = ""
        self._attempt = self._failures = 0
        await self._keep_course()

    async def _retry(self, answer: Answer) -> float:
        wait_s = delay_s(self._attempt, rand=random.random, retry_after_s=answer.retry_after_s)
        await self._trouble(State.RETRYING, answer, wait_s)
        return wait_s

    async def _pause(self, answer: Answer) -> float:
        await self._trouble(State.PAUSED, answer, PAUSE_S)
        return PAUSE_S

    async def _trouble(self, state: State, answer: Answer, wait_s: float) -> None:
        self._attempt += 1
        if answer.error != self.last_error:
            log.warning("cannot deliver", destination=self.destination.name, state=state, error=answer.error)
        self.last_error, self.hint = answer.error, answer.hint
        self._rest(state, wait_s)
        await self._keep_course(wait_s)

    async def _keep_course(self, wait_s: float = 0.0) -> None:
        """Write down what a restart must not forget, if it is new. A disk that is full must not stop the sending."""
        course = Course(
            mark=self.course.mark,
            attempt=self._attempt,
            next_attempt_at_s=time.time() + wait_s if wait_s else 0.0,
            is_paused=self.state is State.PAUSED,
            codec=CODECS[self._codec] if self._codec else "",
            limit=Limit(self._limit.events, self._limit.known),
            error=self.last_error,
            hint=self.hint,
        )
        if course == self.course:
            return
        self.course = course
        try:
            await self._run_writing(partial(self._outbox.keep_course, self.destination.name, render_course(course)))
        except OutboxCorrupt:
            raise
        except OutboxError as exc:
            log.debug("a destination's course was not kept", destination=self.destination.name, error=str(exc))

    async def _run_writing(self, work: Callable[[], None]) -> None:
        """Do *work* where commits run, one at a time. Raises OutboxError."""
        await trio.to_thread.run_sync(work, limiter=self._writer_limiter)

    def _rest(self, state: State, wait_s: float | None) -> None:
        self.state = state
        self._next_attempt_at = None if wait_s is None else trio.current_time() + wait_s

    async def _wait(self, duration_s: float | None) -> None:
        """Until woken, or for *duration_s* at most."""
        with trio.move_on_after(duration_s if duration_s is not None else float("inf")):
            await self._wake.wait()
        self._wake = trio.Event()
