"""Where output goes: a rich console that knows whether it is a terminal, and JSON lines."""

import json
import os
import sys
from typing import TYPE_CHECKING, TextIO

import click

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

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
        color_system="auto" if terminal and not os.environ.get("NO_COLOR") else None,
        width=None if terminal else PIPE_CELLS,
        markup=False,
        emoji=False,
        highlight=False,
    )


def print_page(page: "RenderableType") -> None:
    """*page* on stdout; a pipe gets it without the spaces that fill a table's last column."""
    console = open_console()
    with console.capture() as capture:
        console.print(page)
    text = capture.get()
    if not console.is_terminal:
        text = "".join(line.rstrip() + "\n" for line in text.splitlines())
    click.echo(text, nl=False, color=console.is_terminal)


def print_json(value: object, *, indent: int | None = None) -> None:
    """*value* as JSON in ASCII, so that no escape sequence in it can reach a terminal."""
    click.echo(json.dumps(value, indent=indent))
