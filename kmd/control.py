"""
What kmctl may ask, as JSON lines on the control socket; docs/control-protocol.md is the contract.

Each operation is an async generator of answer lines; the connection ends with it.
"""

import contextlib
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import structlog
import trio

from kmd.errors import KilometersError, OutboxCorrupt
from kmd.intake.adoption import Adopter, count_aside
from kmd.intake.sessions import LiveSession, Sessions
from kmd.mcp.names import Stream
from kmd.mcp.row import Row
from kmd.outbox.housekeeping import Housekeeper
from kmd.outbox.outbox import Outbox
from kmd.quarantine import Selection, drop_entries, list_entries, retry_entries, show_entries
from kmd.record import PROTOCOL
from kmd.sync.destination import DestinationLoop, State
from kmd.sync.fleet import Fleet
from kmd.sync.plan import render_event
from kmd.times import render_time

REQUEST_MAX_BYTES = 64 << 10
REQUEST_TIMEOUT_S = 10.0
TAIL_MAX = 10_000
TAIL_CHUNK = 500
PROGRESS_S = 0.2
"""How often `flush` tells how far it is, and how often it nudges a destination that backs off."""
FLUSH_TIMEOUT_S = 30.0
SEQ_MAX = (1 << 63) - 1
"""More than SQLite can be asked for; no event has it."""
VERSION_HINT = "is kmctl of the same version as kmd?"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Control:
    """What the operations look at. `last_error` is the writer's, None while commits succeed."""

    version: str
    started_at: float
    home: Path
    config_file: Path
    spool_dir: Path
    adopter: Adopter
    sqlite: str
    outbox: Outbox
    sessions: Sessions
    fleet: Fleet
    housekeeper: Housekeeper
    committed: "Announcer"
    reload: Callable[[], Awaitable[None]]
    ending: trio.Event
    """Set when kmd is to end."""


class Announcer:
    """Tells of each commit: calls the listeners, wakes whoever waits for the next one."""

    def __init__(self) -> None:
        self.listeners: list[Callable[[], None]] = []
        self._event = trio.Event()

    def announce(self) -> None:
        for listener in self.listeners:
            listener()
        self._event.set()
        self._event = trio.Event()

    async def wait(self) -> None:
        await self._event.wait()


class Request(msgspec.Struct):
    """A request line; the fields that an operation does not use are ignored."""

    op: str
    timeout_s: float = FLUSH_TIMEOUT_S
    limit: int = 20
    follow: bool = False
    action: str = "list"
    destination: str | None = None
    seq: int | None = None
    all: bool = False


async def serve_kmctl(stream: trio.abc.Stream, control: Control) -> None:
    """Answer one request, then close. A client that goes away ends its operation."""
    try:
        async with stream:
            request = await receive_request(stream)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancel_when_gone, stream, nursery.cancel_scope)
                async with aclosing(answer(request, control)) as lines:
                    async for line in lines:
                        await stream.send_all(msgspec.json.encode(line) + b"\n")
                nursery.cancel_scope.cancel()
    except* (trio.BrokenResourceError, trio.ClosedResourceError):
        pass


async def receive_request(stream: trio.abc.Stream) -> Request | KilometersError:
    """The request, or what is wrong with it."""
    data = bytearray()
    with trio.move_on_after(REQUEST_TIMEOUT_S):
        while b"\n" not in data and len(data) <= REQUEST_MAX_BYTES and (chunk := await stream.receive_some()):
            data += chunk
    try:
        return msgspec.json.decode(data.split(b"\n")[0], type=Request)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return KilometersError("not a request", hint=VERSION_HINT)


async def cancel_when_gone(stream: trio.abc.Stream, scope: trio.CancelScope) -> None:
    """A client says no more after its request: the end of its stream means that it has left."""
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        while await stream.receive_some(1024):
            pass
    scope.cancel()


async def answer(request: Request | KilometersError, control: Control) -> AsyncGenerator[dict[str, Any]]:
    """The answer lines; a failure becomes an error line. Raises OutboxCorrupt after that."""
    try:
        if isinstance(request, KilometersError):
            raise request
        async with aclosing(carry_out(request, control)) as lines:
            async for line in lines:
                yield line
    except KilometersError as exc:
        yield {"error": {"message": str(exc), "hint": exc.hint}}
        if isinstance(exc, OutboxCorrupt):  # kmd starts over and repairs it
            raise


