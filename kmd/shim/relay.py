"""
The relay: stands between client and server, passes bytes on, and shows kmd a copy.

Two *pumps*, one thread each, block on their own direction only: read at most 64 KiB, write all of it, hand
the chunk to the tap. The main thread is the *link*: it connects to kmd, again and again if need be, and
after the last byte waits a little until kmd has everything. Nothing here can stop or delay the traffic.
"""

import _signal
import gc
import os
import select
import time
from _thread import allocate_lock, start_new_thread

from kmd.record import PROTOCOL, TO_CLIENT, TO_SERVER, render_fields
from kmd.shim.link import Ending, Link
from kmd.shim.tap import Tap

CHUNK_BYTES = 64 << 10
"""A pipe's capacity on Linux: one read empties it."""
GONE = select.POLLERR | select.POLLHUP | select.POLLNVAL
MEETING_DIR = ".kilometers"


def run(command: list[str], name: str | None, home: str | None, server_pid: int, near: int, far: int) -> None:
    """
    Relay the client's descriptors 0 and 1 to the server's *far* (its stdin) and *near* (its stdout) until both
    directions have ended. Runs in the detached process; *command* and *name* only describe the session.
    """
    now_ns = time.time_ns()
    session_id = new_session_id(now_ns, os.urandom(10))
    hello = describe(command, name, server_pid, session_id, now_ns)
    try:
        meeting = meeting_dir(home)
    except OSError:
        meeting = "/"  # a relative home under a folder that is gone: nothing to connect to, but the traffic runs
    let_go(keep=(0, 1, near, far))
    wake_in, wake_out = os.pipe()
    os.set_blocking(wake_out, False)
    os.set_blocking(wake_in, False)
    tap = Tap(wake_out)
    ending = Ending()
    session = Session(tap, ending)
    start_new_thread(session.pump, (0, far, TO_SERVER))
    start_new_thread(session.pump, (near, 1, TO_CLIENT))
    try:
        Link(tap, ending, hello, meeting, session_id, wake_in).run()
    finally:
        session.wait()


def meeting_dir(home: str | None) -> str:
    """Where kmd's socket is: --home, else KM_HOME, else one fixed place under HOME (see kmd.paths)."""
    chosen = home or os.environ.get("KM_HOME")
    if chosen:
        return os.path.abspath(os.path.expanduser(chosen))
    return os.path.join(os.path.expanduser("~"), MEETING_DIR)


def describe(command: list[str], name: str | None, server_pid: int, session_id: str, now_ns: int) -> bytes:
    """The body of HELLO. Arguments are left out: they may hold secrets, and nothing needs them."""
    return render_fields(
        {
            "protocol": b"%d" % PROTOCOL,
            "session": session_id.encode(),
            "name": os.fsencode(name or os.path.basename(command[0])),
            "command": os.fsencode(os.path.basename(command[0])),
            "pid": b"%d" % server_pid,
            "relay_pid": b"%d" % os.getpid(),
            "started_at_ns": b"%d" % now_ns,
        }
    )


def new_session_id(now_ns: int, random: bytes) -> str:
    """A UUIDv7 (RFC 9562 section 5.7) from the time and ten random bytes."""
    value = (now_ns // 1_000_000) << 80 | int.from_bytes(random, "big")
    value = value & ~(0xF << 76) & ~(0x3 << 62) | 0x7 << 76 | 0x2 << 62
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def let_go(keep: tuple[int, ...]) -> None:
    """Hold nothing of the client's but the two pipes: not its directory, its stderr or another descriptor."""
    os.chdir("/")
    for signum in (_signal.SIGPIPE, _signal.SIGHUP, _signal.SIGINT, _signal.SIGQUIT, _signal.SIGXFSZ):
        _signal.signal(signum, _signal.SIG_IGN)
    try:
        listed = os.listdir("/dev/fd")
    except OSError:
        listed = [str(number) for number in range(3, 256)]
    for text in listed:
        if int(text) not in keep:
            try:
                os.close(int(text))
            except OSError:
                pass  # the listing's own descriptor
    if 2 not in keep:
        null = os.open("/dev/null", os.O_RDWR)
        if null != 2:
            os.dup2(null, 2)
            os.close(null)
    gc.disable()  # nothing here makes cycles, and a collection would delay a message


class Session:
    """The two pumps and what they know about the end: who closed first, and whether both are done."""

    def __init__(self, tap: Tap, ending: Ending) -> None:
        self._tap = tap
        self._ending = ending
        self._lock = allocate_lock()
        self._running = 2
        self._done = allocate_lock()
        self._done.acquire()
        self._closed_first = b""
        self._anchor_ns = time.time_ns() - time.monotonic_ns()

    def pump(self, near: int, far: int, stream: int) -> None:
        """Pass *near* on to *far* until one of them ends; then close both, as the two ends would see it bare."""
        closed_by = b"server" if stream == TO_CLIENT else b"client"
        try:
            if not self._relay(near, far, stream):
                closed_by = b"client" if stream == TO_CLIENT else b"server"
        finally:
            os.close(far)
            os.close(near)
            self._end(closed_by)

    def _relay(self, near: int, far: int, stream: int) -> bool:
        """Returns whether the near side ended (True) or the far side went away (False)."""
        poll = select.poll()
        poll.register(near, select.POLLIN)
        poll.register(far, 0)
        while True:
            for fd, events in poll.poll():
                if fd == far and events & GONE:
                    return False
            try:
                chunk = os.read(near, CHUNK_BYTES)
            except BlockingIOError:
                continue
            except OSError:
                return True
            if not chunk:
                return True
            at_ns = time.monotonic_ns() + self._anchor_ns
            crossed = write_all(far, chunk)
            try:
                self._tap.keep(stream, chunk[:crossed], at_ns)
            except Exception:  # noqa: BLE001 - no fault of the capture may end the traffic
                self._tap.detach()
            if crossed < len(chunk):
                return False

    def _end(self, closed_by: bytes) -> None:
        with self._lock:
            self._closed_first = self._closed_first or closed_by
            self._running -= 1
            if self._running:
                return
        self._tap.close({"closed_first": self._closed_first}, time.monotonic_ns() + self._anchor_ns)
        self._ending.ended = True
        self._done.release()
        self._tap.wake()

    def wait(self) -> None:
        """Block until both directions have ended: whatever becomes of the capture, the traffic comes first."""
        with self._done:
            pass


def write_all(far: int, chunk: bytes) -> int:
    """Write *chunk*, waiting as long as the far side does not read. Returns how much of it crossed."""
    done = 0
    while done < len(chunk):
        try:
            done += os.write(far, memoryview(chunk)[done:] if done else chunk)
        except BlockingIOError:  # the client made its end non-blocking; the flag is shared, so it stays
            waiter = select.poll()
            waiter.register(far, select.POLLOUT)
            waiter.poll()
        except OSError:
            break
    return done
