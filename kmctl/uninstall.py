"""`kmctl uninstall`: take km out of every client again; with --purge, delete what was captured too."""

import os
from pathlib import Path

import click

from kmctl.client_options import Scope, check_asking, client_option, dry_run_option, server_option, yes_option
from kmctl.clients.purge import delete_all, find_ours
from kmctl.clients.removing import find_all, forget_rest, plan_removal
from kmctl.clients.report import count_changes, render_dry_run, render_question, render_restarts
from kmctl.clients.run import Work, describe_files, finish, show_diffs, show_lines, show_problems, unknown_servers
from kmctl.clients.sources import this_machine
from kmctl.clients.undo_store import FOLDER
from kmctl.install import FAILED, say_trouble, show_written
from kmctl.options import chosen_home, current_places, home_option, json_option
from kmctl.screen import confirm, print_json
from kmctl.service import render_stopped
from kmctl.supervisors.lifecycle import Outcome, find_deployment, find_installed, remove_service
from kmctl.supervisors.plan import Deployment
from kmctl.supervisors.process import holder_pid
from kmctl.text import format_count, harmless
from kmd.errors import KilometersError
from kmd.paths import Places


@click.command()
@client_option
@server_option
@click.option("--purge", is_flag=True, help="Also delete everything that was captured, and the configuration.")
@yes_option
@dry_run_option
@home_option
@json_option
def uninstall(
    *, clients: tuple[str, ...], servers: tuple[str, ...], purge: bool, yes: bool, dry_run: bool, as_json: bool
) -> int:
    """
    Put every MCP server back to what it was, and have kmd run no more.

    A server that nobody has touched since gets its own bytes back, wherever it is now in its client's files; from
    one that was edited only km is taken out. What was captured stays, unless --purge says otherwise. With --client or
    --server kmd goes on for the others.

    \b
    Example:
      kmctl uninstall
      kmctl uninstall --client cursor
      kmctl uninstall --purge
    """
    check_asking(as_json=as_json, yes=yes, dry_run=dry_run)
    scope = Scope(clients, servers)
    if purge and not scope.everything:
        raise click.UsageError("--purge is about everything: leave --client and --server out")
    places, machine = current_places(), this_machine()
    sources, states = find_all(machine, places, scope)
    work = plan_removal(sources, states, scope)
    deployment = find_deployment(chosen_home(), os.environ) if scope.everything else None
    has_service = deployment is not None and bool(find_installed(deployment))
    if not as_json:
        show_diffs(work)
        show_problems(work.problems)
    if not dry_run:
        if not yes and (steps := list_steps(work, has_service=has_service)):
            confirm(render_question(steps))
        shown = len(work.problems)
        finish(work, places.state_dir, [state / FOLDER for state in states[1:]])
        if not work.problems:
            forget_rest(states, work, scope)
        if not as_json:
            show_written(work, machine.home, shown)
    removed, trouble = end_service(work, deployment if has_service and not dry_run else None)
    missing = unknown_servers(work, scope)
    if not as_json:
        say_rest(work, missing, removed, dry_run=dry_run, has_service=has_service)
        say_trouble(trouble)
    purged = run_purge(work, places, yes=yes, dry_run=dry_run, as_json=as_json) if purge and not trouble else []
    if as_json:
        print_json(
            {
                "dry_run": dry_run,
                "files": describe_files(work),
                "unknown_servers": missing,
                "kmd": {"manager": removed.kind, "stopped_pid": removed.stopped_pid} if removed else None,
                "kmd_error": str(trouble) if trouble else None,
                "purged": [str(path) for path in purged],
            },
            indent=2,
        )
    return FAILED if work.problems or missing or trouble else 0


def list_steps(work: Work, *, has_service: bool) -> list[str]:
    """What is about to be done, as halves of one sentence; empty when nothing is."""
    steps = [f"take km out of {count_changes(work.todo)}"] if work.todo else []
    steps += ["have kmd run no more"] if has_service else []
    return steps


def end_service(work: Work, deployment: Deployment | None) -> tuple[Outcome | None, KilometersError | None]:
    """Have kmd run no more, unless some servers could not be put back: what they say must go somewhere."""
    if deployment is None:
        return None, None
    if work.problems:
        hint = "correct them, then run 'kmctl uninstall' again; 'kmctl service remove' does it all the same"
        return None, KilometersError("kmd goes on: some files could not be put back", hint=hint)
    try:
        return remove_service(deployment), None
    except KilometersError as exc:
        return None, exc


def say_rest(work: Work, missing: list[str], removed: Outcome | None, *, dry_run: bool, has_service: bool) -> None:
    """What was found, and what to do next."""
    for name in missing:
        click.echo(f"error: there is no server {harmless(name)!r}", err=True)
    if not work.todo:
        click.echo("nothing to put back: km is in front of no server here")
    if dry_run:
        if steps := list_steps(work, has_service=has_service):
            click.echo(render_dry_run(steps))
        return
    if removed:
        for line in [*(f"removed {path}" for path in removed.files), *render_stopped(removed)]:
            click.echo(harmless(line))
    show_lines(render_restarts([one.plan for one in work.written]))


def run_purge(work: Work, places: Places, *, yes: bool, dry_run: bool, as_json: bool) -> list[Path]:
    """Delete what is ours, after asking; returns what was (or would be) deleted. Raises KilometersError."""
    if work.problems:
        hint = "correct them, then run the command again"
        raise KilometersError("nothing was deleted: some files could not be put back", hint=hint)
    if not dry_run and (pid := holder_pid(places.lock_file)) is not None:
        raise KilometersError(f"nothing was deleted: kmd runs (pid {pid})", hint="end it, then run the command again")
    ours = find_ours(places, [plan.source.file for plan, _ in work.plans])
    size = format_count(len(ours), "file")
    if dry_run:
        if not as_json:
            show_lines(f"would delete {harmless(str(path))}" for path in ours)
        return ours
    if ours and not yes:
        confirm(f"Delete {size} of Kilometers, with everything that was captured, for good?")
    delete_all(places, ours)
    if not as_json:
        click.echo(f"deleted {size} of Kilometers" if ours else "nothing to delete")
    return ours
