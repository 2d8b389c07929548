"""
What the statistics are made of. Pure.

A *series* is what is counted apart: server, method, target. A *rollup* holds the figures of one series over one
stretch of time: a minute, an hour or a day of UTC (its *width*). A span is made up of the widest stretches that fit,
so a question about a year reads some hundred days and not half a million minutes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from typing import NamedTuple

from kmd.mcp.names import Stream
from kmd.wire import Event

MINUTE_NS = 60 * 10**9
DAY_NS = 1440 * MINUTE_NS
WIDTHS = (1440, 60, 1)
"""Minutes in a stretch, widest first; each divides the one before it."""

COUNT_MAX = 2**63 - 1
"""Counters stay within what the stores keep: they stop there instead of failing a commit."""

MINUTE_MAX = COUNT_MAX // MINUTE_NS + 1
"""Past the last minute that a time in 64 bits of nanoseconds can fall in."""


@dataclass(slots=True)
class Figures:
    """The counters, in the order of the tables' columns."""

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


COUNTERS = tuple(field.name for field in fields(Figures))


class Piece(NamedTuple):
    """Rollups of one width: those that begin in first..end-1 (minutes since 1970)."""

    width: int
    first: int
    end: int


def split_span(first: int | None, end: int | None, widths: Sequence[int] = WIDTHS) -> list[Piece]:
    """
    The pieces that make up the minutes first..end-1 exactly, each minute in one of them.

    None is open. widths: those that may be used, widest first, the last one 1.
    """
    return list(split(first or 0, MINUTE_MAX if end is None else min(end, MINUTE_MAX), widths, open_end=end is None))


def split(first: int, end: int, widths: Sequence[int], *, open_end: bool) -> Iterator[Piece]:
    """The widest whole stretches in the middle, then what is left at both ends in narrower ones."""
    if first >= end:
        return
    width, *narrower = widths
    low = -(-first // width) * width
    high = -(-end // width) * width if open_end else end // width * width
    if not narrower or low >= high:
        whole = Piece(width, first, end)
        yield from split(first, end, narrower, open_end=open_end) if narrower else (whole,)
        return
    yield from split(first, low, narrower, open_end=False)
    yield Piece(width, low, high)
    if not open_end:
        yield from split(high, end, narrower, open_end=False)


def billed_bytes(event: Event) -> int:
    """The bytes that count: none for a batch's member (its line has them), none for stderr."""
    if event.index > 0 or event.stream is Stream.STDERR:
        return 0
    return event.size_bytes
