"""What the commands have in common: where the settings come from, and asking the store one question."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from km_server.config import SETTINGS, Loaded, ServerConfig, Setting, describe_bounds, load_config
from km_server.store.opening import open_store
from km_server.store.protocol import Store

T = TypeVar("T")
Command = Callable[..., Any]

KINDS: dict[type, click.ParamType[Any]] = {int: click.INT, float: click.FLOAT, str: click.STRING}

config_option = click.option(
    "--config",
    "config_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A TOML file with settings [KM_SERVER_CONFIG; else server.toml in your configuration folder, if it is there].",
)
SENTENCE_MAX = 200
"""Characters; what a command does is said in fewer."""
json_option = click.option("--json", "as_json", is_flag=True, help="Answer as JSON.")


class Group(click.Group):
    """A group whose help gives the whole first sentence of each command: click's own cuts it off."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, one.get_short_help_str(SENTENCE_MAX)) for name, one in commands if one])


def setting_options(*names: str) -> Callable[[Command], Command]:
    """Options for the settings with these *names*, all of them without one; the command gets them as strings."""
    chosen = [row for row in SETTINGS if not names or row.name in names]

    def decorate(command: Command) -> Command:
        for row in reversed(chosen):
            command = click.option(
                row.flag,
                row.name,
                type=KINDS[row.kind],
                help=f"{row.bounds.help} [{row.variable}]{describe_default(row)}",
                callback=check_bounds,
            )(command)
        return command

    return decorate


def describe_default(row: Setting) -> str:
    """The default as the help shows it."""
    return f" [default: {row.default}]" if row.default != "" else ""


def check_bounds(context: click.Context, parameter: click.Parameter, value: float | str | None) -> Any:  # noqa: ANN401
    """Raises click.BadParameter: a number that cannot be is wrong usage."""
    (row,) = [row for row in SETTINGS if row.name == parameter.name]
    if isinstance(value, int | float) and not row.bounds.least <= value <= row.bounds.most:
        raise click.BadParameter(f"must be {describe_bounds(row)}", ctx=context, param=parameter)
    return value


def load(config_file: Path | None, **flags: int | float | str | None) -> Loaded:
    """The settings of this process. Raises ConfigError."""
    return load_config(flags, os.environ, config_file)


def in_store(config: ServerConfig, ask: Callable[[Store], Awaitable[T]]) -> T:
    """Open the store for one question."""

    async def run() -> T:
        async with open_store(config.database_url) as store:
            return await ask(store)

    return asyncio.run(run())


def render_time(at_ns: int | None) -> str | None:
    """RFC 3339 to the second."""
    if at_ns is None:
        return None
    return f"{datetime.fromtimestamp(at_ns // 10**9, UTC):%Y-%m-%dT%H:%M:%SZ}"


def echo_table(columns: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    """Rows under their columns, for a terminal of any width."""
    cells = [columns, *(["-" if row[column] in (None, "") else str(row[column]) for column in columns] for row in rows)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(columns))]
    for line in cells:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