async def carry_out(request: Request, control: Control) -> AsyncGenerator[dict[str, Any]]:
    """The answer lines of an operation that goes well. Raises KilometersError."""
    match request.op:
        case "status":
            yield {"status": await read_status(control)}
        case "flush":
            async for line in flush(control, min(max(request.timeout_s, 0.0), 86400.0)):
                yield line
        case "tail":
            async for line in tail(control, min(max(request.limit, 0), TAIL_MAX), follow=request.follow):
                yield line
        case "quarantine":
            async with aclosing(ask_quarantine(request, control)) as lines:
                async for line in lines:
                    yield line
        case "reload":
            await control.reload()
            yield {"done": True}
        case "stop":
            try:
                yield {"done": True}
            finally:
                control.ending.set()  # also when whoever asked has left already
        case _:
            raise KilometersError("unknown request", hint=VERSION_HINT)


async def read_status(control: Control) -> dict[str, Any]:
    """The status object."""
    outbox = control.outbox
    totals = await trio.to_thread.run_sync(outbox.read_totals, control.fleet.lowest_cursor)
    oldest_ns = totals.oldest_pending_at_ns
    write_error = control.sessions.writer.last_error
    return {
        "daemon": {
            "version": control.version,
            "protocol": PROTOCOL,
            "pid": os.getpid(),
            "uptime_s": round(time.monotonic() - control.started_at, 3),
            "home": str(control.home),
            "config": str(control.config_file),
            "sqlite": control.sqlite,
            "relays_refused": control.sessions.capacity.refused,
        },
        "outbox": {
            "path": str(outbox.path),
            "events": totals.events,
            "bytes": totals.bytes,
            "oldest_pending_age_s": None if oldest_ns is None else max(0.0, time.time() - oldest_ns / 1e9),
            "first_seq": totals.first_seq,
            "last_seq": totals.last_seq,
            "gap_bytes": totals.gap_bytes,
            "max_bytes": outbox.room.limits.max_bytes,
            "evicted": {reason: {"events": n, "bytes": size} for reason, (n, size) in totals.evicted.items()},
            "last_error": str(write_error) if write_error else None,
        },
        "sessions": [render_session(live) for live in control.sessions.live],
        "destinations": [render_destination(loop) for loop in control.fleet.loops],
        "warnings": list_warnings(control),
    }


def list_warnings(control: Control) -> list[dict[str, Any]]:
    """What will cost something soon, or costs it now, and the next thing to do."""
    warnings = []
    if percent := control.housekeeper.fill_percent:
        message = f"undelivered events take {percent} % of the outbox's bound; at 100 % the oldest go"
        warnings.append({"message": message, "hint": "mend the destination, or raise outbox.max_bytes"})
    if refused := control.adopter.refused:
        name, refusal = next(iter(refused.items()))
        more = f", and {len(refused) - 1} more" if len(refused) > 1 else ""
        message = f"the spool {name} cannot be taken in: {refusal.reason}{more}"
        warnings.append({"message": message, "hint": "it is kept and tried again; 'kmctl flush' tries now"})
    if aside := count_aside(control.spool_dir):
        what = "a spool" if aside == 1 else f"{aside} spools"
        message = f"{what} could not be read, so what is in there is not captured; kept as *.unreadable"
        warnings.append({"message": message, "hint": f"look into {control.spool_dir}, and remove what is of no use"})
    capacity = control.sessions.capacity
    if capacity.is_full:
        message = f"{capacity.connected} relays are connected, and no more fit; others write spools meanwhile"
        warnings.append({"message": message, "hint": "raise the limit of open files (ulimit -n) and restart kmd"})
    return warnings


def render_session(live: LiveSession) -> dict[str, Any]:
    return {
        "session": live.start.session,
        "name": live.start.name,
        "command": live.start.command,
        "pid": live.start.pid,
        "started_at": render_time(live.start.started_at_ns),
        "events": live.events,
        "bytes_to_server": live.bytes_seen.get(Stream.TO_SERVER, 0),
        "bytes_to_client": live.bytes_seen.get(Stream.TO_CLIENT, 0),
        "open_requests": live.conversation.open_requests if live.conversation else 0,
        "gap_bytes": live.gap_bytes,
    }


