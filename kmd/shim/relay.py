"""
The relay: stands between client and server, passes bytes on, and shows kmd a copy.

Two *pumps*, one thread each, block on their own direction only: read at most 64 KiB, write all of it, hand
the chunk to the tap. The *watch* tells a pump when its far side has gone. The main thread is the *link*: it connects
to kmd, again and again if need be, and after the last byte waits a little until kmd has everything. Nothing here can
stop or delay the traffic.
"""

import _signal
import _socket
import gc
import os
import select
import stat
import sys
import time
from _thread import allocate_lock, start_new_thread

from kmd.record import STDERR, TO_CLIENT, TO_SERVER
from kmd.shim.bulk import CHUNK_BYTES, Tee, are_plain_pipes, load_tee
from kmd.shim.hello import describe, meeting_dir, new_session_id
from kmd.shim.link import Ending, Link
from kmd.shim.scheduling import SHORT_NS, set_turns
from kmd.shim.spool import Spool
from kmd.shim.start import Plan
from kmd.shim.tap import LARGE_BYTES, Tap
from kmd.shim.watch import Watch

SWITCH_S = 0.0002
"""How long a thread here may keep the interpreter while a pump waits for it; the interpreter's own 5 ms is a pause."""
KEPT_SIGNALS = frozenset(
    getattr(_signal, name)
    for name in ("SIGCHLD", "SIGILL", "SIGTRAP", "SIGABRT", "SIGBUS", "SIGFPE", "SIGSEGV", "SIGSYS")
)
"""
All others are ignored: the relay ends with the traffic, and with nothing else. `pkill -f` of a server's name hits its
relay, too, as both have the same words, and the server's answer to the signal must still arrive.
"""


def run(plan: Plan, server_pid: int, ends: dict[int, int], errors_fd: int, ready_fd: int) -> None:
    """
    Relay between the client's descriptors and *ends*, the other sides of the server's, until all directions have
    ended. errors_fd: the client's stderr, where it is captured or reported on, or -1; ready_fd: see start.READY.

    Raises an exception only before the first byte.
    """
    now_ns = time.time_ns()
    session_id = new_session_id(now_ns, os.urandom(10))
    hello = describe(plan.command, plan.name, server_pid, session_id, now_ns)
    try:
        meeting = meeting_dir(plan.home)
    except OSError:
        meeting = "/"  # a relative home under a folder that is gone: nothing to connect to, but the traffic runs
    let_go(keep=(0, 1, errors_fd, ready_fd, *ends.values()))
    wake_in, wake_out = os.pipe()
    os.set_blocking(wake_out, False)
    os.set_blocking(wake_in, False)
    flows = [(0, ends[0], TO_SERVER), (ends[1], 1, TO_CLIENT)]
    if 2 in ends:
        flows.append((ends[2], errors_fd, STDERR))
    ending = Ending()
    watch = open_watch()
    spool: Spool
    tap: Tap
    session: Session
    if plan.strict:
        from kmd.shim.strict import StrictSession, StrictTap, SyncedSpool  # noqa: PLC0415 - the others need not wait

        spool = synced = SyncedSpool(meeting, session_id, hello)
        tap = recorder = StrictTap(wake_out, synced)
        session = StrictSession(recorder, watch, ending, len(flows), errors_fd)
        session.get_ready(ready_fd)
    else:
        spool = Spool(meeting, session_id, hello)
        tap = Tap(wake_out, spool)
        if os.isatty(0):
            from kmd.shim.terminal import TerminalSession  # noqa: PLC0415 - no MCP client gives a terminal

            session = TerminalSession(tap, watch, ending, len(flows), server_pid)
        else:
            session = Session(tap, watch, ending, len(flows))
    sys.setswitchinterval(SWITCH_S)
    without_thread = start_pumps(session, flows)
    try:
        if without_thread is not None:
            session.pump(*without_thread)  # the link, which has this thread, comes after it
        session.load_tee()
        set_turns(SHORT_NS)
        Link(tap, spool, ending, hello, meeting, wake_in).run()
    except Exception:  # noqa: BLE001, S110 - no fault of the capture may end the traffic
        pass
    finally:
        session.wait()


def start_pumps(session: "Session", flows: list[tuple[int, int, int]]) -> tuple[int, int, int] | None:
    """
    A thread for each of *flows*. Returns the last one when the user may not have a thread for it, too.

    Raises RuntimeError when there is none to be had even for the first.
    """
    start_new_thread(session.pump, flows[0])
    for flow in flows[1:]:
        try:
            start_new_thread(session.pump, flow)
        except RuntimeError:
            if flow is flows[-1]:
                return flow
            os._exit(1)  # one direction alone would only look like a relay
    return None


