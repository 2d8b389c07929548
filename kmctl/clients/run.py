"""
The steps that install and uninstall share: read, plan, show, ask, replace. Edge.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click

from kmctl.client_options import Scope
from kmctl.clients.files import FileRefused, Snapshot, find_drafts, read_file
from kmctl.clients.plan import FilePlan
from kmctl.clients.preview import render_diff
from kmctl.clients.report import Written, describe_plan, describe_problem
from kmctl.clients.survey import Found, Problem, carry_out, explain, time_stamp
from kmctl.clients.tree import NotUnderstood
from kmctl.clients.undo_store import hold_lock
from kmctl.screen import may_colour
from kmctl.text import harmless

STYLES = {"+": "green", "-": "red", "@": "cyan"}

Plan = Callable[[Found], FilePlan]


@dataclass(slots=True)
class Work:
    """What is to be done, and what became of it."""

    plans: list[tuple[FilePlan, Snapshot]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    written: list[Written] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    wrapped: int = 0
    """How many servers had km in front of them before."""
    absent: list[str] = field(default_factory=list)
    """What to say about clients that were asked for and have no file here."""

    @property
    def todo(self) -> list[FilePlan]:
        """The files that change."""
        return [plan for plan, _ in self.plans if plan.changes]


def prepare(surveyed: tuple[list[Found], list[Problem]], plan: Plan) -> Work:
    """Plan each file that could be read; nothing is changed."""
    found, problems = surveyed
    work = Work(problems=problems)
    for one in found:
        work.names.update(entry.name for entry in one.entries)
        work.wrapped += sum(1 for entry in one.entries if entry.wrapped)
        try:
            work.plans.append((plan(one), one.snapshot))
        except NotUnderstood as exc:
            work.problems.append(explain(one.source, exc))
    return work


def unknown_servers(work: Work, scope: Scope) -> list[str]:
    """Servers that were asked for and are nowhere."""
    return [name for name in scope.servers if name not in work.names]


def show_diffs(work: Work) -> None:
    """The differences, in colour on a terminal."""
    colour = may_colour(sys.stdout)
    for plan in work.todo:
        for line in render_diff(plan):
            click.echo(click.style(line, fg=STYLES.get(line[:1])) if colour else line, color=colour)


def show_lines(lines: Iterable[str]) -> None:
    """Lines on stdout."""
    for line in lines:
        click.echo(line)


def show_problems(problems: Sequence[Problem]) -> None:
    """One line for each file that is left as it is, and one for what to do about it."""
    for problem in problems:
        click.echo(f"error: {harmless(problem.reason)}", err=True)
        if problem.hint:
            click.echo(f"hint: {harmless(problem.hint)}", err=True)


def finish(work: Work, state_dir: Path, more: Sequence[Path] = ()) -> None:
    """
    Replace every file that changes, and remove what killed runs have left; a file that fails does not stop the others.

    more: folders of other homes that have undo records too. Raises: FileRefused when another run holds the lock.
    """
    drafts = [draft for plan, _ in work.plans for draft in find_drafts(plan.source.file)]
    if not work.todo and not drafts:
        return
    with hold_lock(state_dir) as folder:
        for draft in drafts:
            draft.unlink(missing_ok=True)
        replace_all(work, [folder, *more])
    check_written(work)


def replace_all(work: Work, folders: Sequence[Path]) -> None:
    """Replace every file that changes; what cannot be replaced becomes a problem."""
    stamp = time_stamp()
    for plan, snapshot in work.plans:
        if not plan.changes:
            continue
        try:
            work.written.append(Written(plan, carry_out(plan, snapshot, folders, stamp)))
        except FileRefused as exc:
            work.problems.append(Problem(plan.source, str(exc), exc.hint))


def check_written(work: Work) -> None:
    """Look at every file again: a client that runs may have written its own text over ours at once."""
    for written in work.written:
        source = written.plan.source
        try:
            same = read_file(source.file).raw == written.plan.after.encode("utf-8")
        except FileRefused:
            same = False
        if not same:
            reason = f"{source.file}: another program has changed it right after it was written"
            work.problems.append(Problem(source, reason, "end the client that uses it, then run the command again"))


def describe_files(work: Work) -> list[dict[str, object]]:
    """All files for --json."""
    backups = {id(one.plan): one.backup for one in work.written}
    refused = {problem.source.file for problem in work.problems}
    plans = [plan for plan, _ in work.plans if plan.source.file not in refused]
    return [
        *(describe_plan(plan, backups.get(id(plan))) for plan in plans),
        *(describe_problem(problem) for problem in work.problems),
    ]
