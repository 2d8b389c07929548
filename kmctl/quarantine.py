"""`kmctl quarantine`: the events that a destination refused, kept until a person has decided about them."""

from collections.abc import Iterator
from contextlib import contextmanager

import click

from kmctl.answers import Answer, Refused, Retried, parse_part
from kmctl.daemon import ANSWER_TIMEOUT_S, open_answers
from kmctl.options import Decorated, current_places, home_option, json_option
from kmctl.screen import confirm, print_json, print_page
from kmctl.start import start_command
from kmctl.text import format_count, harmless

RETRY_TIMEOUT_S = 120.0
"""For one event: kmd's own bound on a request, several times over."""
LIST_MAX = 1000
"""More rows than that are for programs: --json prints all."""


def destination_option(function: Decorated) -> Decorated:
    """Add --destination NAME to a command."""
    option = click.option(
        "--destination", metavar="NAME", help="Only what this destination refused (else any destination)."
    )
    return option(function)


def all_option(function: Decorated) -> Decorated:
    """Add --all to a command; it arrives as `everything`."""
    return click.option("--all", "everything", is_flag=True, help="All refused events.")(function)


@click.group()
@home_option
def quarantine() -> None:
    """
    Look after events that a destination refused.

    Events are named by their number (`seq`), which `list` shows.

    \b
    Example:
      kmctl quarantine list
      kmctl quarantine retry --all
    """


@quarantine.command("list")
@destination_option
@home_option
@json_option
def list_(destination: str | None, as_json: bool) -> int:  # noqa: FBT001 - click's shape
    """
    List refused events and why they were refused.

    \b
    Example:
      kmctl quarantine list
      kmctl quarantine list --destination team --json | jq .reason
    """
    with ask_quarantine("list", destination=destination) as answers:
        if as_json:
            for answer in answers:
                parse_part(answer, "refused", Refused)
                print_json(answer["refused"])
            return 0
        entries = [parse_part(answer, "refused", Refused) for answer in answers]
    if not entries:
        click.echo("no event was refused")
        return 0
    from kmctl.pages import render_refused

    print_page(render_refused(entries[:LIST_MAX]))
    if len(entries) > LIST_MAX:
        click.echo(f"… and {len(entries) - LIST_MAX:,} more (--json prints all)")
    return 0


@quarantine.command(context_settings={"ignore_unknown_options": True})  # a number may be negative
@click.argument("number", type=int)
@destination_option
@home_option
@json_option
def show(number: int, destination: str | None, as_json: bool) -> int:  # noqa: FBT001 - click's shape
    """
    Show a refused event with its payload.

    At most the first MiB; control characters are shown as text, such as \\x1b.

    \b
    Example:
      kmctl quarantine show 4711
      kmctl quarantine show 4711 --json | jq -r .event.payload
    """
    from kmctl.pages import render_entry

    with ask_quarantine("show", destination=destination, seq=number) as answers:
        for position, answer in enumerate(answers):
            entry = parse_part(answer, "refused", Refused)
            if as_json:
                print_json(answer["refused"])
            else:
                click.echo("\n".join([""] * bool(position) + render_entry(entry)))
    return 0


@quarantine.command(context_settings={"ignore_unknown_options": True})
@click.argument("number", type=int, required=False)
@all_option
@destination_option
@home_option
@json_option
def retry(number: int | None, everything: bool, destination: str | None, as_json: bool) -> int:  # noqa: FBT001
    """
    Send refused events again.

    Each goes alone. One that the destination takes now leaves the quarantine; exit code 1 when one stays.

    \b
    Example:
      kmctl quarantine retry 4711
      kmctl quarantine retry --all --destination team
    """
    check_choice(number, everything=everything)
    final: Answer = {}
    with ask_quarantine("retry", destination=destination, seq=number, everything=everything) as answers:
        for answer in answers:
            if "done" in answer:
                final = answer
            elif as_json:
                print_json(answer["retried"])
            else:
                print_retried(parse_part(answer, "retried", Retried))
    delivered, kept = parse_part(final, "delivered", int), parse_part(final, "kept", int)
    if not as_json:
        click.echo(f"{format_count(delivered, 'event')} delivered, {kept:,} kept")
    return 1 if kept else 0


@quarantine.command(context_settings={"ignore_unknown_options": True})
@click.argument("number", type=int, required=False)
@all_option
@destination_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@home_option
@json_option
def drop(number: int | None, everything: bool, destination: str | None, yes: bool, as_json: bool) -> int:  # noqa: FBT001
    """
    Forget refused events for good.

    Their destination will never get them. Asks first; `kmctl status` goes on counting them.

    \b
    Example:
      kmctl quarantine drop 4711
      kmctl quarantine drop --all --destination team --yes
    """
    check_choice(number, everything=everything)
    if not yes:
        what = f"refused event {number}" if number is not None else "all refused events"
        confirm(f"Forget {what}{f' of {destination}' if destination else ''} for good?")
    with ask_quarantine("drop", destination=destination, seq=number, everything=everything) as answers:
        final = next(answers, {})
    dropped = parse_part(final, "dropped", int)
    if as_json:
        print_json({"dropped": dropped})
    else:
        click.echo(f"{format_count(dropped, 'event')} dropped")
    return 0


def check_choice(number: int | None, *, everything: bool) -> None:
    """Raises click.UsageError unless there is either a number or --all."""
    if (number is None) != everything:
        raise click.UsageError("give the number of an event, or --all")


@contextmanager
def ask_quarantine(
    action: str, *, destination: str | None, seq: int | None = None, everything: bool = False
) -> Iterator[Iterator[Answer]]:
    """kmd's answers about the quarantine. Raises as open_answers does."""
    request = {"op": "quarantine", "action": action, "destination": destination, "seq": seq, "all": everything}
    wait_s = RETRY_TIMEOUT_S if action == "retry" else ANSWER_TIMEOUT_S
    with open_answers(current_places().control_socket, request, wait_s=wait_s, start=start_command) as answers:
        yield answers


def print_retried(retried: Retried) -> None:
    """One line on stdout for an event that arrived; why not, on stderr, for one that stays."""
    where = harmless(f"{retried.seq} to {retried.destination}")
    if retried.delivered:
        click.echo(f"delivered {where}")
        return
    hint = f" ({retried.hint})" if retried.hint else ""
    click.echo(f"error: not delivered {where}: {harmless(f'{retried.error}{hint}')}", err=True)
