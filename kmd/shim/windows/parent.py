"""
`km` on Windows: the parent of the server, as nothing can become another program there.

Two pipes take the place of the client's stdin and stdout. The server is started suspended, put into a *job* that ends
it should km be killed, and let go; then bytes are relayed (kmd.shim.windows.relay, imported while the server starts).
km ends when the server has, with its exit code. stderr is the client's own. Control-C is the server's affair.
"""

import sys

assert sys.platform == "win32"

import msvcrt
import os
import stat
import time

from kmd.shim.start import EX_UNABLE, EX_USAGE, Plan, fail, parse_args
from kmd.shim.windows.calls import (
    FILE_TYPE_CHAR,
    close_handle,
    create_pipe,
    duplicate_for_child,
    file_type,
    is_same_object,
    wait_for_any,
)
from kmd.shim.windows.plan import (
    JOB_AFTERWARDS,
    JOB_WHILE_SERVED,
    CannotStartError,
    Launch,
    creation_flags,
    exit_argument,
    explain_failure,
    plan_launch,
)
from kmd.shim.windows.processes import (
    assign_to_job,
    create_job,
    create_process,
    exit_code,
    handle_console_events,
    has_console,
    limit_job,
    resume_thread,
    shown_window,
    system_directory,
    terminate_process,
)

PIPE_BYTES = 64 << 10
"""Capacity of each pipe, as clients give; Windows takes it as advice."""
CLOSE_EVENT = 2
"""CTRL_CLOSE_EVENT; those above it are the end of the user's session and of Windows."""
CLOSING_S = 4.0
"""Windows ends a process 5 s after it has told it that its console closes; the server is told, too."""
LAUNCHER_VARIABLE = "__PYVENV_LAUNCHER__"
"""Set by the launcher of km's own virtual environment; a Python server would take that environment for its own."""


def main() -> None:
    """The `km` command. Exits with the server's exit code, or 0, 2, 125, 126, 127 as on POSIX."""
    try:
        plan = parse_args(sys.argv[1:])
    except ValueError as exc:
        stop(EX_USAGE, f"{exc} (try 'km --help')")
    if plan.shows:
        from kmd.shim.usage import USAGE, version_line  # noqa: PLC0415 - nobody waits for a server here

        sys.stdout.write(USAGE if plan.shows == "h" else version_line())
        raise SystemExit(0)
    if plan.strict:
        stop(EX_UNABLE, "--strict is not there on Windows yet (leave it out: capture works without it)")
    os.environ.pop(LAUNCHER_VARIABLE, None)
    try:
        launch = plan_launch(plan.command, os.environ, os.getcwd(), system_directory(), is_file)
        code = serve(plan, launch)
    except CannotStartError as exc:
        stop(exc.status, str(exc))
    os._exit(exit_argument(code))


def stop(status: int, message: str) -> None:
    """One line on stderr, and the end. A word of the command line may hold half of a surrogate pair."""
    fail(status, message.encode("utf-8", "backslashreplace").decode())


