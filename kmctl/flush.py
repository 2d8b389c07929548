"""`kmctl flush`: wait until every destination has settled what is in the outbox now, or say why not."""

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import click

from kmctl.answers import Answer, Progress, Reason, Status, parse_part
from kmctl.daemon import ANSWER_TIMEOUT_S, RESTART_HINT, ask, open_answers
from kmctl.options import current_places, home_option, is_plain, json_option
from kmctl.screen import open_console, print_json
from kmctl.start import start_command
from kmd.errors import DaemonUnavailable
from kmd.paths import Places

LINE_EVERY_S = 1.0
"""In a pipe: at most one progress line in this time."""
TIMEOUT_MAX_S = 86_400.0

Show = Callable[[Sequence[Progress]], None]


def check_number(_ctx: click.Context, _param: click.Parameter, value: float) -> float:
    """Raises click.BadParameter for `nan`, which lies within every range."""
    if math.isnan(value):
        raise click.BadParameter("is not a number")
    return value


@click.command()
@click.option(
    "--timeout",
    "timeout_s",
    callback=check_number,
    type=click.FloatRange(0, TIMEOUT_MAX_S),
    default=30,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait.",
)
@home_option
@json_option
def flush(timeout_s: float, as_json: bool) -> int:  # noqa: FBT001 - click's shape
    """
    Wait until everything captured so far has been synced.

    Exit code 1 when the time is over before every destination has settled everything.

    \b
    Example:
      kmctl flush --timeout 60
    """
    places = current_places()
    answer = ask(places.control_socket, {"op": "status"}, start=start_command)
    if not parse_part(answer, "status", Status).destinations:
        print_local_only(as_json=as_json)
        return 0
    final = follow_flush(places, timeout_s, quiet=as_json)
    reasons = parse_part(final, "reasons", list[Reason]) if "reasons" in final else []
    if as_json:
        print_json({"reasons": [], **final})
    elif final.get("done") is True:
        click.echo("everything is synced")
    else:
        print_reasons(reasons)
    return 0 if final.get("done") is True else 1


def print_local_only(*, as_json: bool) -> None:
    """Without a destination there is nothing to wait for."""
    if as_json:
        print_json({"done": True, "reasons": [], "destinations": []})
    else:
        click.echo("nothing to sync to: local only")


def print_reasons(reasons: Sequence[Reason]) -> None:
    """One line per destination that is behind."""
    from kmctl.render import render_reason

    for reason in reasons:
        click.echo(f"error: {render_reason(reason)}", err=True)
    if not reasons:
        click.echo("error: kmd could not flush", err=True)


def follow_flush(places: Places, timeout_s: float, *, quiet: bool) -> Answer:
    """
    Ask for the flush and show how it goes.

    Returns: kmd's last answer with `done`, plus the last progress as `destinations`.
    Raises: DaemonUnavailable when kmd goes away before that.
    """
    request = {"op": "flush", "timeout_s": timeout_s}
    wait_s = timeout_s + ANSWER_TIMEOUT_S
    last: Answer = {"progress": []}
    with (
        open_answers(places.control_socket, request, wait_s=wait_s, start=start_command) as answers,
        open_progress(quiet=quiet) as show,
    ):
        for answer in answers:
            if "done" in answer:
                return {**answer, "destinations": last["progress"]}
            if "progress" in answer:
                show(parse_part(answer, "progress", list[Progress]))
                last = answer
    raise DaemonUnavailable("kmd went away before the flush was done", hint=RESTART_HINT)


@contextmanager
def open_progress(*, quiet: bool) -> Iterator[Show]:
    """What shows progress: bars on a terminal, a line now and then in a pipe, nothing when quiet. On stderr."""
    if quiet:
        yield lambda progress: None
    elif sys.stderr.isatty() and not is_plain():
        with open_bars() as show:
            yield show
    else:
        yield make_line_printer(time.monotonic)


@contextmanager
def open_bars() -> Iterator[Show]:
    """One bar per destination; its whole is what was pending when it was first seen."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bars

    from kmctl.text import harmless

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    with Bars(*columns, TextColumn("{task.fields[state]}", markup=False), console=open_console(sys.stderr)) as bars:
        tasks = {}

        def show(progress: Sequence[Progress]) -> None:
            for one in progress:
                if one.name not in tasks:
                    tasks[one.name] = bars.add_task(harmless(one.name), total=one.pending, state="")
                task = tasks[one.name]
                total = next(bar.total for bar in bars.tasks if bar.id == task) or 0
                total = max(total, one.pending)
                bars.update(task, total=total, completed=total - one.pending, state=harmless(one.state))

        yield show


def make_line_printer(clock: Callable[[], float]) -> Show:
    """Print a progress line, at most one per LINE_EVERY_S of *clock* (seconds)."""
    from kmctl.render import render_progress

    due = clock()

    def show(progress: Sequence[Progress]) -> None:
        nonlocal due
        if clock() >= due:
            due = clock() + LINE_EVERY_S
            click.echo(render_progress(progress), err=True)

    return show
