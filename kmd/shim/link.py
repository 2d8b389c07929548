"""
The link: connects the tap to kmd for as long as the session runs, and sees the last bytes off.

While kmd is away or does not keep up, what the tap holds moves to the spool, oldest first. When kmd is back
the spool is replayed before anything newer is sent, so kmd always sees one ordered session; what it has
already is passed over there by its offset.
"""

import _socket
import os
import select
import time
from _thread import allocate_lock

from kmd.record import HELLO, NO_STREAM, WELCOME, RecordReader, parse_offsets, render_head
from kmd.shim.spool import Spool
from kmd.shim.tap import Tap

SOCKET = "kmd.sock"
GONE = select.POLLERR | select.POLLHUP | select.POLLNVAL
HANDSHAKE_S = 1.0
"""How long kmd may take for WELCOME, or to take some bytes of a replay; a kmd that needs longer is hung."""
RETRY_FIRST_S, RETRY_MAX_S = 0.05, 2.0
LINGER_S = 1.0
"""After the last byte: how long to wait for kmd's next sign before leaving the rest to the spool."""
GATHER_S = 0.001
"""After the first chunk: how long others may join it. So a message in lock-step meets no work of ours on its way."""
REPLAY_BYTES = 64 << 10


class Ending:
    """Whether the session has ended: set once, by the last pump."""

    __slots__ = ("ended",)

    def __init__(self) -> None:
        self.ended = False


class Link:
    """Runs in the relay's main thread. `wake_in` becomes readable when the tap or the end wants attention."""

    def __init__(self, tap: Tap, ending: Ending, hello: bytes, meeting: str, session: str, wake_in: int) -> None:
        self._tap = tap
        self._ending = ending
        self._hello = hello
        self._meeting = meeting
        self._wake_in = wake_in
        self._spool = Spool(meeting, session, hello)
        self._spool_lock = allocate_lock()
        tap.spill = self._spill

    def run(self) -> None:
        """Returns when the session has ended and everything is with kmd, or else in the spool."""
        retry_s = RETRY_FIRST_S
        while True:
            last_try = self._ending.ended
            if self._connect():
                retry_s = RETRY_FIRST_S
                self._serve()
                if self._tap.is_done:
                    self._spool.discard()
                    return
            else:
                self._start_kmd()
                if last_try:
                    self._leave_to_spool()
                    return
            self._wait_away(retry_s)
            retry_s = min(retry_s * 2, RETRY_MAX_S)

    def _start_kmd(self) -> None:
        """Have kmd started, where the user wants km to do that."""
        from kmd.shim.starter import start_kmd  # noqa: PLC0415 - only a relay without kmd needs it

        start_kmd(self._meeting)

    def _connect(self) -> bool:
        """One try: connect, HELLO, WELCOME, the spool. A long path is no obstacle: it is reached from its folder."""
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            try:
                os.chdir(self._meeting)
                sock.connect(SOCKET)
            finally:
                os.chdir("/")
            self._send_all(sock, render_head(HELLO, NO_STREAM, 0, 0, self._hello) + self._hello)
            self._replay(sock, self._read_welcome(sock))
        except (OSError, ValueError):
            sock.close()
            return False
        return True

    def _read_welcome(self, sock: _socket.socket) -> tuple[int, ...]:
        """What kmd has of this session. Raises OSError when it does not say in time, ValueError on nonsense."""
        reader = RecordReader()
        while True:
            self._await(sock, select.POLLIN)
            answer = sock.recv(4096)
            if not answer:
                raise ConnectionResetError("kmd closed the connection")
            for record in reader.feed(answer):
                if record.type != WELCOME:
                    raise ValueError("not a welcome")
                return parse_offsets(record.body)

    def _replay(self, sock: _socket.socket, durable: tuple[int, ...]) -> None:
        """
        Send the spool, and what is added to it meanwhile; then the tap takes over. The two are one step, or
        something could be spooled in between and be overtaken. Raises OSError when kmd does not take it.
        """
        self._discard_if_covered(durable)
        position = self._spool.start
        while True:
            with self._spool_lock:
                if position >= self._spool.size_bytes:
                    self._tap.attach(sock, durable)
                    return
            chunk = self._spool.read(position, REPLAY_BYTES)
            self._send_all(sock, chunk)
            position += len(chunk)

    def _discard_if_covered(self, durable: tuple[int, ...]) -> None:
        with self._spool_lock:
            if self._spool.size_bytes and self._spool.is_covered(durable):
                self._spool.discard()

    def _send_all(self, sock: _socket.socket, data: bytes) -> None:
        """Send all of *data*. Raises OSError when kmd takes nothing for a while."""
        view = memoryview(data)
        while view:
            self._await(sock, select.POLLOUT)
            view = view[sock.send(view) :]

    def _await(self, sock: _socket.socket, event: int) -> None:
        """Until *sock* is ready, spilling meanwhile: the traffic does not wait. Raises TimeoutError."""
        deadline_s = time.monotonic() + HANDSHAKE_S
        poll = select.poll()
        poll.register(self._wake_in, select.POLLIN)
        poll.register(sock, event)
        while True:
            ready = dict(poll.poll(max(0.0, deadline_s - time.monotonic()) * 1000))
            self._attend()
            if sock.fileno() in ready:
                return
            if time.monotonic() >= deadline_s:
                raise TimeoutError("kmd is silent")

    def _serve(self) -> None:
        """Watch the connection until kmd has everything, or the connection is lost or given up."""
        while not self._tap.is_done:
            ending = self._ending.ended
            fd, unsent = self._tap.poll_state()
            if fd < 0:
                return
            poll = select.poll()
            poll.register(self._wake_in, select.POLLIN)
            wants_acks = ending or self._spool.size_bytes > 0
            poll.register(fd, (select.POLLOUT if unsent else 0) | (select.POLLIN if wants_acks else 0))
            ready = dict(poll.poll(LINGER_S * 1000 if ending else None))
            if self._tap.is_stirred and not ending:
                time.sleep(GATHER_S)
            self._attend()
            events = ready.get(fd, 0)
            if events & select.POLLOUT:
                self._tap.flush()
            if events & (select.POLLIN | GONE) and not self._tap.read_acks() and events & GONE:
                self._tap.detach()
            self._discard_if_covered(self._tap.durable)
            if self._tap.is_behind or (ending and not ready):
                self._tap.detach()

    def _spill(self) -> None:
        """Move what the tap holds over its mark to the spool, or count it as skipped. Called from any thread."""
        with self._spool_lock:
            entries = self._tap.take_oldest()
            if not self._spool.append(entries):
                self._tap.skipped_bytes += sum(len(entry.body) for entry in entries)

    def _leave_to_spool(self) -> None:
        """kmd cannot be had: what is held is for the next one that starts."""
        self._spool.append(self._tap.take_all())

    def _wait_away(self, duration_s: float) -> None:
        """Wait before the next try, spilling meanwhile; the end of the session cuts it short."""
        deadline_s = time.monotonic() + duration_s
        poll = select.poll()
        poll.register(self._wake_in, select.POLLIN)
        self._spill()
        while not self._ending.ended and (left_s := deadline_s - time.monotonic()) > 0:
            poll.poll(left_s * 1000)
            self._attend()

    def _attend(self) -> None:
        """Answer a wake-up: take in what the pumps have left, and spill what is too much."""
        try:
            while os.read(self._wake_in, 4096):
                pass
        except BlockingIOError:
            pass
        self._tap.absorb()
        self._spill()
