"""
The probe servers: `python -I -S probes.py NAME [WORD …]`. Each does one thing that a client can observe.

They use descriptors, never sys.stdin or sys.stdout, so that what is measured is the pipe and not a buffer.
Python ignores SIGPIPE; `default_sigpipe` undoes that where dying of it is the point.
"""
# ruff: noqa: PTH109, PTH208 - pathlib would take longer to import than most probes run

import errno
import fcntl
import json
import os
import resource
import select
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable

CHUNK_BYTES = 1 << 20
WAIT_MS = 8000


def read_all(fd: int = 0) -> bytes:
    parts = []
    while part := os.read(fd, CHUNK_BYTES):
        parts.append(part)
    return b"".join(parts)


def write_all(data: bytes, fd: int = 1) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def note(text: str) -> None:
    """Say something on stderr, which km leaves alone."""
    os.write(2, text.encode() + b"\n")


def default_sigpipe() -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def wait_gone(fd: int) -> bool:
    """Whether the other side of *fd* went away in time, seen without reading or writing."""
    poll = select.poll()
    poll.register(fd, 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(WAIT_MS))


def echo() -> None:
    """Give every byte back at once, until the end of stdin."""
    while part := os.read(0, CHUNK_BYTES):
        write_all(part)


def echo_then(*status: str) -> None:
    """Echo, and end with a status of its own."""
    echo()
    os._exit(int(status[0]))


def chatter() -> None:
    """Echo, with a word on stderr for each line."""
    while part := os.read(0, CHUNK_BYTES):
        for line in part.splitlines():
            note(f"got {len(line)}")
        write_all(part)


