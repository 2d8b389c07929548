"""`kmctl install`: put km in front of every MCP server on this machine, and have kmd run."""

import os
import re
from pathlib import Path

import click

from kmctl.client_options import Scope, check_asking, client_option, dry_run_option, server_option, yes_option
from kmctl.clients.installing import check_launcher, find_launcher, plan_work
from kmctl.clients.report import (
    count_changes,
    render_dry_run,
    render_left,
    render_question,
    render_restarts,
    render_shared,
    render_written,
)
from kmctl.clients.run import Work, describe_files, finish, show_diffs, show_lines, show_problems, unknown_servers
from kmctl.clients.sources import Machine, this_machine
from kmctl.clients.words import Launcher
from kmctl.options import chosen_home, current_places, home_option, json_option
from kmctl.screen import confirm, print_json
from kmctl.service import render_install
from kmctl.start import start_command
from kmctl.supervisors.lifecycle import Outcome, find_deployment, find_installed, install_service
from kmctl.supervisors.plan import Deployment
from kmctl.text import format_count, harmless
from kmd.errors import KilometersError
from kmd.paths import Places

FAILED = 1
FLEETING = re.compile(r"[/\\]\.cache[/\\]|[/\\]Caches[/\\]|^/var/tmp/|[/\\]uv[/\\](?:cache|archive-v\d)")
"""Where 'uvx' and 'pipx run' keep what they run once."""


@click.command()
@client_option
@server_option
@click.option("--no-service", is_flag=True, help="Only the clients: do not have kmd started at login.")
@yes_option
@dry_run_option
@home_option
@json_option
def install(
    *, clients: tuple[str, ...], servers: tuple[str, ...], no_service: bool, yes: bool, dry_run: bool, as_json: bool
) -> int:
    """
    Put km in front of the MCP servers of your clients, and have kmd run.

    Finds the clients' files on this machine and the project files in the current folder, shows what it will change,
    and asks. Only the command of each server changes; 'kmctl uninstall' puts every byte back. Values of
    environment variables and headers are never shown. Running it again changes nothing.

    \b
    Example:
      kmctl install
      kmctl install --dry-run
      kmctl install --client cursor --server github --yes
    """
    check_asking(as_json=as_json, yes=yes, dry_run=dry_run)
    places, machine = current_places(), this_machine()
    scope = Scope(clients, servers)
    launcher = find_launcher(named_home(places))
    check_launcher(launcher)
    work = plan_work(machine, places, scope, launcher)
    if not as_json:
        show_plans(work, machine)
        show_lines(warn_fleeting(launcher))
    deployment = None if no_service else find_deployment(chosen_home(), os.environ)
    needs_service = deployment is not None and not find_installed(deployment)
    if not dry_run:
        if not yes and (steps := list_steps(work, needs_service=needs_service)):
            confirm(render_question(steps))
        shown = len(work.problems)
        finish(work, places.state_dir)
        if not as_json:
            show_written(work, machine.home, shown)
    outcome, trouble = (None, None) if deployment is None or dry_run else start_service(deployment)
    missing = unknown_servers(work, scope)
    if as_json:
        print_json(
            {
                "dry_run": dry_run,
                "files": describe_files(work),
                "unknown_servers": missing,
                "kmd": {"manager": outcome.kind, "pid": outcome.pid} if outcome else None,
                "kmd_error": str(trouble) if trouble else None,
            },
            indent=2,
        )
    else:
        say_rest(work, missing, machine, outcome, dry_run=dry_run, needs_service=needs_service)
        say_trouble(trouble)
    return FAILED if work.problems or missing or trouble else 0


def named_home(places: Places) -> Path | None:
    """The home that km has to be told, None when it is the default one."""
    return places.meeting_dir if chosen_home() is not None or os.environ.get("KM_HOME") else None


def show_plans(work: Work, machine: Machine) -> None:
    """What will change, and what will not and why."""
    show_diffs(work)
    show_lines(render_left((plan for plan, _ in work.plans), machine.home))
    show_lines(harmless(sentence) for sentence in work.absent)
    show_problems(work.problems)


def warn_fleeting(launcher: Launcher) -> list[str]:
    """A warning when this installation stands where things are cleaned away: the servers would no longer start."""
    if not FLEETING.search(launcher.launch):
        return []
    return [
        f"note: Kilometers runs from {harmless(str(Path(launcher.launch).parents[2]))}, which is likely to be cleaned; "
        "servers would no longer start then. Install it for good first, with pipx or 'uv tool install'."
    ]


def list_steps(work: Work, *, needs_service: bool) -> list[str]:
    """What is about to be done, as halves of one sentence; empty when nothing is."""
    steps = [f"put km in front of {count_changes(work.todo)}"] if work.todo else []
    steps += ["have kmd started at login"] if needs_service else []
    return steps


def show_written(work: Work, home: Path, shown: int) -> None:
    """What was done, and what went wrong after the first *shown* problems."""
    for written in work.written:
        show_lines(render_written(written, home))
    show_problems(work.problems[shown:])


def start_service(deployment: Deployment) -> tuple[Outcome | None, KilometersError | None]:
    """Have kmd run; the clients are wrapped already, and km keeps what it captures when that fails."""
    try:
        return install_service(deployment), None
    except KilometersError as exc:
        return None, exc


def say_trouble(trouble: KilometersError | None) -> None:
    """Say what went wrong with kmd's service and what to do about it; nothing when nothing did."""
    if trouble:
        click.echo(f"error: {harmless(str(trouble))}", err=True)
        click.echo(f"hint: {harmless(trouble.hint)}", err=True)


def say_rest(
    work: Work, missing: list[str], machine: Machine, outcome: Outcome | None, *, dry_run: bool, needs_service: bool
) -> None:
    """What was found, and what to do next."""
    for name in missing:
        click.echo(f"error: there is no server {harmless(name)!r}", err=True)
    if not work.todo:
        click.echo(nothing_to_do(work))
    if dry_run:
        if steps := list_steps(work, needs_service=needs_service):
            click.echo(render_dry_run(steps))
        return
    for line in render_install(outcome) if outcome else [f"next: start kmd with '{start_command()}'"]:
        click.echo(harmless(line))
    done = [one.plan for one in work.written]
    show_lines(render_shared(done, machine.home))
    show_lines(render_restarts(done))


def nothing_to_do(work: Work) -> str:
    """Why there is nothing to install, as a sentence."""
    if work.wrapped:
        return f"nothing to change: km is in front of {format_count(work.wrapped, 'server')} already"
    return "found no MCP server that is started by a command"
