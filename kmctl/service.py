"""`kmctl service`: have kmd run from login on, or whenever km needs it, and look after it."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import click

from kmctl.options import chosen_home, home_flag, home_option, json_option
from kmctl.page import Facts
from kmctl.screen import print_json, print_page
from kmctl.supervisors.lifecycle import (
    INSTALL_HINT,
    Outcome,
    Report,
    find_deployment,
    find_installed,
    install_service,
    read_service,
    remove_service,
    restart_service,
    start_service,
    stop_service,
)
from kmctl.supervisors.plan import Deployment, Kind
from kmctl.text import harmless
from kmd.errors import DaemonUnavailable, KilometersError

NO_DAEMON = 3
LOG_TAIL_BYTES = 4 << 20
"""How far back `logs` looks in a file; a line of kmd's has some hundred bytes."""
LINES_MAX = 100_000
FOLLOW_S = 0.25
MANAGERS = {Kind.SYSTEMD: "systemd", Kind.LAUNCHD: "launchd", Kind.TASK: "the task scheduler", Kind.KM: "km"}


def current_deployment() -> Deployment:
    """What this command line and its environment mean. Raises KilometersError."""
    return find_deployment(chosen_home(), os.environ)


@click.group()
@home_option
def service() -> None:
    """
    Have kmd run from login on, and start, stop and watch it.

    With systemd, launchd or Windows' task scheduler kmd is started at login. Where there is none of them, km
    starts it when it is needed.

    \b
    Example:
      kmctl service install
      kmctl service status
      kmctl service logs -f
    """


@service.command()
@click.option(
    "--manager",
    type=click.Choice(["auto", *(kind.value for kind in Kind)]),
    default="auto",
    show_default=True,
    help="Who starts kmd; km: each relay looks.",
)
@home_option
@json_option
def install(manager: str, as_json: bool) -> int:  # noqa: FBT001 - click's shape
    """
    Have kmd started at login, and start it now.

    A second call changes nothing. A kmd that was started by hand is ended and started anew.

    \b
    Example:
      kmctl service install
      kmctl service install --manager km
    """
    outcome = install_service(current_deployment(), None if manager == "auto" else Kind(manager))
    return show(outcome, render_install(outcome), as_json=as_json)


@service.command()
@home_option
@json_option
def remove(as_json: bool) -> int:  # noqa: FBT001 - click's shape
    """
    Stop kmd, and have nobody start it again. Configuration and data stay.

    \b
    Example:
      kmctl service remove
    """
    outcome = remove_service(current_deployment())
    lines = [f"removed {path}" for path in outcome.files] or ["nothing to remove: kmd is not installed as a service"]
    return show(outcome, [*lines, *render_stopped(outcome)], as_json=as_json)


@service.command()
@home_option
@json_option
def start(as_json: bool) -> int:  # noqa: FBT001 - click's shape
    """
    Start kmd.

    \b
    Example:
      kmctl service start
    """
    outcome = start_service(current_deployment())
    return show(outcome, [f"kmd {'runs' if outcome.changed else 'runs already'} (pid {outcome.pid})"], as_json=as_json)


@service.command()
@home_option
@json_option
def stop(as_json: bool) -> int:  # noqa: FBT001 - click's shape
    """
    Stop kmd until 'start' or the next login; what km captures meanwhile is kept.

    \b
    Example:
      kmctl service stop
    """
    outcome = stop_service(current_deployment())
    return show(outcome, render_stopped(outcome) or ["kmd does not run"], as_json=as_json)


@service.command()
@home_option
@json_option
def restart(as_json: bool) -> int:  # noqa: FBT001 - click's shape
    """
    Stop kmd and start it again, for instance after an update.

    \b
    Example:
      kmctl service restart
    """
    outcome = restart_service(current_deployment())
    return show(outcome, [*render_stopped(outcome), f"kmd runs (pid {outcome.pid})"], as_json=as_json)


@service.command()
@home_option
@json_option
def status(as_json: bool) -> int:  # noqa: FBT001 - click's shape
    """
    Show who starts kmd and whether it runs; exit code 3 when it does not.

    \b
    Example:
      kmctl service status
    """
    report = read_service(current_deployment())
    if as_json:
        print_json(describe_report(report), indent=2)
    else:
        print_page((Facts(tuple(render_report(report))),))
    return 0 if report.pid is not None else NO_DAEMON