def noise(size: str) -> None:
    """Write *size* bytes of every kind to stderr, say on stdout that all went out, echo."""
    data = bytes(range(256)) * (int(size) // 256 + 1)
    write_all(data[: int(size)], 2)
    write_all(b"all out\n")
    echo()


def alternate(count: str) -> None:
    """Say whether stdout and stderr are one file, then write *count* words to each, by turns."""
    write_all(b"one file\n" if os.path.samestat(os.fstat(1), os.fstat(2)) else b"two files\n")
    for number in range(int(count)):
        write_all(b"o%d\n" % number)
        write_all(b"e%d\n" % number, 2)


def mark(path: str) -> None:
    """Echo; how many bytes have come so far is appended to the file *path* before they go back."""
    marks = os.open(path, os.O_WRONLY | os.O_APPEND)
    came = 0
    while part := os.read(0, CHUNK_BYTES):
        came += len(part)
        os.write(marks, b"%d" % came)
        write_all(part)


def sizes() -> None:
    """Answer each read with its size: shows how the bytes were cut."""
    while part := os.read(0, CHUNK_BYTES):
        write_all(b"%d\n" % len(part))


def emit(size: str, *end: str) -> None:
    """Write *size* bytes and end at once, by a status or a signal's name."""
    write_all(bytes(range(256)) * (int(size) // 256) + b"x" * (int(size) % 256))
    if not end:
        os._exit(0)
    if end[0].isdigit():
        os._exit(int(end[0]))
    os.kill(os.getpid(), getattr(signal, f"SIG{end[0]}"))
    time.sleep(WAIT_MS / 1000)


def die(name: str) -> None:
    """Die by a signal, as a crash does."""
    number = getattr(signal, f"SIG{name}")
    if name not in ("KILL", "STOP"):
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    time.sleep(WAIT_MS / 1000)


def obey(*names: str) -> None:
    """Wait for signals with their default action, or catch those named: each is reported; TERM also exits 3."""
    for number in (signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)

    def caught(number: int, _: object) -> None:
        write_all(b"caught %s\n" % signal.Signals(number).name.encode())
        if number == signal.SIGTERM:
            os._exit(3)

    for name in names:
        signal.signal(getattr(signal, f"SIG{name}"), caught)
    write_all(b"ready\n")
    echo()


def report() -> None:
    """Everything that a process can know about itself, as one JSON object."""
    write_all(json.dumps(describe_self()).encode())


def describe_self() -> dict[str, object]:
    limits = [name for name in dir(resource) if name.startswith("RLIMIT_")]
    mask = os.umask(0)
    try:
        cwd = os.getcwd()
    except FileNotFoundError:
        cwd = "gone"
    return {
        "pid": os.getpid(),
        "ppid": os.getppid(),
        "pgid": os.getpgid(0),
        "sid": os.getsid(0),
        "cwd": cwd,
        "umask": mask,
        "nice": os.nice(0),
        "cpus": sorted(os.sched_getaffinity(0)),
        "rlimits": {name: resource.getrlimit(getattr(resource, name)) for name in limits},
        "fds": describe_fds(),
        "stderr": os.fstat(2).st_ino,
    }


def describe_fds() -> dict[str, object]:
    """Kind and flags of each open descriptor; the one of the listing itself is left out."""
    found: dict[str, object] = {}
    for number in sorted(map(int, os.listdir("/proc/self/fd"))):
        try:
            kind = stat.S_IFMT(os.fstat(number).st_mode)
            flags = fcntl.fcntl(number, fcntl.F_GETFL) & (os.O_ACCMODE | os.O_NONBLOCK | os.O_APPEND)
            found[str(number)] = [kind, flags, fcntl.fcntl(number, fcntl.F_GETFD), capacity_bytes(number, kind)]
        except OSError:
            continue
    return found


def capacity_bytes(fd: int, kind: int) -> int:
    """How much a pipe or a socket holds before a writer waits."""
    if kind == stat.S_IFIFO:
        return fcntl.fcntl(fd, 1032)  # F_GETPIPE_SZ
    if kind == stat.S_IFSOCK:
        with socket.socket(fileno=os.dup(fd)) as sock:
            return sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    return 0


def after_eof() -> None:
    """Read to the end, and only then write."""
    data = read_all()
    write_all(b"after the end: %d\n" % len(data))


def close_stdout() -> None:
    """Let stdout go, read on, and tell on stderr what came."""
    write_all(b"last words\n")
    os.close(1)
    note(f"read {len(read_all())}")


def close_stdin(*ready: str) -> None:
    """Let stdin go without having read it, then write until told to stop by a signal, or once."""
    os.close(0)
    write_all(b"closed\n")
    if ready:
        signal.pause()


def close_both() -> None:
    """Let both go and live on until a signal."""
    os.close(0)
    os.close(1)
    note("closed")
    signal.pause()


def notice_reader_gone(*how: str) -> None:
    """Wait, idle, until nobody reads stdout any more; then write: SIGPIPE, or the error if *how* says so."""
    write_all(b"ready\n")
    note(f"gone {wait_gone(1)}")
    if not how:
        default_sigpipe()
    try:
        os.write(1, b"x")
    except OSError as exc:
        note(errno.errorcode.get(exc.errno or 0, "?"))


def notice_errors_gone() -> None:
    """The same of stderr."""
    write_all(b"ready\n")
    write_all(b"gone %d\n" % wait_gone(2))
    default_sigpipe()
    note("anyone?")


def flood() -> None:
    """Write for ever; ends by SIGPIPE."""
    default_sigpipe()
    while True:
        os.write(1, b"y" * 4096)


def reluctant() -> None:
    """Read nothing until SIGUSR1, then everything; how much goes to stdout."""
    signal.signal(signal.SIGUSR1, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    write_all(b"ready\n")
    signal.sigwait([signal.SIGUSR1])
    write_all(b"%d\n" % len(read_all()))


def heap(size: str) -> None:
    """Write *size* bytes, say on stderr that all went out, end."""
    write_all(b"h" * int(size))
    note("all out")


def both_first(size: str) -> None:
    """Write *size* bytes before reading anything, then read to the end."""
    write_all(b"s" * int(size))
    note(f"read {len(read_all())}")


def lines_both(count: str) -> None:
    """Write *count* numbered lines while reading whatever comes."""
    pending = b"".join(b'{"id":%d,"from":"server"}\n' % n for n in range(int(count)))
    view, got, ended = memoryview(pending), 0, False
    while view or not ended:
        readable, writable, _ = select.select([] if ended else [0], [1] if view else [], [], 5)
        if readable:
            part = os.read(0, CHUNK_BYTES)
            got, ended = got + len(part), not part
        if writable:
            view = view[os.write(1, view[:4096]) :]
    note(f"read {got}")


def leave_child() -> None:
    """End at once; a child keeps the pipes, and echoes."""
    if os.fork():
        os._exit(5)
    echo()


def leave_deaf_child() -> None:
    """Say something and end at once; a child keeps the pipes and ignores the end of stdin."""
    write_all(b"ready\n")
    if os.fork():
        os._exit(5)
    time.sleep(3600)


def late_child() -> None:
    """End at once; a child that does not read writes once the server is gone, then lets go."""
    server = os.getpid()
    if os.fork():
        write_all(b"server\n")
        os._exit(0)
    for _ in range(WAIT_MS):
        if os.getppid() != server:
            break
        time.sleep(0.001)
    write_all(b"child\n")


def stubborn() -> None:
    """Ignore the end of stdin and SIGTERM; only SIGKILL helps."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    write_all(b"ready\n")
    while True:
        time.sleep(3600)


def deaf() -> None:
    """Ignore the end of stdin, but not signals."""
    write_all(b"ready\n")
    time.sleep(3600)


def orphaned(*words: str) -> None:
    """A client: start a server on pipes, say its pid, and wait to be killed."""
    import subprocess

    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    os.read(process.stdout.fileno(), 6)
    note(str(process.pid))
    time.sleep(3600)


PROBES: tuple[Callable[..., None], ...] = (
    echo, echo_then, chatter, noise, alternate, mark, sizes, emit, die, obey, report, after_eof, close_stdout,
    close_stdin, close_both, notice_reader_gone, notice_errors_gone, flood, reluctant, heap, both_first, lines_both,
    leave_child, leave_deaf_child, late_child, stubborn, deaf, orphaned,
)  # fmt: skip

if __name__ == "__main__":
    {probe.__name__: probe for probe in PROBES}[sys.argv[1]](*sys.argv[2:])
