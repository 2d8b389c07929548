"""`kmctl tail`: messages as they come, one line each."""

from collections.abc import Callable

import click

from kmctl.answers import Answer, Seen, parse_part
from kmctl.daemon import ANSWER_TIMEOUT_S, open_answers
from kmctl.options import current_places, home_option, is_plain, json_option
from kmctl.screen import open_console, print_json
from kmctl.start import start_command
from kmd.errors import DaemonUnavailable

LINES_MAX = 10_000
"""`-n` is for looking back a little; the history is the server's business."""


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on until Ctrl-C.")
@click.option(
    "-n", "limit", type=click.IntRange(0, LINES_MAX), default=20, show_default=True, help="Messages to look back."
)
@home_option
@json_option
def tail(follow: bool, limit: int, as_json: bool) -> int:  # noqa: FBT001 - click's shape
    """
    Show the last messages, and with -f those to come.

    \b
    Example:
      kmctl tail -f
      kmctl tail -n 100 --json | jq .method
    """
    places = current_places()
    request = {"op": "tail", "limit": limit, "follow": follow}
    wait_s = None if follow else ANSWER_TIMEOUT_S
    show = print_event if as_json else make_printer()
    with open_answers(places.control_socket, request, wait_s=wait_s, start=start_command) as answers:
        for answer in answers:
            show(answer)
    if follow:
        raise DaemonUnavailable("kmd stopped", hint=f"start it with '{start_command()}'")
    return 0


def print_event(answer: Answer) -> None:
    """One event as one JSON line. Raises RemoteProtocolError."""
    parse_part(answer, "event", Seen)
    print_json(answer["event"])


def make_printer() -> Callable[[Answer], None]:
    """What prints an event for a person: cut to the terminal's width, whole in a pipe."""
    from kmctl.render import render_seen, speak_seen

    if is_plain():
        return lambda answer: click.echo(speak_seen(parse_part(answer, "event", Seen), None))
    console = open_console()

    def print_line(answer: Answer) -> None:
        width = console.width if console.is_terminal else None
        line = render_seen(parse_part(answer, "event", Seen), None, width)
        console.print(line, soft_wrap=True)

    return print_line
