"""
The link: connects the tap to kmd for as long as the session runs, and sees the last bytes off.

While the tap stands aside, or after a new connection, the spool is drained before anything newer is sent, so kmd
always sees one ordered session; what it has already is passed over there by its offset. Draining competes with the
traffic for the processors, so it waits for a quiet moment, though not for ever.
"""

import _socket
import os
import select
import time

from kmd.record import HELLO, NO_STREAM, WELCOME, RecordReader, parse_offsets, render_head
from kmd.shim.pace import GATHER_PAUSE_S, Pace
from kmd.shim.spool import Spool
from kmd.shim.tap import Tap

SOCKET = "kmd.sock"
READABLE, WRITABLE, GONE = 0x01, 0x04, 0x38
"""poll(2)'s numbers for POLLIN, POLLOUT, and POLLERR, POLLHUP or POLLNVAL. Windows has no poll to ask for them."""
HANDSHAKE_S = 1.0
"""How long kmd may take for WELCOME; a kmd that needs longer is hung."""
RETRY_FIRST_S, RETRY_MAX_S = 0.05, 2.0
LINGER_S = 1.0
"""After the last byte: how long to wait for kmd's next sign before leaving the rest to the spool."""
DRAIN_BYTES = 64 << 10


class Ending:
    """Whether the session has ended: set once, by the last pump."""

    __slots__ = ("ended",)

    def __init__(self) -> None:
        self.ended = False


