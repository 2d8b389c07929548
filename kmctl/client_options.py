"""The options that say which clients and servers a command is about, and whether it asks."""

from collections.abc import Sequence
from dataclasses import dataclass

import click
from click.shell_completion import CompletionItem

from kmctl.options import Decorated


@dataclass(frozen=True, slots=True)
class Scope:
    """Which clients and servers a command is about, by name; an empty tuple means all of them."""

    clients: tuple[str, ...]
    servers: tuple[str, ...]

    def includes(self, server: str) -> bool:
        """Whether a server of that name is meant."""
        return not self.servers or server in self.servers

    @property
    def everything(self) -> bool:
        """Whether the command is about every server of every client."""
        return not self.clients and not self.servers


def check_clients(_ctx: click.Context, _param: click.Parameter, value: Sequence[str]) -> tuple[str, ...]:
    """Raises click.BadParameter, with those that there are, for a client that is not in the table."""
    if value:
        from kmctl.clients.table import BY_ID

        for name in value:
            if name not in BY_ID:
                raise click.BadParameter(f"{name!r} is not one of {', '.join(BY_ID)}")
    return tuple(value)


def complete_clients(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The clients whose names begin so."""
    from kmctl.clients.table import CLIENTS

    return [CompletionItem(one.id, help=one.title) for one in CLIENTS if one.id.startswith(incomplete)]


def client_option(function: Decorated) -> Decorated:
    """Add --client NAME to a command; it arrives as `clients`."""
    option = click.option(
        "--client",
        "clients",
        multiple=True,
        metavar="NAME",
        callback=check_clients,
        shell_complete=complete_clients,
        help="Only this client, such as cursor or claude-code; may be given again.",
    )
    return option(function)


def server_option(function: Decorated) -> Decorated:
    """Add --server NAME to a command; it arrives as `servers`."""
    option = click.option(
        "--server", "servers", multiple=True, metavar="NAME", help="Only servers of this name; may be given again."
    )
    return option(function)


def yes_option(function: Decorated) -> Decorated:
    """Add --yes to a command."""
    return click.option("--yes", is_flag=True, help="Do not ask.")(function)


def dry_run_option(function: Decorated) -> Decorated:
    """Add --dry-run to a command."""
    return click.option("--dry-run", is_flag=True, help="Show what would change, change nothing.")(function)


def check_asking(*, as_json: bool, yes: bool, dry_run: bool) -> None:
    """Raises click.UsageError where the command could not ask."""
    if as_json and not yes and not dry_run:
        raise click.UsageError("--json does not ask: give --yes or --dry-run too")
