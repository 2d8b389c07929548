"""
km as the first process of a container (pid 1): it stays, and the server is its child.

When pid 1 ends, the kernel kills everything else in the container at once: the relay would take the server's last
words with it. So here km does what a container's init does, and no more: it passes signals on, collects what has
ended, gives the relay a moment after the server, and ends with the server's status (128 + n for a signal).
"""

import _signal
import os
import time

RELAY_MAX_S = 5.0
"""How long the relay may take after the server: a grandchild that keeps the pipes must not keep the container."""
LOOK_S = 0.005
OWN_SIGNALS = frozenset(
    getattr(_signal, name)
    for name in ("SIGKILL", "SIGSTOP", "SIGCHLD", "SIGPIPE", "SIGILL", "SIGTRAP", "SIGABRT", "SIGBUS", "SIGFPE",
                 "SIGSEGV", "SIGSYS")
)  # fmt: skip
"""Not to be caught, or about km itself."""


def stay() -> int:
    """
    Fork. Returns in the child, which goes on to become the server, with a descriptor; whoever starts the relay writes
    its pid there. The first process never returns. Raises OSError when it cannot fork.
    """
    reader, writer = os.pipe()
    server = os.fork()
    if server == 0:
        os.close(reader)
        return writer
    try:
        os.close(writer)
        for signum in range(1, _signal.NSIG):
            pass_on(signum, server)
        let_go(reader)
        status = wait_for_server(server)
        wait_for_relay(reader)
    except BaseException:  # noqa: BLE001 - whatever it is, the container ends with it
        status = 1
    os._exit(status)


def pass_on(signum: int, server: int) -> None:
    """From now on the server gets this signal."""

    def forward(number: int, _: object) -> None:
        try:
            os.kill(server, number)
        except ProcessLookupError:
            pass

    if signum not in OWN_SIGNALS:
        try:
            _signal.signal(signum, forward)
        except (OSError, ValueError):
            pass  # the C library's own


def let_go(keep: int) -> None:
    """What the client gave is the server's and the relay's: the end of it must be theirs, too."""
    null = os.open("/dev/null", os.O_RDWR)
    for target in range(3):
        os.dup2(null, target)
    os.closerange(3, keep)
    os.closerange(keep + 1, keep + 256)


def wait_for_server(server: int) -> int:
    """Collect everything that ends, until the server has; returns the container's exit status."""
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == server:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def wait_for_relay(reader: int) -> None:
    """A moment for the relay, if there is one, to pass on the last bytes and to put what it holds in safety."""
    relay = int(os.read(reader, 32) or b"0")
    deadline_s = time.monotonic() + RELAY_MAX_S
    while relay and time.monotonic() < deadline_s:
        try:
            pid, _ = os.waitpid(relay, os.WNOHANG)
        except ChildProcessError:
            return
        if pid:
            return
        time.sleep(LOOK_S)
