"""
What kmctl shows, as rich renderables and plain lines. Pure: values in, renderables out.

Everything that came from elsewhere goes through `harmless` here, once, where it becomes text.
"""

from collections.abc import Iterable
from datetime import tzinfo

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from kmctl.answers import Progress, Reason, Seen
from kmctl.text import ARROWS, format_count, format_duration, format_size, harmless, render_time

KIND_STYLES = {"request": "cyan", "response": "green", "error": "red", "notification": "magenta"}
OUTCOME_STYLES = {"ok": "green", "tool_error": "red", "rpc_error": "red", "input_required": "yellow"}

NAME_CELLS = 12
KIND_CELLS = 12
SUBJECT_CELLS = 24
"""Columns of a tail line: they line up while values fit, and give way when they do not."""
NARROW_CELLS = 100
NARROW_NAME_CELLS = 10
NARROW_KIND_CELLS = 8
"""On a terminal narrower than NARROW_CELLS these leave room for the outcome."""
CLOCK_MS = slice(11, 23)
CLOCK_ONLY = slice(11, 19)
"""Of a time as render_time writes it."""
SUBJECT_LEAST_CELLS = 8
"""A narrow terminal shortens method and target to this before it loses the outcome at the end."""


def render_progress(progress: Iterable[Progress]) -> str:
    """A flush's progress as one plain line."""
    parts = [f"{harmless(one.name)}: {one.pending:,} pending ({harmless(one.state)})" for one in progress]
    return ", ".join(parts)


def render_reason(reason: Reason) -> str:
    """Why one destination has not settled everything and what to do, as one line."""
    line = f"{reason.name}: {format_count(reason.pending, 'event')} pending, {reason.state or 'not done'}"
    line += f": {reason.error}" if reason.error else ""
    line += f" ({reason.hint})" if reason.hint else ""
    return harmless(line)


def speak_seen(seen: Seen, zone: tzinfo | None) -> str:
    """One message as a sentence for a screen reader: no columns, no arrows, no colours. Pure."""
    direction = {"to_server": "to server", "to_client": "to client"}.get(seen.stream, seen.stream)
    parts = [
        render_time(seen.at_ns, zone)[CLOCK_ONLY],
        f"{seen.server} {direction}",
        " ".join(part for part in (seen.kind, seen.method, seen.target) if part),
        "" if seen.rpc_id is None else f"id {seen.rpc_id}",
        format_size(seen.size_bytes),
        "" if seen.took_ns is None else f"took {format_duration(seen.took_ns)}",
        " ".join(str(part) for part in (seen.outcome, seen.error_code) if part is not None),
    ]
    return harmless(", ".join(part for part in parts if part))


def render_seen(seen: Seen, zone: tzinfo | None, width: int | None) -> Text:
    """
    One message as one line: time, server, direction, kind, method and target, id, size, duration, outcome.

    Units: width in terminal cells; None (a pipe) means whole values and the date too. zone None is local time.
    """
    head = render_head(seen, zone, width)
    tail = render_tail(seen)
    subject = harmless(" ".join(part for part in (seen.method, seen.target) if part) or "-")
    room = None if width is None else max(SUBJECT_LEAST_CELLS, width - head.cell_len - tail.cell_len - 2)
    line = Text.assemble(head, " ", fit(subject, SUBJECT_CELLS, room), " ", tail)
    if width is not None:
        line.truncate(width, overflow="ellipsis")
    return line


def render_head(seen: Seen, zone: tzinfo | None, width: int | None) -> Text:
    """Time, server name, direction and kind: whole in a pipe, shorter the narrower the terminal is."""
    at = render_time(seen.at_ns, zone)
    name, kind = harmless(seen.server), harmless(seen.kind)
    if width is None:
        name, kind = fit(name, NAME_CELLS, None), fit(kind, KIND_CELLS, None)
    else:
        narrow = width < NARROW_CELLS
        at = at[CLOCK_ONLY] if narrow else at[CLOCK_MS]
        name = fit(name, NAME_CELLS, NARROW_NAME_CELLS if narrow else NAME_CELLS)
        kind = fit(kind, KIND_CELLS, NARROW_KIND_CELLS if narrow else KIND_CELLS)
    kind_style = KIND_STYLES.get(seen.kind, "yellow")
    return Text.assemble((at, "dim"), " ", (name, "bold"), f" {ARROWS.get(seen.stream, '?')} ", (kind, kind_style))


def render_tail(seen: Seen) -> Text:
    """Id, size and, on answers, duration and outcome."""
    rpc_id = "-" if seen.rpc_id is None else f"#{harmless(seen.rpc_id)}"
    line = Text.assemble((f"{rpc_id:<5}", "dim"), f" {format_size(seen.size_bytes):>8}")
    if seen.took_ns is not None:
        line.append(f" {format_duration(seen.took_ns):>9}")
    if seen.outcome is not None:
        code = f" {seen.error_code}" if seen.error_code is not None else ""
        line.append(f" {harmless(seen.outcome)}{code}", style=OUTCOME_STYLES.get(seen.outcome, "yellow"))
    return line


def fit(text: str, least: int, most: int | None) -> str:
    """*text* padded to *least* cells, and cut with an ellipsis to *most* (a smaller *most* wins)."""
    cells = cell_len(text)
    if most is not None and cells > most:
        return set_cell_size(text, most - 1) + "…"
    wanted = least if most is None else min(least, most)
    return text if cells >= wanted else set_cell_size(text, wanted)
