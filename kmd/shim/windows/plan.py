"""
What km does on Windows, decided before it does anything: which program with which command line, what it inherits, what
ends with what, and how km ends. Pure.
"""

from collections.abc import Callable, Mapping

from kmd.shim.start import EX_CANNOT_EXECUTE, EX_NOT_FOUND
from kmd.shim.windows.quoting import UnsafeWordError, render_batch_line, render_command_line
from kmd.shim.windows.search import find_program, is_batch

CREATE_SUSPENDED, EXTENDED_STARTUPINFO_PRESENT, CREATE_NO_WINDOW = 0x4, 0x80000, 0x8000000
JOB_BREAKAWAY_OK, JOB_KILL_ON_CLOSE = 0x800, 0x2000
JOB_WHILE_SERVED = JOB_KILL_ON_CLOSE | JOB_BREAKAWAY_OK
"""
While the server runs: when km goes, whatever the reason, Windows ends the server and what it has started; what is left
would hold pipes that lead nowhere. A child that the server explicitly starts outside of jobs may leave: without the
second flag starting it would fail, which it does not without km.
"""
JOB_AFTERWARDS = JOB_BREAKAWAY_OK
"""Once the server has ended by itself: what it left behind lives on, as it does without km."""
NOT_FOUND_ERRORS = frozenset((2, 3, 15, 53, 67, 123, 161))
"""File, path, drive, network path and share not found; names that no file has."""
ACCESS_DENIED, ELEVATION_REQUIRED = 5, 740
NO_PROGRAM_ERRORS = frozenset((191, 192, 193, 216))
"""Windows cannot run what is in the file, or not on this kind of machine."""


class Launch:
    """application: the program's absolute path. command_line: what it is given."""

    __slots__ = ("application", "command_line")

    def __init__(self, application: str, command_line: str) -> None:
        self.application = application
        self.command_line = command_line


class CannotStartError(Exception):
    """The server cannot be started. status: what km exits with, as a shell would; the text is one line for the user."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def plan_launch(
    words: list[str], environ: Mapping[str, str], folder: str, system: str, is_file: Callable[[str], bool]
) -> Launch:
    """
    How to start *words*.

    environ: with names in capitals; folder: the current one; system: Windows' own folder with cmd.exe, from Windows and
    not from a variable. Raises CannotStartError.
    """
    path = find_program(words[0], environ, folder, is_file)
    if path is None:
        raise not_found(words[0])
    try:
        if is_batch(path):
            shell = system.rstrip("\\") + "\\cmd.exe"
            return Launch(shell, render_batch_line(shell, path, words[1:]))
        return Launch(path, render_command_line(words))
    except UnsafeWordError as exc:
        raise CannotStartError(EX_CANNOT_EXECUTE, f"cannot execute {words[0]!r}: {exc}") from exc


def not_found(command: str) -> CannotStartError:
    return CannotStartError(
        EX_NOT_FOUND, f"command not found: {command!r} (check the spelling and PATH, or give its full path)"
    )


def explain_failure(command: str, error: int, reason: str) -> CannotStartError:
    """Windows did not start *command*: its error number and its words for that."""
    if error in NOT_FOUND_ERRORS:
        return not_found(command)
    if error == ACCESS_DENIED:
        reason = "permission denied (is it a program, and may you run it?)"
    elif error == ELEVATION_REQUIRED:
        reason = "it wants administrator rights (start the client as administrator, or use another server)"
    elif error in NO_PROGRAM_ERRORS:
        reason = "Windows cannot run this file (put the interpreter in front of a script, such as python or node)"
    return CannotStartError(EX_CANNOT_EXECUTE, f"cannot execute {command!r}: {reason}")


def creation_flags(*, has_console: bool) -> int:
    """
    Suspended, so that it is in its job before it runs. It shares km's console. Where km has none Windows would make one
    for it and show it, so it gets one without a window; DETACHED_PROCESS, as km itself was started there, would have
    the next program that the server starts do that.
    """
    return CREATE_SUSPENDED | EXTENDED_STARTUPINFO_PRESENT | (0 if has_console else CREATE_NO_WINDOW)


def exit_argument(code: int) -> int:
    """The server's exit code, 32 bits without a sign (0xC000013A: ended by Control-C), as os._exit takes it."""
    return code - (1 << 32) if code >= 1 << 31 else code
