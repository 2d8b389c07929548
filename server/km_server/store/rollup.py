"""
What an event adds to the statistics. Pure.

A *series* is what is counted apart: server, method, target. A *delta* is what new events add to one series in
one minute. Only events that were really new may come here, so a duplicate never counts twice.

The line of a JSON-RPC batch (kind `batch`) carries the bytes and is no message; its members are messages and
carry none. A line of stderr is an event and no message. `probe` and `input_required` are no errors.
"""

from collections.abc import Iterable
from dataclasses import astuple, dataclass, field
from typing import NamedTuple

from km_server.store.histogram import bucket_of
from kmd.mcp.names import Kind, Outcome, Stream
from kmd.wire import Event

MINUTE_NS = 60 * 10**9
COUNT_MAX = 2**63 - 1
"""Counters stay within what the stores keep: they stop there instead of failing a commit."""


class Series(NamedTuple):
    """What is counted apart; an empty text stands for none."""

    server: str
    method: str
    target: str


class Slot(NamedTuple):
    """One series of one tenant in one minute (Unix time // 60 s)."""

    tenant_id: int
    minute: int
    series: Series


@dataclass(slots=True)
class Figures:
    """The counters of one slot, in the order of the table's columns."""

    events: int = 0
    messages: int = 0
    calls: int = 0
    errors: int = 0
    tool_errors: int = 0
    bytes_to_server: int = 0
    bytes_to_client: int = 0

    def counters(self) -> tuple[int, ...]:
        """The counters in the order of their declaration."""
        return astuple(self)

    def add(self, event: Event) -> None:
        """Count one new event."""
        self.events += 1
        if is_message(event):
            self.messages += 1
        if event.kind is Kind.REQUEST:
            self.calls += 1
        if event.outcome is Outcome.RPC_ERROR:
            self.errors += 1
        elif event.outcome is Outcome.TOOL_ERROR:
            self.tool_errors += 1
        if event.stream is Stream.TO_SERVER:
            self.bytes_to_server = min(COUNT_MAX, self.bytes_to_server + billed_bytes(event))
        elif event.stream is Stream.TO_CLIENT:
            self.bytes_to_client = min(COUNT_MAX, self.bytes_to_client + billed_bytes(event))


@dataclass(slots=True)
class Deltas:
    """What a group of new events adds: counters per slot, and answers per slot and latency bucket."""

    figures: dict[Slot, Figures] = field(default_factory=dict)
    latencies: dict[tuple[Slot, int], int] = field(default_factory=dict)

    def add(self, tenant_id: int, server: str, events: Iterable[Event]) -> None:
        """Count new *events* of one tenant's sessions of one server."""
        figures_of: dict[tuple[int, str | None, str | None], tuple[Slot, Figures]] = {}
        for event in events:
            place = (event.at_ns // MINUTE_NS, event.method, event.target)
            found = figures_of.get(place)
            if found is None:
                found = figures_of[place] = self._open(tenant_id, server, *place)
            slot, figures = found
            figures.add(event)
            if event.took_ns is not None:
                bucket = (slot, bucket_of(event.took_ns))
                self.latencies[bucket] = self.latencies.get(bucket, 0) + 1

    def _open(
        self, tenant_id: int, server: str, minute: int, method: str | None, target: str | None
    ) -> tuple[Slot, Figures]:
        """The slot and its counters so far."""
        slot = Slot(tenant_id, minute, Series(server, method or "", target or ""))
        return slot, self.figures.setdefault(slot, Figures())


def is_message(event: Event) -> bool:
    """Whether the event is one JSON-RPC message, or a line in the place of one."""
    return event.kind is not Kind.BATCH and event.stream is not Stream.STDERR


def billed_bytes(event: Event) -> int:
    """The bytes that count: none for a batch's member (its line has them), none for stderr."""
    if event.index > 0 or event.stream is Stream.STDERR:
        return 0
    return event.size_bytes
