"""Where output goes: a rich console that knows whether it is a terminal, JSON lines, yes-or-no questions."""

import json
import os
import shutil
import sys
from typing import TYPE_CHECKING, TextIO

import click

from kmctl.options import is_plain
from kmctl.page import Page, draw, is_wider, painted, speak, to_rich, unpainted
from kmctl.text import harmless

if TYPE_CHECKING:
    from rich.console import Console

PIPE_CELLS = 4000
"""In a pipe nothing is wrapped or cut: no value that a person reads is longer."""


def open_console(file: TextIO | None = None) -> "Console":
    """
    A console on *file* (stdout by default) that prints text as it is: no markup, no emoji codes.

    Colour only on a terminal, and only while NO_COLOR is unset or empty (no-color.org).
    """
    from rich.console import Console

    class PipeConsole(Console):
        """Leaves a closed pipe to kmctl.cli; rich would exit by itself, with another code."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    stream = file or sys.stdout
    terminal = stream.isatty()
    return PipeConsole(
        file=stream,
        force_terminal=terminal,
        color_system="auto" if may_colour(stream) else None,
        width=None if terminal else PIPE_CELLS,
        markup=False,
        emoji=False,
        highlight=False,
    )


def print_page(page: Page) -> None:
    """*page* on stdout: spoken with --plain, else drawn; a table that is wider than the terminal is folded."""
    if is_plain():
        for line in speak(page):
            click.echo(line)
        return
    terminal = sys.stdout.isatty()
    if terminal and is_wider(page, shutil.get_terminal_size().columns):
        open_console().print(to_rich(page))
        return
    for line in draw(page, painted if may_colour(sys.stdout) else unpainted):
        click.echo(line, color=terminal)


def print_json(value: object, *, indent: int | None = None) -> None:
    """*value* as JSON in ASCII, so that no escape sequence in it can reach a terminal."""
    click.echo(json.dumps(value, indent=indent))


def may_colour(file: TextIO) -> bool:
    """Whether *file* is a terminal whose user has not switched colours off."""
    return file.isatty() and not os.environ.get("NO_COLOR") and not is_plain()


def confirm(question: str) -> None:
    """
    Go on after a yes.

    Raises: click.exceptions.Exit (1) after a no, click.Abort for Ctrl-C, click.UsageError when there is nobody to ask.
    """
    if not sys.stdin.isatty():
        raise click.UsageError("there is nobody to ask: give --yes")
    if not click.confirm(harmless(question), err=True):
        click.echo("nothing was changed", err=True)
        raise click.exceptions.Exit(1)
