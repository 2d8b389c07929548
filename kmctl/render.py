"""
What kmctl shows, as rich renderables and plain lines. Pure: values in, renderables out.

Everything that came from elsewhere goes through `harmless` here, once, where it becomes text.
"""

import base64
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, tzinfo

from rich.cells import cell_len, set_cell_size
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kmctl.answers import (
    Destination,
    LiveSession,
    Progress,
    Reason,
    Refused,
    RefusedEvent,
    Seen,
    Status,
    find_faults,
)
from kmctl.text import format_age, format_count, format_duration, format_size, harmless

STATE_STYLES = {"idle": "green", "sending": "cyan", "retrying": "yellow", "paused": "red"}
KIND_STYLES = {"request": "cyan", "response": "green", "error": "red", "notification": "magenta"}
OUTCOME_STYLES = {"ok": "green", "tool_error": "red", "rpc_error": "red", "input_required": "yellow"}
ARROWS = {"to_server": "→", "to_client": "←", "stderr": "!"}

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


def render_status(status: Status) -> RenderableType:
    """The page of `kmctl status`."""
    parts: list[RenderableType] = [render_summary(status), Text()]
    if status.sessions:
        parts += [render_sessions(status.sessions), Text()]
    if status.destinations:
        parts.append(render_destinations(status.destinations))
        parts.append(Text())
        parts += [line for destination in status.destinations for line in render_details(destination)]
    else:
        parts.append(Text("nothing to sync to: local only ('kmctl init --url …' adds a destination)"))
    if faults := find_faults(status):
        parts += [Text(), Text(f"degraded: {harmless('; '.join(faults))}", style="yellow")]
    return Group(*parts)


def render_summary(status: Status) -> RenderableType:
    """The daemon and its outbox, two columns."""
    daemon, outbox = status.daemon, status.outbox
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    running = f"{daemon.version}, pid {daemon.pid}, up {format_age(daemon.uptime_s)}"
    grid.add_row("kmd", Text(harmless(running)))
    if daemon.config:
        grid.add_row("config", Text(harmless(daemon.config)))
    grid.add_row("outbox", Text(f"{format_count(outbox.events, 'event')}, {format_size(outbox.bytes)}"))
    if outbox.path:
        grid.add_row("", Text(harmless(outbox.path)))
    oldest = outbox.oldest_pending_age_s
    grid.add_row("oldest pending", "none" if oldest is None else format_age(oldest))
    grid.add_row("live sessions", str(len(status.sessions)))
    for position, (reason, gone) in enumerate(outbox.evicted.items()):
        what = f"{gone.events:,} {reason}" + (f" ({format_size(gone.bytes)})" if gone.bytes else "")
        grid.add_row("" if position else "removed", Text(harmless(what)))
    return grid


def make_table(*headers: tuple[str, bool]) -> Table:
    """An unframed table; each header says whether its column holds numbers."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for header, number in headers:
        table.add_column(header, justify="right" if number else "left", overflow="fold")
    return table


def render_sessions(sessions: Sequence[LiveSession]) -> Table:
    """Live sessions, one row each."""
    table = make_table(
        ("session", False), ("command", False), ("pid", True), ("events", True), ("to server", True),
        ("to client", True), ("open", True), ("lost", True),
    )  # fmt: skip
    for session in sessions:
        table.add_row(
            Text(harmless(session.name)),
            Text(harmless(session.command)),
            str(session.pid or "-"),
            f"{session.events:,}",
            format_size(session.bytes_to_server),
            format_size(session.bytes_to_client),
            str(session.open_requests),
            Text(format_size(session.gap_bytes), style="red") if session.gap_bytes else "-",
        )
    return table


def render_destinations(destinations: Sequence[Destination]) -> Table:
    """Destinations, one row each."""
    table = make_table(
        ("destination", False), ("state", False), ("pending", True), ("settled", True), ("refused", True),
        ("next try", True), ("last success", False),
    )  # fmt: skip
    for destination in destinations:
        wait = destination.next_attempt_s
        table.add_row(
            Text(harmless(destination.name)),
            Text(harmless(destination.state), style=STATE_STYLES.get(destination.state, "")),
            f"{destination.pending:,}",
            f"{destination.settled:,}",
            f"{destination.quarantined:,}",
            "-" if wait is None else format_age(wait),
            Text(harmless(shorten_time(destination.last_success_at))),
        )
    return table


def shorten_time(at: str | None) -> str:
    """An RFC 3339 time to the minute, `2026-01-31 09:15Z`; `never` for none."""
    return re.sub(r"T(\d\d:\d\d):\d\d(\.\d+)?", r" \1", at) if at else "never"


def render_details(destination: Destination) -> list[Text]:
    """What is too long for a column: a destination's URL, its last error and what to do about it."""
    name = harmless(destination.name)
    lines = [Text(f"{name}: {harmless(destination.url)}")]
    if destination.last_error:
        lines.append(Text(f"{name}: {harmless(destination.last_error)}", style="red"))
        if destination.hint:
            lines.append(Text(f"  hint: {harmless(destination.hint)}"))
    if destination.quarantined:
        lines.append(Text(f"{name}: refused {format_count(destination.quarantined, 'event')}", style="yellow"))
        lines.append(Text("  hint: see 'kmctl quarantine list'"))
    return lines


