"""What install and uninstall say about what they did and left. Pure."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kmctl.clients.plan import Action, Change, FilePlan, Source
from kmctl.clients.survey import Problem
from kmctl.clients.table import BY_ID
from kmctl.text import format_count, harmless

DONE = {Action.WRAP: "wrapped", Action.REFRESH: "wrapped anew", Action.UNWRAP: "put back"}


@dataclass(frozen=True, slots=True)
class Written:
    """A file that was replaced. backup: what it was before."""

    plan: FilePlan
    backup: Path


def title_of(client: str) -> str:
    """How people call a client."""
    return BY_ID[client].title if client in BY_ID else client


def shorten(path: Path | str, home: Path) -> str:
    """A path with `~` for the home directory, fit for a terminal."""
    text, prefix = str(path), f"{home}/"
    return harmless(f"~/{text.removeprefix(prefix)}" if text.startswith(prefix) else text)


def count_changes(plans: Iterable[FilePlan]) -> str:
    """`5 servers in 3 files`."""
    plans = list(plans)
    changes = sum(len(plan.changes) for plan in plans)
    return f"{format_count(changes, 'server')} in {format_count(len(plans), 'file')}"


def render_question(steps: Sequence[str]) -> str:
    """What is about to be done, as a question; *steps* are its halves, such as `have kmd run no more`."""
    sentence = " and ".join(steps)
    return f"{sentence[:1].upper()}{sentence[1:]}?"


def render_dry_run(steps: Sequence[str]) -> str:
    """What would be done, after a dry run."""
    return f"would {' and '.join(steps)}; nothing was changed"


def render_left(plans: Iterable[FilePlan], home: Path) -> Iterator[str]:
    """Servers that are not touched, and why."""
    for plan in plans:
        for name, reason in plan.left:
            yield f"left alone: {harmless(name)} in {shorten(plan.source.file, home)}: {harmless(reason)}"


def render_written(written: Written, home: Path) -> Iterator[str]:
    """What was done to one file."""
    file = shorten(written.plan.source.file, home)
    by_action: dict[Action, list[str]] = {}
    for change in written.plan.changes:
        by_action.setdefault(change.action, []).append(harmless(change.name))
    for action, names in by_action.items():
        yield f"{DONE[action]}: {', '.join(names)} in {file}"
    if edited := [harmless(change.name) for change in written.plan.changes if not change.exact]:
        yield f"  edited since, or wrapped by hand: only km was taken out of {', '.join(edited)}"
    yield f"  backup: {shorten(written.backup, home)}"


def render_restarts(plans: Sequence[FilePlan]) -> Iterator[str]:
    """Which clients have to be told, and how."""
    clients = list(dict.fromkeys(plan.source.client for plan in plans if plan.changes))
    for client in clients:
        if client in BY_ID:
            yield f"next: {title_of(client)}: {BY_ID[client].restart}"


def render_shared(plans: Sequence[FilePlan], home: Path) -> Iterator[str]:
    """A warning for files that are likely to be under version control."""
    for plan in plans:
        if plan.source.shared and any(change.action is not Action.UNWRAP for change in plan.changes):
            file = shorten(plan.source.file, home)
            yield f"note: {file} is a project's and has paths of this machine now: commit neither it nor its backup"


def describe_change(change: Change) -> dict[str, object]:
    """A change for --json: no word of the command, no value."""
    return {"name": change.name, "action": str(change.action), "exact": change.exact}


def describe_plan(plan: FilePlan, backup: Path | None) -> dict[str, object]:
    """What happens to one file, for --json."""
    return {
        **describe_source(plan.source),
        "servers": [describe_change(change) for change in plan.changes],
        "left": [{"name": name, "reason": reason} for name, reason in plan.left],
        "backup": str(backup) if backup else None,
        "error": None,
    }


def describe_problem(problem: Problem) -> dict[str, object]:
    """A file that was refused, for --json."""
    return {**describe_source(problem.source), "servers": [], "left": [], "backup": None, "error": problem.reason}


def describe_source(source: Source) -> dict[str, object]:
    """Which file it is, for --json."""
    return {"client": source.client, "path": str(source.file), "shared": source.shared}
