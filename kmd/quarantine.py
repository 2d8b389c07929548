"""
What kmctl may ask about the events that destinations refused: list, show, retry, drop.

Each operation is an async generator of answer lines (docs/control-protocol.md). Without a destination it is
about every destination's entries; without a seq about all of them, which `retry` and `drop` do only when told so.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import msgspec
import trio

from kmd.errors import KilometersError, ServerUnreachable
from kmd.outbox.outbox import Outbox
from kmd.outbox.quarantine import Entry
from kmd.sync.answer import Action, Answer
from kmd.sync.destination import DestinationLoop
from kmd.sync.fleet import Fleet
from kmd.sync.plan import render_event
from kmd.sync.transport import Transport
from kmd.times import render_time
from kmd.wire import Status, payload_fields

PAGE = 500
SHOW_PAYLOAD_MAX_BYTES = 1 << 20
"""Of a payload that `show` shows: JSON may need six characters for a byte, and kmctl bounds a line."""
LIST_HINT = "see 'kmctl quarantine list'"


class Selection(msgspec.Struct, frozen=True):
    """Which entries: of one destination or all; one seq, or everything."""

    destination: str | None = None
    seq: int | None = None
    everything: bool = False


async def list_entries(outbox: Outbox, which: Selection) -> AsyncGenerator[dict[str, Any]]:
    """One line per entry, by destination and seq."""
    async for entry in read_entries(outbox, which):
        yield {"refused": render_entry(entry)}


async def show_entries(outbox: Outbox, which: Selection) -> AsyncGenerator[dict[str, Any]]:
    """The entries of one event, with its payload. Raises KilometersError when there is none."""
    for entry in await find_entries(outbox, which):
        shown = render_entry(entry)
        if entry.row is not None and entry.row.message.payload is not None:
            payload = entry.row.message.payload
            text, in_base64 = payload_fields(payload[:SHOW_PAYLOAD_MAX_BYTES])
            shown["event"] |= {"payload": text} if in_base64 is None else {"payload_base64": in_base64}
            shown["payload_omitted_bytes"] = max(0, len(payload) - SHOW_PAYLOAD_MAX_BYTES)
        yield {"refused": shown}


async def drop_entries(
    outbox: Outbox, which: Selection, limiter: trio.CapacityLimiter
) -> AsyncGenerator[dict[str, Any]]:
    """Forget entries for good, counted. Raises KilometersError when the one asked for is not there."""
    names = [which.destination] if which.destination is not None else list(outbox.quarantine.counts)
    if which.seq is not None:
        names = [entry.destination for entry in await find_entries(outbox, which)]
    elif not which.everything:
        raise KilometersError("which events?", hint="give a number, or --all")
    dropped = 0
    for name in names:
        remove = partial(outbox.quarantine.remove, name, which.seq, delivered=False)
        dropped += await trio.to_thread.run_sync(remove, limiter=limiter)
    yield {"done": True, "dropped": dropped}


async def retry_entries(outbox: Outbox, fleet: Fleet, which: Selection) -> AsyncGenerator[dict[str, Any]]:
    """
    Send entries to their destinations again, each alone; one that is taken now leaves the quarantine.

    A destination that cannot take anything at the moment gets no further ones. Ends with the counts.
    Raises KilometersError when the one asked for is not there.
    """
    delivered = kept = 0
    ill: set[str] = set()
    loops = {loop.destination.name: loop for loop in fleet.loops}
    async with AsyncExitStack() as stack:
        transports = {name: await stack.enter_async_context(loop.open_transport()) for name, loop in loops.items()}
        async for entry in choose_entries(outbox, which):
            name = entry.destination
            if name in ill:
                kept += 1
                continue
            if name in loops:
                answer = await retry_entry(loops[name], transports[name], entry)
            else:
                answer = Answer(Action.PAUSE, "no such destination is configured", "add it again, or drop the events")
            delivered += answer.action is Action.SETTLE
            kept += answer.action is not Action.SETTLE
            if answer.action not in (Action.SETTLE, Action.SPLIT):
                ill.add(name)
            yield {"retried": render_retried(entry, answer)}
    yield {"done": True, "delivered": delivered, "kept": kept}


async def retry_entry(loop: DestinationLoop, transport: Transport, entry: Entry) -> Answer:
    """Send one entry again. SETTLE: it was taken, and is out of the quarantine; SPLIT: it was refused again."""
    if entry.row is None:
        return Answer(Action.SPLIT, "a bound had removed the event before it could be kept")
    try:
        answer = await loop.resend(transport, entry.row)
    except ServerUnreachable as exc:
        return Answer(Action.RETRY, str(exc), exc.hint)
    if answer.action is not Action.SETTLE:
        return answer
    (verdict,) = answer.verdicts
    if verdict.status is Status.REJECTED:
        return Answer(Action.SPLIT, verdict.reason or "refused")
    await loop.release(entry.seq)
    return answer


async def choose_entries(outbox: Outbox, which: Selection) -> AsyncIterator[Entry]:
    """The selected entries with their payloads, one at a time. Raises KilometersError."""
    if which.seq is not None:
        for entry in await find_entries(outbox, which):
            yield entry
        return
    if not which.everything:
        raise KilometersError("which events?", hint="give a number, or --all")
    async for listed in read_entries(outbox, which):
        for entry in await trio.to_thread.run_sync(outbox.quarantine.find, listed.destination, listed.seq):
            yield entry


async def find_entries(outbox: Outbox, which: Selection) -> list[Entry]:
    """The entries of one seq. Raises KilometersError when there is none."""
    if which.seq is None:
        raise KilometersError("which event?", hint=LIST_HINT)
    entries = await trio.to_thread.run_sync(outbox.quarantine.find, which.destination, which.seq)
    if not entries:
        raise KilometersError(f"no refused event has the number {which.seq}", hint=LIST_HINT)
    return entries


async def read_entries(outbox: Outbox, which: Selection) -> AsyncIterator[Entry]:
    """All entries, or one destination's, without payloads."""
    after = ("", 0)
    while True:
        page = await trio.to_thread.run_sync(outbox.quarantine.read, which.destination, after, PAGE)
        for entry in page:
            yield entry
        if len(page) < PAGE:
            return
        after = (page[-1].destination, page[-1].seq)


def render_entry(entry: Entry) -> dict[str, Any]:
    row = entry.row
    return {
        "destination": entry.destination,
        "seq": entry.seq,
        "reason": entry.reason,
        "refused_at": render_time(entry.refused_at_ns),
        "server": row and row.session.name,
        "event": row and msgspec.to_builtins(render_event(row, with_payload=False)),
    }


def render_retried(entry: Entry, answer: Answer) -> dict[str, Any]:
    delivered = answer.action is Action.SETTLE
    return {
        "destination": entry.destination,
        "seq": entry.seq,
        "delivered": delivered,
        "error": None if delivered else answer.error,
        "hint": answer.hint or None,
    }