def render_refused(entries: Iterable[Refused]) -> RenderableType:
    """Refused events, one row each."""
    table = make_table(
        ("number", True), ("destination", False), ("refused", False), ("server", False), ("message", False),
        ("size", True), ("reason", False),
    )  # fmt: skip
    for one in entries:
        event = one.event
        table.add_row(
            str(one.seq),
            Text(harmless(one.destination)),
            Text(harmless(shorten_time(one.refused_at))),
            Text(harmless(one.server or "-")),
            Text(harmless(render_subject(event)) if event else "(not kept)"),
            format_size(event.size_bytes) if event else "-",
            Text(harmless(one.reason)),
        )
    return table


def render_subject(event: RefusedEvent) -> str:
    """Direction, kind, method and target."""
    return " ".join(part for part in (ARROWS.get(event.stream, "?"), event.kind, event.method, event.target) if part)


def render_entry(one: Refused) -> list[str]:
    """One refused event, a line for each fact and its payload last; whatever a terminal could act on is escaped."""
    facts: list[tuple[str, object]] = [
        ("number", one.seq),
        ("destination", one.destination),
        ("reason", one.reason),
        ("refused", one.refused_at or "-"),
    ]
    if one.event is None:
        return [f"{name:<12} {harmless(str(value))}" for name, value in facts]
    event = one.event
    facts += [
        ("server", one.server or "-"),
        ("session", event.session),
        ("position", f"{event.stream} {event.offset}" + (f", {event.index}" if event.index else "")),
        ("observed", render_time(event.at_ns, None)),
        ("message", render_subject(event)),
        ("id", event.rpc_id or "-"),
        ("size", format_size(event.size_bytes)),
    ]
    if event.outcome:
        code = "" if event.error_code is None else f" {event.error_code}"
        facts.append(("outcome", f"{event.outcome}{code}"))
    lines = [f"{name:<12} {harmless(str(value))}" for name, value in facts]
    return [*lines, "", *render_payload(event, one.payload_omitted_bytes)]


def render_payload(event: RefusedEvent, omitted_bytes: int) -> list[str]:
    """The payload as one harmless line; bytes that are no text are shown as `\\xff`."""
    text = event.payload
    if event.payload_base64 is not None:
        text = base64.b64decode(event.payload_base64).decode("utf-8", "backslashreplace")
    if text is None:
        return ["(no payload was kept)"]
    return [harmless(text), *([f"… and {format_size(omitted_bytes)} more"] if omitted_bytes else [])]


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


def render_time(at_ns: int, zone: tzinfo | None) -> str:
    """`2026-01-31T09:15:02.123+0000`; a time that no calendar knows is the epoch's."""
    try:
        at = datetime.fromtimestamp(at_ns // 10**9, UTC).astimezone(zone)
    except (ValueError, OverflowError, OSError):
        at = datetime.fromtimestamp(0, UTC)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{at_ns // 10**6 % 1000:03d}{at:%z}"


def fit(text: str, least: int, most: int | None) -> str:
    """*text* padded to *least* cells, and cut with an ellipsis to *most* (a smaller *most* wins)."""
    cells = cell_len(text)
    if most is not None and cells > most:
        return set_cell_size(text, most - 1) + "…"
    wanted = least if most is None else min(least, most)
    return text if cells >= wanted else set_cell_size(text, wanted)
