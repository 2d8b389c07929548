"""
The command group and the one table from what went wrong to an exit code.

0 ok, 1 failed, 2 usage, 3 no daemon, 4 degraded; 130 after Ctrl-C, 141 when the reader of a pipe went away.
"""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module

import click

from kmctl.options import home_option
from kmctl.text import harmless
from kmd.errors import ConfigError, DaemonUnavailable, KilometersError

FAILED = 1
USAGE = 2
NO_DAEMON = 3
INTERRUPTED = 130
PIPE_CLOSED = 141
"""128 + SIGPIPE. Not 0: `kmctl flush | head -1` must not look like a finished flush."""
COMPLETION_VARIABLE = "_KMCTL_COMPLETE"
"""Set by the shell's completion script; click answers it itself."""


COMMANDS = {
    "clients": "List MCP clients, their servers, and whether km is in front of them.",
    "completion": "Print the script with which a shell completes kmctl.",
    "config": "Show and change settings, with their sources.",
    "doctor": "Check everything that has to work, and say how to repair what does not.",
    "flush": "Wait until everything captured so far has been synced.",
    "install": "Put km in front of the MCP servers of your clients, and have kmd run.",
    "init": "Write the configuration: where to sync to, or nowhere.",
    "login": "Store a server's API key, after asking the server whose it is.",
    "logout": "Forget a server's API key, wherever it is kept.",
    "man": "Print the manual page of kmctl, or of one of its commands, or write all of them.",
    "quarantine": "Look after events that a destination refused.",
    "service": "Have kmd run from login on, and start, stop and watch it.",
    "status": "Show kmd, its outbox, live sessions and destinations.",
    "tail": "Show the last messages, and with -f those to come.",
    "uninstall": "Put every MCP server back to what it was, and have kmd run no more.",
}
"""
Each command's name, which is its function's and (but for MODULES) its module's too, and the first sentence of its help.

A command's module is loaded when it is used: each costs start-up time, and `--help` needs only this table. A test
holds the sentences to those in the modules.
"""
MODULES = {"clients": "client_list"}
"""Where a module cannot have its command's name: `kmctl.clients` is the package about their files."""


class LazyGroup(click.Group):
    """A group whose commands are loaded when they are asked for."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return sorted({*COMMANDS, *self.commands})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, cmd_name) or load_command(cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as exc:
            from difflib import get_close_matches

            close = "".join(f" Did you mean {name!r}?" for name in get_close_matches(args[0], COMMANDS, 1))
            raise click.UsageError(exc.message + close, ctx) from exc

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(COMMANDS.items()))


def load_command(name: str) -> click.Command | None:
    """The command *name*, None when there is none."""
    if name not in COMMANDS:
        return None
    command = getattr(import_module(f"kmctl.{MODULES.get(name, name)}"), name)
    assert isinstance(command, click.Command)  # noqa: S101 - for mypy; a test loads each
    return command


def print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click's shape
    """Print the installed version and end."""
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"kmctl {version('kilometers')}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=print_version, help="Show the version."
)
@home_option
def kmctl() -> None:
    """
    Set up Kilometers and see what it has captured.

    \b
    Example:
      kmctl install
      kmctl status
    """


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit code. Everything that can go wrong ends in one or two lines."""
    open_closed()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8 must not end in a traceback
    try:
        return invoke(arguments)
    except BrokenPipeError:
        return leave_stdout(PIPE_CLOSED)
    except OSError as exc:  # what commands expect of files they have made a KilometersError of: this is our own output
        with suppress(OSError):  # both may go to the same full disk
            show_error(f"{exc.filename or 'the output'}: {exc.strerror or exc}", "is there room where it goes?")
        return leave_stdout(FAILED)


def open_closed() -> None:
    """Put nothing in the place of a standard stream that is closed (`>&-`): Python has None there."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - until the process ends


def invoke(arguments: Sequence[str]) -> int:
    """Run the command and translate what it raises. Raises BrokenPipeError."""
    try:
        if COMPLETION_VARIABLE in os.environ:
            kmctl.main(args=list(arguments), prog_name="kmctl")
        # click's own `main` would print an empty line on Ctrl-C and exit by itself on a closed pipe.
        with kmctl.make_context("kmctl", list(arguments)) as ctx:
            code = kmctl.invoke(ctx)
    except click.exceptions.Exit as exc:
        return exc.exit_code
    except click.exceptions.NoArgsIsHelpError as exc:
        click.echo(exc.format_message(), err=True)
        return USAGE
    except click.UsageError as exc:
        path = exc.ctx.command_path if exc.ctx else "kmctl"
        show_error(" ".join(exc.format_message().split()), f"see '{path} --help'")
        return USAGE
    except click.ClickException as exc:
        show_error(exc.format_message(), "")
        return FAILED
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except DaemonUnavailable as exc:
        show_error(str(exc), exc.hint)
        return NO_DAEMON
    except KilometersError as exc:
        show_error(str(exc), exc.hint)
        is_usage = isinstance(exc, ConfigError) and exc.key in ("--url", "--name")
        return USAGE if is_usage else FAILED
    return code if isinstance(code, int) else 0


def show_error(message: str, hint: str) -> None:
    """One line that says what is wrong and, where there is one, a line that says what to do next."""
    click.echo(f"error: {harmless(message)}", err=True)
    if hint:
        click.echo(f"hint: {harmless(hint)}", err=True)


def leave_stdout(code: int) -> int:
    """Point stdout at nothing, so that the interpreter's last flush stays quiet too; returns *code*."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code