@service.command()
@click.option("-f", "--follow", is_flag=True, help="Go on until Ctrl-C.")
@click.option(
    "-n", "lines", type=click.IntRange(0, LINES_MAX), default=50, show_default=True, help="Lines to look back."
)
@home_option
def logs(follow: bool, lines: int) -> int:  # noqa: FBT001 - click's shape
    """
    Show what kmd has said, from the journal or its log file.

    \b
    Example:
      kmctl service logs -n 200
      kmctl service logs -f
    """
    one = current_deployment()
    for supervisor in find_installed(one):
        if words := supervisor.log_words(one, lines, follow=follow):
            try:
                os.execvp(words[0], words)  # noqa: S606 - becomes the journal's own viewer
            except OSError as exc:
                raise KilometersError(f"{words[0]} cannot be run ({exc.strerror})", hint="install it") from exc
    if not one.log_file.exists():
        raise DaemonUnavailable(f"{one.log_file}: kmd has not written a log", hint=INSTALL_HINT)
    for line in read_log(one.log_file, lines, follow=follow):
        click.echo(harmless(line))
    return 0


def read_log(path: Path, lines: int, *, follow: bool) -> Iterator[str]:
    """The last *lines* of the file at *path*, and with *follow* those to come, also in a file that replaces it."""
    with path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_TAIL_BYTES))
        found = file.read().decode("utf-8", "replace").splitlines()
        yield from found[-lines:] if lines else []
        while follow:
            if line := file.readline():
                yield line.decode("utf-8", "replace").rstrip("\n")
            elif is_replaced(path, file.fileno()):
                yield from read_log(path, LINES_MAX, follow=True)
            else:
                time.sleep(FOLLOW_S)


def is_replaced(path: Path, descriptor: int) -> bool:
    """Whether another file stands at *path* by now."""
    try:
        return path.stat().st_ino != os.fstat(descriptor).st_ino
    except OSError:
        return False


def show(outcome: Outcome, lines: list[str], *, as_json: bool) -> int:
    """Print *outcome* for a program, or *lines* for a person."""
    if as_json:
        print_json(
            {
                "manager": outcome.kind,
                "changed": outcome.changed,
                "files": [str(path) for path in outcome.files],
                "pid": outcome.pid,
                "stopped_pid": outcome.stopped_pid,
            },
            indent=2,
        )
        return 0
    for line in lines:
        click.echo(harmless(line))
    return 0


def render_install(outcome: Outcome) -> list[str]:
    """What `install` says. Pure."""
    if not outcome.changed:
        return [f"unchanged: kmd runs (pid {outcome.pid}), {render_kind(outcome.kind)}"]
    lines = [*render_stopped(outcome), *(f"wrote {path}" for path in outcome.files)]
    return [*lines, f"kmd runs (pid {outcome.pid}), {render_kind(outcome.kind)}"]


def render_kind(kind: Kind) -> str:
    """Who starts kmd, and when."""
    if kind is Kind.KM:
        return "and km starts it when it is away (there is no service manager here, or you chose so)"
    return f"started at login by {MANAGERS[kind]}"


def render_stopped(outcome: Outcome) -> list[str]:
    """The kmd that was ended, if one was."""
    return [f"kmd has stopped (pid {outcome.stopped_pid})"] if outcome.stopped_pid is not None else []


def describe_report(report: Report) -> dict[str, object]:
    """What `status --json` prints."""
    return {
        "manager": report.kind,
        "installed": report.state.installed,
        "starts_at_login": report.state.starts_at_login,
        "running": report.pid is not None,
        "pid": report.pid,
        "files": [str(path) for path in report.state.files],
        "log": str(report.log_file) if report.log_file else None,
    }


def render_report(report: Report) -> list[tuple[str, str]]:
    """What `status` says, one fact a line. Pure."""
    facts = [("kmd", f"runs (pid {report.pid})" if report.pid is not None else "does not run")]
    if report.kind is None:
        return [*facts, ("started by", f"nobody: {INSTALL_HINT}")]
    facts.append(("started by", f"{MANAGERS[report.kind]}, {when(report)}"))
    facts += [("file", str(path)) for path in report.state.files]
    facts.append(("log", f"{report.log_file or f'kmctl service logs{home_flag()}'}"))
    return facts


def when(report: Report) -> str:
    """When kmd is started."""
    if report.kind is Kind.KM:
        return "when it is away" if report.state.files else "not before 'kmctl service start': it was stopped"
    return "at login" if report.state.starts_at_login else "not at login: 'kmctl service install' repairs that"
