"""
km's start: become the MCP server, with a relay beside it.

The process that the client started makes two pipes, forks the relay away (twice, so that it is nobody's
child), puts the pipes' ends in place of its own stdin and stdout and turns into the server. Whatever the
client then sees of the process is the server itself. Until `execve` nothing is imported beyond what a bare
interpreter has loaded, because every millisecond here delays the server.
"""

import _signal
import os
import stat
import sys

EX_USAGE, EX_UNABLE, EX_CANNOT_EXECUTE, EX_NOT_FOUND = 2, 125, 126, 127
FLAGS, VALUES, SHOWS = ("--stderr", "--strict"), ("--name", "--home"), ("--help", "-h", "--version")
READY = b"ready"
"""What a strict relay says once it can record; anything else is why it cannot."""
DEFAULT_PATH = b"/usr/local/bin:/usr/bin:/bin"
COERCED_LOCALES = (b"C.UTF-8", b"C.utf8", b"UTF-8")
CHUNK_BYTES = 64 << 10


class Plan:
    """
    What the command line asks for. name: None means the command's file name. shows: help or version instead.
    announce_fd: where the relay's pid is to be written, or -1. has_stderr: whether the client gave one.
    is_one_output: whether stdout and stderr are to stay one file, as with a shell's `2>&1`.
    """

    __slots__ = ("announce_fd", "command", "has_stderr", "home", "is_one_output", "name", "shows", "stderr", "strict")

    def __init__(self) -> None:
        self.announce_fd = -1
        self.has_stderr = is_open(2)
        self.is_one_output = False
        self.home: str | None = None
        self.name: str | None = None
        self.shows = ""
        self.stderr = False
        self.strict = False
        self.command: list[str] = []


def parse_args(args: list[str]) -> Plan:
    """Read km's own options up to the first other word. Raises ValueError with one sentence for the user."""
    plan = Plan()
    rest = list(args)
    while rest and rest[0].startswith("-"):
        option, equals, value = rest.pop(0).partition("=")
        if option == "--" and not equals:
            break
        if option in SHOWS:
            plan.shows = option.lstrip("-")[0]
            return plan
        if option in FLAGS:
            if equals:
                raise ValueError(f"{option} takes no value")
            setattr(plan, option[2:], True)
            continue
        if option not in VALUES:
            raise ValueError(f"unknown option {option}")
        if not equals:
            if not rest:
                raise ValueError(f"{option} needs a value")
            value = rest.pop(0)
        if not value:
            raise ValueError(f"{option} needs a value")
        setattr(plan, option[2:], value)
    if not rest or not rest[0]:
        raise ValueError("which server? give its command")
    plan.command = rest
    return plan


def main() -> None:
    """The `km` command. Never returns: it becomes the server, or exits 0, 2, 125 (not as strict as asked), 126, 127."""
    try:
        plan = parse_args(sys.argv[1:])
    except ValueError as exc:
        fail(EX_USAGE, f"{exc} (try 'km --help')")
    if plan.shows:
        from kmd.shim.usage import USAGE, version_line  # noqa: PLC0415 - nobody waits for a server here

        sys.stdout.write(USAGE if plan.shows == "h" else version_line())
        raise SystemExit(0)
    restore_signals()
    environ = original_environ()
    if os.getpid() == 1:
        plan.announce_fd = stay_as_init()
    channels = open_channels(plan)
    if start_relay(plan, channels):
        for target, (server_end, _) in channels.items():
            os.dup2(server_end, target)
        if plan.is_one_output:
            os.dup2(1, 2)
    for server_end, _ in channels.values():
        os.close(server_end)
    become(plan.command, environ)


def stay_as_init() -> int:
    """As a container's first process: see kmd.shim.first. Returns, in the child, where to write the relay's pid."""
    from kmd.shim.first import stay  # noqa: PLC0415 - needed there alone

    return stay()


def restore_signals() -> None:
    """Undo what the interpreter did to signals, so that the server starts with the defaults."""
    for signum in (_signal.SIGPIPE, getattr(_signal, "SIGXFSZ", None), _signal.SIGINT):
        if signum is None:
            continue
        handler = _signal.getsignal(signum)
        if signum != _signal.SIGINT or handler is _signal.default_int_handler:
            _signal.signal(signum, _signal.SIG_DFL)


class Environ:
    """An environment as execve(2) takes it: in its order, and with names that stand in it twice."""

    __slots__ = ("_pairs",)

    def __init__(self, pairs: list[tuple[bytes, bytes]]) -> None:
        self._pairs = pairs

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, name: bytes) -> bytes:
        """The first value of *name*, which is what getenv(3) finds."""
        for key, value in self._pairs:
            if key == name:
                return value
        raise KeyError(name)

    def keys(self) -> list[bytes]:
        return [key for key, _ in self._pairs]

    def values(self) -> list[bytes]:
        return [value for _, value in self._pairs]


