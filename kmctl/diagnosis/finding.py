"""
What `kmctl doctor` has found, as values. Pure.

A *finding* is the outcome of one check of one thing: it is well, worth a *note*, or *bad*. What is bad makes the
set-up degraded, and has a *fix*: the next thing to do, a command where there is one.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum

from kmctl.text import format_count, harmless

KMCTL = re.compile(r"\bkmctl (?=[a-z])")
"""A command of ours in a fix, without options before its name."""
DETAIL_MAX_CHARS = 400
"""Of a line of a server's: it may have no end."""


class Level(StrEnum):
    """How a finding counts."""

    OK = "ok"
    NOTE = "note"
    BAD = "bad"


class Check(StrEnum):
    """What is checked. These names are part of --json."""

    KMD = "kmd"
    VERSION = "version"
    SERVICE = "service"
    CONFIG = "config"
    MODES = "modes"
    OUTBOX = "outbox"
    CAPTURE = "capture"
    QUARANTINE = "quarantine"
    DISK = "disk"
    SQLITE = "sqlite"
    DESTINATION = "destination"
    KEY = "key"
    CLOCK = "clock"
    TLS = "tls"
    CLIENT = "client"
    WRAP = "wrap"
    COMMAND = "command"
    HANDSHAKE = "handshake"
    STDOUT = "stdout"


@dataclass(frozen=True, slots=True)
class Finding:
    """what: in one sentence. fix: empty when nothing need be done. details: lines of evidence."""

    check: Check
    level: Level
    what: str
    fix: str = ""
    details: tuple[str, ...] = ()


def ok(check: Check, what: str) -> Finding:
    """A finding that all is well; shown with --verbose."""
    return Finding(check, Level.OK, what)


def note(check: Check, what: str, fix: str = "") -> Finding:
    """A finding that is worth knowing but no fault; shown with --verbose."""
    return Finding(check, Level.NOTE, what, fix)


def bad(check: Check, what: str, fix: str, details: Iterable[str] = ()) -> Finding:
    """A fault and how to repair it; doctor then ends with exit code 4."""
    return Finding(check, Level.BAD, what, fix, tuple(line[:DETAIL_MAX_CHARS] for line in details))


def name_home(one: Finding, home: str) -> Finding:
    """*one*, its commands for the installation that was looked at. home: ` --home DIR`, empty for the usual one."""
    return replace(one, fix=KMCTL.sub(lambda _: f"kmctl{home} ", one.fix)) if home else one


def is_healthy(findings: Sequence[Finding]) -> bool:
    """Whether nothing is bad."""
    return all(one.level is not Level.BAD for one in findings)


def summarize(findings: Sequence[Finding]) -> str:
    """One line: that all is well and what that means here, or how many things need a person."""
    faults = sum(one.level is Level.BAD for one in findings)
    if faults:
        return f"{format_count(faults, 'thing')} need{'s' if faults == 1 else ''} you"
    known = [one.what for one in findings if one.level is Level.OK and one.check in SUMMARY]
    return f"all is well: {', '.join(known)}" if known else "all is well"


SUMMARY = (Check.KMD, Check.WRAP, Check.DESTINATION)
"""Whose good news stand in the one line."""


def render_findings(findings: Sequence[Finding], *, everything: bool, plain: bool) -> list[str]:
    """The lines for a person: faults first, then notes (and with *everything* what is well), the summary last."""
    healthy = is_healthy(findings)
    lines: list[str] = []
    for level in (Level.BAD, Level.NOTE, Level.OK):
        if level is Level.BAD or everything or (level is Level.NOTE and not healthy):
            lines += [line for one in findings if one.level is level for line in render_finding(one, plain=plain)]
    return [*lines, summarize(findings)]


def render_finding(one: Finding, *, plain: bool) -> list[str]:
    """One finding: what, its evidence, and the fix. plain: nothing is said by place or by a bar."""
    level, bar, gap = (f"{one.level}: ", "detail: ", "") if plain else (f"{one.level:<6}", "        | ", " " * 8)
    lines = [f"{level}{one.check}: {one.what}"]
    lines += [f"{bar}{detail}" for detail in one.details]
    lines += [f"{gap}fix: {one.fix}"] if one.fix else []
    return [harmless(line) for line in lines]


def describe_findings(findings: Sequence[Finding]) -> dict[str, object]:
    """What --json prints."""
    return {
        "healthy": is_healthy(findings),
        "summary": summarize(findings),
        "findings": [asdict(one) for one in findings],
    }