def is_file(path: str) -> bool:
    """Not followed: the aliases of Windows' own shop are no files, but can be started."""
    try:
        return not stat.S_ISDIR(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


class Server:
    """The server's process, suspended at first, and the job that it is in, if there is one."""

    def __init__(self, command: str, launch: Launch, stdio: list[int | None]) -> None:
        """Raises CannotStartError."""
        flags = creation_flags(has_console=has_console())
        try:
            self.process, self._thread, self.pid = create_process(
                launch.application, launch.command_line, stdio, flags, starts_hidden=shown_window()
            )
        except OSError as exc:
            raise explain_failure(command, exc.winerror, exc.strerror or str(exc)) from exc
        try:
            self._job: int | None = create_job(JOB_WHILE_SERVED)
            assign_to_job(self._job, self.process)
        except OSError:
            self._job = None  # Windows has its reasons; the server runs, and sees that km has gone by its stdin

    def go_on(self) -> None:
        resume_thread(self._thread)
        close_handle(self._thread)

    def wait(self) -> None:
        """Until it has ended; what it leaves behind is its own affair then."""
        wait_for_any([self.process], None)
        try:
            if self._job is not None:
                limit_job(self._job, JOB_AFTERWARDS)
        except OSError:
            pass  # the traffic comes first


class Console:
    """
    Takes what the console says to km, so that km stays: the server is told as well, and decides for itself.

    server: its process, once there is one.
    """

    def __init__(self) -> None:
        self.server: int | None = None
        self._callback = handle_console_events(self.take)

    def take(self, event: int) -> bool:
        """In a thread of its own. When the console closes, km has as long as this takes, and ends with the server."""
        if event >= CLOSE_EVENT:
            if self.server is not None:
                wait_for_any([self.server], CLOSING_S)
            time.sleep(CLOSING_S)
        return True


def serve(plan: Plan, launch: Launch) -> int:
    """Run the server; returns its exit code. Raises CannotStartError."""
    channels = open_channels(plan)
    stdio = [channels[fd][0] if fd in channels else copy_of(fd) for fd in range(3)]
    if plan.is_one_output:
        stdio[2] = stdio[1]
    console = Console()
    server = Server(plan.command[0], launch, stdio)
    console.server = server.process
    for handle in {handle for handle in stdio if handle is not None}:
        close_handle(handle)
    server.go_on()
    if channels:
        relay(plan, server, {fd: our_end for fd, (_, our_end) in channels.items()})
    else:
        server.wait()
    return exit_code(server.process)


def relay(plan: Plan, server: Server, ends: dict[int, int]) -> None:
    """Until the server has ended, and what it wrote has crossed."""
    from kmd.shim.windows.relay import begin  # noqa: PLC0415 - while the server starts

    try:
        session, capture = begin(plan, server.pid, ends)
    except (OSError, RuntimeError) as exc:
        terminate_process(server.process, EX_UNABLE)
        stop(EX_UNABLE, f"cannot relay: {exc}")
    if 2 not in ends:
        let_go_of_stderr()
    server.wait()
    session.wait_for_output()
    session.finish()
    if capture is not None:
        capture.leave()


def open_channels(plan: Plan) -> dict[int, tuple[int, int]]:
    """
    What takes the place of the client's stdin and stdout, and of stderr if *plan* wants it: descriptor -> (the server's
    end, to be inherited; km's end). Empty when there is nothing to replace, or no pipe to be had: then nothing is
    captured.
    """
    if client_handle(0) is None or client_handle(1) is None or is_two_way():
        return {}
    is_one_output = are_one_output()
    wanted = (0, 1, 2) if plan.stderr and client_handle(2) is not None and not is_one_output else (0, 1)
    try:
        channels = {fd: open_channel(server_reads=fd == 0) for fd in wanted}
    except OSError:
        return {}
    plan.is_one_output = is_one_output
    return channels


def is_two_way() -> bool:
    """
    Whether stdin is also stdout or stderr, one pipe for both ways. Windows does one thing at a time with such a pipe: a
    read that waits, as km's always does, would keep every answer from being written.
    """
    given, others = client_handle(0), (client_handle(1), client_handle(2))
    return given is not None and any(other is not None and is_same_object(given, other) for other in others)


def are_one_output() -> bool:
    """Whether stdout and stderr are one pipe or file, whose words have an order (`2>&1`). A console may stay one."""
    output, errors = client_handle(1), client_handle(2)
    if output is None or errors is None or file_type(output) == FILE_TYPE_CHAR:
        return False
    return is_same_object(output, errors)


def open_channel(*, server_reads: bool) -> tuple[int, int]:
    """A pipe: (the server's end, km's). Raises OSError."""
    read_end, write_end = create_pipe(PIPE_BYTES)
    server_end, our_end = (read_end, write_end) if server_reads else (write_end, read_end)
    inherited = duplicate_for_child(server_end)
    close_handle(server_end)
    return inherited, our_end


def client_handle(fd: int) -> int | None:
    """What the client gave for *fd*, or None."""
    try:
        handle = msvcrt.get_osfhandle(fd)
    except OSError:
        return None
    return handle if handle > 0 else None


def copy_of(fd: int) -> int | None:
    """The client's own, for the server; None when it gave none."""
    handle = client_handle(fd)
    try:
        return None if handle is None else duplicate_for_child(handle)
    except OSError:
        return None


def let_go_of_stderr() -> None:
    """Its end is the server's to give, and nothing of ours may turn up there, or in what gets its number next."""
    null = os.open("NUL", os.O_RDWR)
    os.dup2(null, 2)
    os.close(null)