class Link:
    """Runs in the relay's main thread. `wake_in` becomes readable when the tap or the end wants attention."""

    def __init__(self, tap: Tap, spool: Spool, ending: Ending, hello: bytes, meeting: str, wake_in: int) -> None:
        self._tap = tap
        self._spool = spool
        self._ending = ending
        self._hello = hello
        self._meeting = meeting
        self._wake_in = wake_in
        self._pace = Pace()

    def run(self) -> None:
        """Returns when the session has ended and everything is with kmd, or else in the spool."""
        retry_s = RETRY_FIRST_S
        while True:
            last_try = self._ending.ended
            is_connected = self._connect()
            self._tap.prepare()
            if is_connected:
                retry_s = RETRY_FIRST_S
                self._serve()
                if self._tap.is_done:
                    self._spool.discard()
                    return
            else:
                self._start_kmd()
                if last_try:
                    self._tap.leave_to_spool()
                    return
            self._wait_away(retry_s)
            retry_s = min(retry_s * 2, RETRY_MAX_S)

    def _start_kmd(self) -> None:
        """Have kmd started, where the user wants km to do that."""
        from kmd.shim.starter import start_kmd  # noqa: PLC0415 - only a relay without kmd needs it

        start_kmd(self._meeting)

    def _connect(self) -> bool:
        """One try: connect, HELLO, WELCOME."""
        sock = self._open()
        if sock is None:
            return False
        try:
            sock.send(render_head(HELLO, NO_STREAM, 0, 0, self._hello) + self._hello)
            self._tap.attach(sock, self._read_welcome(sock))
        except (OSError, ValueError):
            sock.close()
            return False
        return True

    def _open(self) -> _socket.socket | None:
        """A connection to kmd, or None. A long path is no obstacle: it is reached from its folder."""
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            os.chdir(self._meeting)
            sock.connect(SOCKET)
        except OSError:
            sock.close()
            return None
        finally:
            os.chdir("/")
        return sock

    def _read_welcome(self, sock: _socket.socket) -> tuple[int, ...]:
        """What kmd has of this session. Raises OSError when it does not say in time, ValueError on nonsense."""
        reader = RecordReader()
        while True:
            self._await(sock)
            answer = sock.recv(4096)
            if not answer:
                raise ConnectionResetError("kmd closed the connection")
            for record in reader.feed(answer):
                if record.type != WELCOME:
                    raise ValueError("not a welcome")
                return parse_offsets(record.body)

    def _await(self, sock: _socket.socket) -> None:
        """Until *sock* is readable, attending to the traffic meanwhile: it does not wait. Raises TimeoutError."""
        deadline_s = time.monotonic() + HANDSHAKE_S
        while True:
            ready = self._wait(max(0.0, deadline_s - time.monotonic()), sock.fileno(), READABLE)
            self._attend()
            if sock.fileno() in ready:
                return
            if time.monotonic() >= deadline_s:
                raise TimeoutError("kmd is silent")

    def _serve(self) -> None:
        """Watch the connection until kmd has everything, or the connection is lost or given up."""
        while not self._tap.is_done:
            ending = self._ending.ended
            is_draining = not self._tap.go_on()
            may_drain = is_draining and self._may_drain()
            fd, unsent = self._tap.poll_state()
            if fd < 0:
                return
            wants_acks = ending or is_draining or self._spool.size_bytes > 0
            wanted = (WRITABLE if unsent or may_drain else 0) | (READABLE if wants_acks else 0)
            ready = self._wait(LINGER_S if ending else self._pace.timeout_s(), fd, wanted)
            self._attend()
            self._answer(ready.get(fd, 0), is_draining=is_draining)
            if ending and not ready:
                self._tap.detach()

    def _may_drain(self) -> bool:
        self._observe()
        return self._ending.ended or self._pace.may_drain(self._spool.backlog_bytes)

    def _observe(self) -> None:
        tap = self._tap
        self._pace.observe(tap.inbox.kept_bytes, time.monotonic(), has_bulk=tap.inbox.has_bulk, is_aside=tap.must_drain)

    def _answer(self, events: int, *, is_draining: bool) -> None:
        """Do what the connection is ready for."""
        if events & WRITABLE and is_draining:
            while self._tap.drain(DRAIN_BYTES) and self._may_drain():
                pass
        elif events & WRITABLE:
            self._tap.flush()
        if events & (READABLE | GONE) and not self._tap.read_acks() and events & GONE:
            self._tap.detach()

    def _wait_away(self, duration_s: float) -> None:
        """Wait before the next try, spilling meanwhile; the end of the session cuts it short."""
        deadline_s = time.monotonic() + duration_s
        while not self._ending.ended and (left_s := deadline_s - time.monotonic()) > 0:
            self._observe()
            self._wait(min(left_s, self._pace.timeout_s() or left_s))
            self._attend()

    def _attend(self) -> None:
        """Answer a wake-up: take in what the pump has left, when the traffic lets it, and spill what is too much."""
        self._clear_wake()
        if self._tap.is_stirred and not self._ending.ended:
            self._gather()
        self._observe()
        if self._ending.ended or self._tap.inbox.calls or self._pace.may_absorb():
            self._tap.absorb()

    def _gather(self) -> None:
        """The pump has seen a pause. After dense traffic it takes a longer one, or the tap's call, to go to work."""
        inbox = self._tap.inbox
        began_s = time.monotonic()
        while self._pace.gathers_on(len(inbox), time.monotonic() - began_s, is_called=inbox.calls):
            before = inbox.kept_bytes
            self._wait(GATHER_PAUSE_S)
            self._clear_wake()
            if inbox.kept_bytes == before:
                return

    def _wait(self, timeout_s: float | None, fd: int = -1, wanted: int = 0) -> dict[int, int]:
        """
        Until there is news: a wake-up, what is *wanted* of *fd*, or its end; for ever with None.

        Returns the state of each descriptor that has some; empty when the time is over.
        """
        poll = select.poll()
        poll.register(self._wake_in, READABLE)
        if fd >= 0:
            poll.register(fd, wanted)
        return dict(poll.poll(None if timeout_s is None else timeout_s * 1000))

    def _clear_wake(self) -> None:
        """Wake-ups so far have been seen."""
        try:
            while os.read(self._wake_in, 4096):
                pass
        except BlockingIOError:
            pass