def original_environ(path: str = "/proc/self/environ") -> Environ:
    """
    The environment that the client passed, without what the interpreter's start added to it.

    *path* is where the kernel shows it. Where there is no such file (macOS) it is worked out: repeated names are
    gone then, and LC_CTYPE where it named the C locale or one that is not there.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return Environ([pair for pair in os.environb.items() if not is_coerced(*pair)])
    parts = []
    while part := os.read(descriptor, 1 << 20):
        parts.append(part)
    os.close(descriptor)
    entries = (entry.partition(b"=") for entry in b"".join(parts).split(b"\0"))
    return Environ([(key, value) for key, equals, value in entries if key and equals])


def is_coerced(name: bytes, value: bytes) -> bool:
    """Whether the interpreter has set this variable: PEP 538 does so in the C locale, where PEP 540 is on, too."""
    return name == b"LC_CTYPE" and value in COERCED_LOCALES and sys.flags.utf8_mode != 0


Channels = dict[int, tuple[int, int]]
"""What takes the place of the server's descriptors: descriptor -> (the server's end, the relay's end)."""


def open_channels(plan: Plan) -> Channels:
    """
    Those for stdin and stdout, and for stderr if *plan* wants it; empty when there is none to be had, or nothing to
    replace: a server that is started without stdin or stdout gets no relay.
    """
    channels: Channels = {}
    try:
        channels[0] = server_end, relay_end = open_channel(0, server_reads=True)
        is_one_socket = is_one_file(0, 1) and stat.S_ISSOCK(os.fstat(0).st_mode)
        channels[1] = (os.dup(server_end), os.dup(relay_end)) if is_one_socket else open_channel(1, server_reads=False)
        plan.is_one_output = is_one_file(1, 2)
        if plan.stderr and plan.has_stderr and not plan.is_one_output:
            channels[2] = open_channel(2, server_reads=False)
    except OSError:
        for pair in channels.values():
            close_all(pair)
        channels.clear()
    return channels


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def is_one_file(one: int, other: int) -> bool:
    """Whether these are one pipe, socket or file. A terminal does not count: it may stay the server's."""
    about = os.fstat(one)
    return is_open(other) and os.path.samestat(about, os.fstat(other)) and not stat.S_ISCHR(about.st_mode)


def close_all(fds: tuple[int, ...]) -> None:
    for fd in fds:
        os.close(fd)


def open_channel(like: int, server_reads: bool) -> tuple[int, int]:  # noqa: FBT001
    """
    What takes the place of descriptor *like*, of the same kind and as (un)willing to wait: (the server's end, the
    relay's end). Raises OSError.

    A pipe; a socketpair where it is a socket, as Node gives to its children; `/dev/null` itself where the server
    is to read from it, as there is nothing to capture.
    """
    about = os.fstat(like)
    if stat.S_ISCHR(about.st_mode) and server_reads and about.st_rdev == os.stat("/dev/null").st_rdev:
        return os.dup(like), os.open("/dev/null", os.O_WRONLY)
    if stat.S_ISSOCK(about.st_mode):
        from _socket import socketpair  # noqa: PLC0415 - only these clients pay for it

        server_end, relay_end = (end.detach() for end in socketpair())
    else:
        read_end, write_end = os.pipe()
        server_end, relay_end = (read_end, write_end) if server_reads else (write_end, read_end)
    if not os.get_blocking(like):
        os.set_blocking(server_end, False)
    return server_end, relay_end


def start_relay(plan: Plan, channels: Channels) -> bool:
    """
    Start it; the relay's ends of *channels* are its own then. False when it cannot be started: the server keeps the
    client's descriptors, and only the capture is missing. A strict km rather ends.
    """
    server_pid = os.getpid()
    ready_in = ready_out = -1
    status = 1
    try:
        if plan.strict:
            ready_in, ready_out = os.pipe()
        if channels:
            child = os.fork()
            if child == 0:
                for server_end, _ in channels.values():
                    os.close(server_end)
                run_relay(plan, server_pid, channels, ready_out)
            status = wait_for_fork(child)
    except OSError:
        pass
    for _, relay_end in channels.values():
        os.close(relay_end)
    if plan.strict:
        close_all((ready_out,) if ready_out >= 0 else ())
        said = os.read(ready_in, 1000) if status == 0 else b"the relay cannot be started"
        if said != READY:
            fail(EX_UNABLE, f"--strict: {said.decode('utf-8', 'replace') or 'the relay has failed'}")
        os.close(ready_in)
    return status == 0


def wait_for_fork(child: int) -> int:
    """The status of the process between: 0 when it has left the relay behind."""
    try:
        _, status = os.waitpid(child, 0)
    except ChildProcessError:
        status = 0  # SIGCHLD is ignored here, as the client wished: the kernel has reaped it
    forget_child()
    return status


def forget_child() -> None:
    """The server must not find a SIGCHLD waiting that it has no child for: where it is blocked, it outlives execve."""
    if _signal.SIGCHLD in _signal.pthread_sigmask(_signal.SIG_BLOCK, ()):
        handler = _signal.getsignal(_signal.SIGCHLD)
        _signal.signal(_signal.SIGCHLD, _signal.SIG_IGN)  # which discards it
        _signal.signal(_signal.SIGCHLD, handler)


