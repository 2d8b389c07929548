"""`kmctl status`: is kmd well, what is live, what is on its way where."""

import click

from kmctl.answers import Status, find_faults, parse_part
from kmctl.daemon import ask
from kmctl.options import current_places, home_option, json_option
from kmctl.screen import print_json, print_page
from kmctl.start import start_command

DEGRADED = 4


@click.command()
@home_option
@json_option
def status(as_json: bool) -> int:  # noqa: FBT001 - click's shape
    """
    Show kmd, its outbox, live sessions and destinations.

    Exit code 4 when something needs a look: a destination that is paused or retrying, refused events, traffic
    that was not captured.

    \b
    Example:
      kmctl status
      kmctl status --json | jq .destinations
    """
    places = current_places()
    answer = ask(places.control_socket, {"op": "status"}, start=start_command)
    now = parse_part(answer, "status", Status)
    if as_json:
        print_json(answer["status"], indent=2)
    else:
        from kmctl.pages import render_status

        print_page(render_status(now))
    return DEGRADED if find_faults(now) else 0