def let_go(keep: tuple[int, ...]) -> None:
    """Hold nothing of the client's but the two pipes: not its directory, its stderr or another descriptor."""
    os.chdir("/")
    for signum in range(1, _signal.NSIG):
        if signum not in KEPT_SIGNALS:
            try:
                _signal.signal(signum, _signal.SIG_IGN)
            except (OSError, ValueError):
                pass  # not to be ignored, or the C library's own
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
    """The pumps, *flows* of them, and what they know about the end: who closed first, and whether all are done."""

    def __init__(self, tap: Tap, watch: Watch | None, ending: Ending, flows: int) -> None:
        self._tap = tap
        self._watch = watch
        self._ending = ending
        self._lock = allocate_lock()
        self._running = flows
        self._done = allocate_lock()
        self._done.acquire()
        self._closed_first = b""
        self._tee: Tee | None = None
        self._anchor_ns = time.time_ns() - time.monotonic_ns()

    def load_tee(self) -> None:
        """Once the pumps run: it takes some milliseconds."""
        self._tee = load_tee()

    def pump(self, near: int, far: int, stream: int) -> None:
        """Pass *near* on to *far* until one of them ends; then close both, as the two ends would see it bare."""
        near_side, far_side = (b"client", b"server") if stream == TO_SERVER else (b"server", b"client")
        closed_by = near_side
        if self._watch is not None:
            self._watch.begin(near, far)
        try:
            if not self._relay(near, far, stream):
                closed_by = far_side
        finally:
            if self._watch is not None:
                self._watch.end(far)
            end_writing(far)
            os.close(far)
            os.close(near)
            self._end(b"" if stream == STDERR else closed_by)

    def _relay(self, near: int, far: int, stream: int) -> bool:
        """Returns whether the near side ended (True) or the far side went away (False)."""
        buffer = memoryview(bytearray(CHUNK_BYTES))
        into = (buffer,)
        while True:
            if self._watch is None and not wait_for_near(near, far):
                return False
            try:
                size = os.readv(near, into)
            except BlockingIOError:
                wait_for(near, select.POLLIN)
                continue
            except OSError:
                return True
            if not size:
                return self._watch is None or not self._watch.has_interrupted(far)
            at_ns = time.monotonic_ns() + self._anchor_ns
            chunk = buffer[:size]
            crossed = write_all(far, chunk)
            try:
                self._tap.keep(stream, chunk[:crossed] if crossed < size else chunk, at_ns)
            except Exception:  # noqa: BLE001 - no fault of the capture may end the traffic
                self._tap.detach()
            if crossed < size:
                return False
            comes_in_bulk = size == CHUNK_BYTES or (size > LARGE_BYTES and self._tap.prefers_spool)
            if comes_in_bulk and not self._relay_bulk(near, far, stream):
                return False

    def _relay_bulk(self, near: int, far: int, stream: int) -> bool:
        """As long as large chunks come in a row, pass them on without reading them. Returns whether *far* is there."""
        tee = self._tee
        if tee is None or self._watch is None or not are_plain_pipes(near, far):
            return True
        while segment := self._tap.open_segment(stream):
            while not segment.is_full:
                size = tee(near, segment.write_end)
                if size <= 0:
                    return True  # whatever it is, the next read sees it
                at_ns = time.monotonic_ns() + self._anchor_ns
                crossed = splice_all(near, far, size)
                segment.is_spoilt = crossed < size
                self._tap.keep_segment(stream, segment, crossed, at_ns)
                if segment.is_spoilt:
                    return False
                if size < LARGE_BYTES:
                    return True
        return True

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


def end_writing(fd: int) -> None:
    """Have the other side of a socket see the end, also where the other direction holds the same socket open."""
    if stat.S_ISSOCK(os.fstat(fd).st_mode):
        sock = _socket.socket(fileno=fd)
        try:
            sock.shutdown(_socket.SHUT_WR)
        except OSError:
            pass  # it has gone
        finally:
            sock.detach()


def open_watch() -> Watch | None:
    """None where the client's limits leave no descriptors or thread for it: the pumps then look before each read."""
    try:
        watch = Watch()
        start_new_thread(watch.run, ())
    except (OSError, RuntimeError):
        return None
    return watch


def wait_for_near(near: int, far: int) -> bool:
    """Until there is something to read, or its end. False when the far side goes first."""
    poll = select.poll()
    poll.register(near, select.POLLIN)
    poll.register(far, 0)
    return all(fd == near for fd, _ in poll.poll())


def write_all(far: int, chunk: memoryview) -> int:
    """Write *chunk*, waiting as long as the far side does not read. Returns how much of it crossed."""
    done = 0
    while done < len(chunk):
        try:
            done += os.write(far, chunk[done:] if done else chunk)
        except BlockingIOError:  # the client made its end non-blocking; the flag is shared, so it stays
            wait_for(far, select.POLLOUT)
        except OSError:
            break
    return done


def splice_all(near: int, far: int, size: int) -> int:
    """Move *size* bytes that lie in one pipe on to another. Returns how much of it crossed."""
    done = 0
    while done < size:
        try:
            done += os.splice(near, far, size - done)
        except BlockingIOError:
            wait_for(far, select.POLLOUT)
        except OSError:
            break
    return done


def wait_for(fd: int, event: int) -> None:
    """Until *fd* is ready, or broken."""
    poll = select.poll()
    poll.register(fd, event)
    poll.poll()
