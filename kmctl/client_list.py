"""`kmctl clients`: the MCP clients on this machine, their servers, and where km is in front of them."""

import click

from kmctl.client_options import Scope, client_option, server_option
from kmctl.clients.entries import Entry
from kmctl.clients.run import show_problems
from kmctl.clients.sources import find_sources, this_machine
from kmctl.clients.survey import Found, survey
from kmctl.clients.table import BY_ID, CLIENTS
from kmctl.options import home_option, json_option
from kmctl.screen import print_json, print_page


@click.command()
@client_option
@server_option
@home_option
@json_option
def clients(*, clients: tuple[str, ...], servers: tuple[str, ...], as_json: bool) -> int:
    """
    List MCP clients, their servers, and whether km is in front of them.

    Looks through the clients' files of this user and the project files in the current folder. Nothing is changed.

    \b
    Example:
      kmctl clients
      kmctl clients --client cursor --json
    """
    scope = Scope(clients, servers)
    found, problems = survey(find_sources(this_machine(), [BY_ID[name] for name in clients] or CLIENTS))
    rows = [(one, entry) for one in found for entry in one.entries if scope.includes(entry.name)]
    if as_json:
        print_json(
            {
                "servers": [describe_row(one, entry) for one, entry in rows],
                "errors": [
                    {"client": one.source.client, "path": str(one.source.file), "error": one.reason} for one in problems
                ],
            },
            indent=2,
        )
    elif rows:
        from kmctl.client_table import render_rows

        print_page(render_rows(rows))
    else:
        click.echo("no MCP server was found in the files of any client")
    if not as_json:
        show_problems(problems)
    return 1 if problems else 0


def describe_row(found: Found, entry: Entry) -> dict[str, object]:
    """A server for --json: no word of its command, no value."""
    return {
        "client": found.source.client,
        "server": entry.name,
        "transport": entry.transport,
        "wrapped": entry.wrapped is not None,
        "wrappable": entry.slot is not None and not entry.reason,
        "reason": entry.reason or None,
        "path": str(found.source.file),
        "shared": found.source.shared,
    }