def run_relay(plan: Plan, server_pid: int, channels: Channels, ready_fd: int) -> None:
    """In the child: leave the client's process group, fork the relay proper, run it. Never returns."""
    try:
        if any(os.isatty(fd) for fd in (0, 1, 2)):
            os.setsid()  # only so may it read a terminal
        else:
            os.setpgid(0, 0)  # Linux shares out processors by session, too, and a relay apart is woken up later
        if relay := os.fork():
            if plan.announce_fd >= 0:
                os.write(plan.announce_fd, b"%d" % relay)
            os._exit(0)
    except BaseException:  # noqa: BLE001 - whatever it is, the server must start
        os._exit(1)
    errors_fd = -1
    try:
        if plan.has_stderr and (plan.strict or plan.stderr):
            errors_fd = os.dup(2)
        let_go_of_stderr(keep=tuple(relay_end for _, relay_end in channels.values()))
        from kmd.shim.detached import run_detached  # noqa: PLC0415 - after the fork: the server does not wait for it

        run_detached(plan, server_pid, channels, errors_fd, ready_fd)
    except Exception as exc:  # noqa: BLE001 - whatever it is, and before the first byte: the traffic comes first
        if plan.strict:
            os.write(ready_fd, str(exc).encode("utf-8", "replace"))
        else:
            pass_plainly(channels, errors_fd)
    finally:
        os._exit(0)


def pass_plainly(channels: Channels, errors_fd: int) -> None:
    """
    Capture is impossible (a damaged installation, no memory, too few descriptors), but bytes still cross: one process
    for each direction copies them, and that is all it does; one for all where there may be no more.
    """
    ends = {target: relay_end for target, (_, relay_end) in channels.items()}
    pairs = [(0, ends[0]), (ends[1], 1)]
    if 2 in ends:
        pairs.append((ends[2], errors_fd))
    fds = {0, 1, errors_fd, *ends.values()} - {-1}
    while len(pairs) > 1:
        try:
            if os.fork() == 0:
                copy(*pairs[-1], fds)
        except OSError:
            from kmd.shim.turns import copy_by_turns  # noqa: PLC0415 - rarely needed

            return copy_by_turns(pairs)
        pairs.pop()
    return copy(*pairs[0], fds)


def copy(near: int, far: int, fds: set[int]) -> None:
    """From *near* to *far*, without the other *fds*, until one of them ends. Never returns."""
    try:
        close_all(tuple(fds - {near, far}))
        os.set_blocking(near, True)
        os.set_blocking(far, True)
        while chunk := os.read(near, CHUNK_BYTES):
            while chunk:
                chunk = chunk[os.write(far, chunk) :]
    finally:
        os._exit(0)


def let_go_of_stderr(keep: tuple[int, ...]) -> None:
    """At once, before the imports: a client waits for the end of stderr, and that is the server's to give."""
    if 2 not in keep:
        null = os.open("/dev/null", os.O_RDWR)
        if null != 2:
            os.dup2(null, 2)
            os.close(null)


def become(command: list[str], environ: Environ) -> None:
    """
    Turn into *command*, looked up on the server's PATH as execvp(3) does. Never returns.

    Exits 127 when there is no such command and 126 when it cannot be executed, as a shell would.
    """
    name = os.fsencode(command[0])
    argv = [os.fsencode(word) for word in command]
    if b"/" in name:
        candidates = [name]
    else:
        folders = (environ[b"PATH"] if b"PATH" in environ.keys() else DEFAULT_PATH).split(b":")  # noqa: SIM118
        candidates = [(folder or b".") + b"/" + name for folder in folders]
    denied = False
    for path in candidates:
        try:
            execute(path, argv, environ)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError:
            denied = True
        except OSError as exc:
            if exc.errno == 8:  # ENOEXEC: a script without '#!', which execvp(3) hands to the shell
                execute(b"/bin/sh", [b"/bin/sh", path, *argv[1:]], environ)
            fail(EX_CANNOT_EXECUTE, f"cannot execute {command[0]!r}: {exc.strerror}")
        except ValueError:
            fail(EX_CANNOT_EXECUTE, "cannot execute: the command or environment holds a NUL character")
    if denied:
        fail(EX_CANNOT_EXECUTE, f"cannot execute {command[0]!r}: permission denied (is it executable?)")
    fail(EX_NOT_FOUND, f"command not found: {command[0]!r} (check the spelling and PATH, or give its full path)")


def execute(path: bytes, argv: list[bytes], environ: Environ) -> None:
    """execve(2), which asks an environment for its length, names and values alone. Raises OSError, ValueError."""
    os.execve(path, argv, environ)  # type: ignore[arg-type]


def fail(status: int, message: str) -> None:
    """One line on stderr, then exit with *status*."""
    text = f"km: {message}\n".encode("utf-8", "surrogateescape")
    try:
        os.write(2, text)
    except OSError:
        pass
    os._exit(status)