def render_destination(loop: DestinationLoop) -> dict[str, Any]:
    return {
        "name": loop.destination.name,
        "url": loop.destination.url,
        "cursor": loop.cursor,
        "settled": loop.settled,
        "pending": loop.pending,
        "quarantined": loop.quarantined,
        "state": loop.state,
        "last_error": loop.last_error or None,
        "hint": loop.hint or None,
        "next_attempt_s": loop.next_attempt_s,
        "last_success_at": render_time(loop.last_success_at_ns),
    }


async def flush(control: Control, timeout_s: float) -> AsyncIterator[dict[str, Any]]:
    """Send what was committed before the call, to every destination; ends when that is settled or cannot be."""
    await control.adopter.take_in(anew=True)
    mark = await trio.to_thread.run_sync(control.outbox.read_last_seq)
    ends_mark = control.outbox.last_end_seq
    tries = {id(loop): loop.tries for loop in control.fleet.loops}
    deadline = trio.current_time() + timeout_s
    while True:
        floor = control.outbox.room.deleted_seq
        loops = control.fleet.loops
        behind = [loop for loop in loops if max(loop.cursor, floor) < mark or loop.ends_cursor < ends_mark]
        yield {"progress": [render_progress(loop, mark) for loop in control.fleet.loops]}
        if not behind:
            yield {"done": True}
            return
        stuck = [loop for loop in behind if loop.state is State.PAUSED and loop.tries > tries.get(id(loop), -1)]
        if len(stuck) == len(behind) or trio.current_time() >= deadline:
            yield {"done": False, "reasons": [explain(loop, mark) for loop in behind]}
            return
        for loop in behind:
            if loop not in stuck and loop.state is not State.SENDING:
                loop.nudge()
        with trio.move_on_at(min(deadline, trio.current_time() + PROGRESS_S)):
            await behind[0].wait_progress()
        if behind[0].state is State.RETRYING:
            await trio.sleep(min(PROGRESS_S, max(0.0, deadline - trio.current_time())))


def render_progress(loop: DestinationLoop, mark: int) -> dict[str, Any]:
    return {
        "name": loop.destination.name,
        "mark": mark,
        "cursor": min(loop.cursor, mark),
        "pending": max(0, mark - loop.cursor),
        "state": loop.state,
    }


def explain(loop: DestinationLoop, mark: int) -> dict[str, Any]:
    """Why a destination has not settled everything."""
    return {
        "name": loop.destination.name,
        "pending": max(0, mark - loop.cursor),
        "state": loop.state,
        "error": loop.last_error or "it takes longer than the time given",
        "hint": loop.hint or "try again with a longer --timeout; kmd goes on meanwhile",
    }


async def tail(control: Control, limit: int, *, follow: bool) -> AsyncIterator[dict[str, Any]]:
    """The last *limit* events, then the new ones as they are committed."""
    seq = max(0, control.outbox.last_seq - limit)
    while True:
        rows = await trio.to_thread.run_sync(control.outbox.read_events, seq, TAIL_CHUNK, REQUEST_MAX_BYTES * 64)
        for row in rows:
            seq = row.seq
            yield {"event": render_tail_event(row)}
        if rows:
            continue
        if not follow:
            return
        if control.outbox.last_seq <= seq:
            await control.committed.wait()


def ask_quarantine(request: Request, control: Control) -> AsyncGenerator[dict[str, Any]]:
    """The answer lines of an action on the quarantine. Raises KilometersError for an unknown one."""
    seq = None if request.seq is None else min(max(request.seq, -1), SEQ_MAX)
    which = Selection(request.destination, seq, request.all)
    match request.action:
        case "list":
            return list_entries(control.outbox, which)
        case "show":
            return show_entries(control.outbox, which)
        case "retry":
            return retry_entries(control.outbox, control.fleet, which)
        case "drop":
            return drop_entries(control.outbox, which, control.sessions.writer.one_at_a_time)
        case _:
            raise KilometersError("unknown action", hint=VERSION_HINT)


def render_tail_event(row: Row) -> dict[str, Any]:
    event: dict[str, Any] = msgspec.to_builtins(render_event(row, with_payload=False))
    return {"seq": row.seq, "server": row.session.name, **event}
