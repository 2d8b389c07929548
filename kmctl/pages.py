"""The pages of `kmctl status` and `kmctl quarantine list`. Pure: kmd's answers in, pages out."""

import base64
import re
from collections.abc import Iterable, Iterator, Sequence

from kmctl.answers import Destination, LiveSession, Refused, RefusedEvent, Status, find_faults
from kmctl.page import EMPTY, Cell, Column, Facts, Line, Page, Table
from kmctl.text import ARROWS, format_age, format_count, format_size, harmless, render_time

STATE_STYLES = {"idle": "green", "sending": "cyan", "retrying": "yellow", "paused": "red"}
SESSION_COLUMNS = (
    Column("session"), Column("command"), Column("pid", number=True), Column("events", number=True),
    Column("to server", number=True), Column("to client", number=True), Column("open", number=True),
    Column("lost", number=True),
)  # fmt: skip
DESTINATION_COLUMNS = (
    Column("destination"), Column("state"), Column("pending", number=True), Column("settled", number=True),
    Column("refused", number=True), Column("next try", number=True), Column("last success"),
)  # fmt: skip
REFUSED_COLUMNS = (
    Column("number", number=True), Column("destination"), Column("refused"), Column("server"), Column("message"),
    Column("size", number=True), Column("reason"),
)  # fmt: skip


def render_status(status: Status) -> Page:
    """The page of `kmctl status`."""
    parts: list[Facts | Table | Line] = [Facts(tuple(list_facts(status))), EMPTY]
    if status.sessions:
        parts += [render_sessions(status.sessions), EMPTY]
    if status.destinations:
        parts += [render_destinations(status.destinations), EMPTY]
        parts += [line for destination in status.destinations for line in render_details(destination)]
    else:
        parts.append(Line("nothing to sync to: local only ('kmctl init --url …' adds a destination)"))
    if faults := find_faults(status):
        parts += [EMPTY, Line(f"degraded: {'; '.join(faults)}", "yellow")]
    return tuple(parts)


def list_facts(status: Status) -> Iterator[tuple[str, str]]:
    """The daemon and its outbox."""
    daemon, outbox = status.daemon, status.outbox
    yield "kmd", f"{daemon.version}, pid {daemon.pid}, up {format_age(daemon.uptime_s)}"
    if daemon.config:
        yield "config", daemon.config
    yield "outbox", f"{format_count(outbox.events, 'event')}, {format_size(outbox.bytes)}"
    if outbox.path:
        yield "", outbox.path
    oldest = outbox.oldest_pending_age_s
    yield "oldest pending", "none" if oldest is None else format_age(oldest)
    yield "live sessions", str(len(status.sessions))
    for position, (reason, gone) in enumerate(outbox.evicted.items()):
        what = f"{gone.events:,} {reason}" + (f" ({format_size(gone.bytes)})" if gone.bytes else "")
        yield "" if position else "removed", what


def render_sessions(sessions: Sequence[LiveSession]) -> Table:
    """Live sessions, one row each."""
    rows = (
        (
            Cell(one.name),
            Cell(one.command),
            Cell(str(one.pid or "-")),
            Cell(f"{one.events:,}"),
            Cell(format_size(one.bytes_to_server)),
            Cell(format_size(one.bytes_to_client)),
            Cell(str(one.open_requests)),
            Cell(format_size(one.gap_bytes), "red") if one.gap_bytes else Cell("-"),
        )
        for one in sessions
    )
    return Table(SESSION_COLUMNS, tuple(rows))


def render_destinations(destinations: Sequence[Destination]) -> Table:
    """Destinations, one row each."""
    rows = (
        (
            Cell(one.name),
            Cell(one.state, STATE_STYLES.get(one.state, "")),
            Cell(f"{one.pending:,}"),
            Cell(f"{one.settled:,}"),
            Cell(f"{one.quarantined:,}"),
            Cell("-" if one.next_attempt_s is None else format_age(one.next_attempt_s)),
            Cell(shorten_time(one.last_success_at)),
        )
        for one in destinations
    )
    return Table(DESTINATION_COLUMNS, tuple(rows))


def render_details(destination: Destination) -> Iterator[Line]:
    """What is too long for a column: a destination's URL, its last error and what to do about it."""
    name = destination.name
    yield Line(f"{name}: {destination.url}")
    if destination.last_error:
        yield Line(f"{name}: {destination.last_error}", "red")
        if destination.hint:
            yield Line(f"  hint: {destination.hint}")
    if destination.quarantined:
        yield Line(f"{name}: refused {format_count(destination.quarantined, 'event')}", "yellow")
        yield Line("  hint: see 'kmctl quarantine list'")


def render_refused(entries: Iterable[Refused]) -> Page:
    """Refused events, one row each."""
    rows = (
        (
            Cell(str(one.seq)),
            Cell(one.destination),
            Cell(shorten_time(one.refused_at)),
            Cell(one.server or "-"),
            Cell(render_subject(one.event) if one.event else "(not kept)"),
            Cell(format_size(one.event.size_bytes) if one.event else "-"),
            Cell(one.reason),
        )
        for one in entries
    )
    return (Table(REFUSED_COLUMNS, tuple(rows)),)


def shorten_time(at: str | None) -> str:
    """An RFC 3339 time to the minute, `2026-01-31 09:15Z`; `never` for none."""
    return re.sub(r"T(\d\d:\d\d):\d\d(\.\d+)?", r" \1", at) if at else "never"


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
