"""`kmctl doctor`: everything that has to work, looked at, each fault with its fix."""

import os
import sys

import click

from kmctl.diagnosis.finding import Finding, describe_findings, is_healthy, name_home, render_findings
from kmctl.options import chosen_home, current_places, home_flag, home_option, is_plain, json_option
from kmctl.screen import print_json

DEGRADED = 4


@click.command()
@click.option("--no-start", is_flag=True, help="Do not start the servers to see whether they answer.")
@click.option("--offline", is_flag=True, help="Do not ask the destinations.")
@click.option("-v", "--verbose", is_flag=True, help="Show notes, and what is well, too.")
@home_option
@json_option
def doctor(*, no_start: bool, offline: bool, verbose: bool, as_json: bool) -> int:
    """
    Check everything that has to work, and say how to repair what does not.

    kmd, its files, outbox and disk; each destination with its key, TLS and clock; the clients' files; and each
    server behind km, which is started once, asked, and ended. Exit code 4 when something needs you.

    \b
    Example:
      kmctl doctor
      kmctl doctor --no-start --json | jq '.findings[] | select(.level == "bad")'
    """
    findings = examine(start=not no_start, ask=not offline)
    if as_json:
        print_json(describe_findings(findings), indent=2)
    else:
        for line in render_findings(findings, everything=verbose, plain=is_plain()):
            click.echo(line)
    return 0 if is_healthy(findings) else DEGRADED


def examine(*, start: bool, ask: bool) -> list[Finding]:
    """All findings. Raises KilometersError only when not even the places are known."""
    from importlib.metadata import version

    from kmctl.clients.sources import this_machine
    from kmctl.diagnosis.destinations import check_destinations
    from kmctl.diagnosis.local import check_local
    from kmctl.diagnosis.servers import check_clients, check_servers
    from kmctl.supervisors.lifecycle import find_deployment, read_service

    places = current_places()
    report = read_service(find_deployment(chosen_home(), os.environ))
    config, status, local = check_local(places, os.environ, report, version("kilometers"))
    findings = list(local)
    if config is not None and ask:
        findings += check_destinations(config, places.config_file, status)
    servers, more = check_clients(this_machine(), places)
    findings += more
    if start:
        findings += check_servers(servers, os.environ, tell)
    return [name_home(one, home_flag()) for one in findings]


def tell(label: str) -> None:
    """Say on a terminal's stderr what was asked just now, as it may take a while."""
    if sys.stderr.isatty():
        click.echo(f"asked {label}", err=True)
