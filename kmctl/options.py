"""Options that several commands share, and the places that they decide."""

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from kmd.paths import Places, find_places

HOME = "kmctl.home"
"""Where click's context keeps the value of --home; the nearest to the end of the command line wins."""

PLAIN = "kmctl.plain"
"""Where it keeps --plain."""
PLAIN_VARIABLE = "KMCTL_PLAIN"

Decorated = TypeVar("Decorated", bound=Callable[..., object])


def remember_home(ctx: click.Context, _param: click.Parameter, value: Path | None) -> None:
    """Keep --home for the command, whether it stood before or after its name."""
    if value is not None:
        ctx.meta[HOME] = value


def remember_plain(ctx: click.Context, _param: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click's shape
    """Keep --plain for whatever prints."""
    if value:
        ctx.meta[PLAIN] = True


def is_plain() -> bool:
    """Whether the output is for a screen reader: --plain, or KMCTL_PLAIN in the environment."""
    ctx = click.get_current_context(silent=True)
    return bool(ctx and ctx.meta.get(PLAIN)) or bool(os.environ.get(PLAIN_VARIABLE))


def ca_file_option(function: Decorated) -> Decorated:
    """Add --ca-file, for a command that asks a server."""
    option = click.option(
        "--ca-file",
        type=click.Path(path_type=Path, dir_okay=False),
        help="PEM file of the authorities that this server's certificate may come from, and no others.",
    )
    return option(function)


def home_option(function: Decorated) -> Decorated:
    """Add what every command takes: --home DIR and --plain."""
    plain = click.option(
        "--plain",
        is_flag=True,
        expose_value=False,
        callback=remember_plain,
        help="Words only, one fact a line: for screen readers.",
    )
    option = click.option(
        "--home",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="DIR",
        expose_value=False,
        callback=remember_home,
        help="Directory of the installation (else KM_HOME, else the platform's places).",
    )
    return plain(option(function))


def json_option(function: Decorated) -> Decorated:
    """Add --json to a command; it arrives as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(function)


def chosen_home() -> Path | None:
    """The value of --home, None when it was not given."""
    home: Path | None = click.get_current_context().meta.get(HOME)
    return home


def current_places() -> Places:
    """The places that this command line and its environment mean. Raises ConfigError: no home is known."""
    return find_places(chosen_home(), os.environ)


def home_flag() -> str:
    """` --home DIR` for a command that we tell the user to run, absolute and quoted; empty when not given."""
    home = chosen_home()
    return f" --home {quote(str(Path.cwd() / home.expanduser()))}" if home is not None else ""


def quote(word: str) -> str:
    """*word* as the user's shell reads it back."""
    if sys.platform == "win32":
        import subprocess

        return subprocess.list2cmdline([word])
    return shlex.quote(word)
