"""
The tap: the relay's copy of what crossed, on its way to kmd.

Pumps call `keep` after a chunk has crossed. It never waits: a chunk goes to kmd by a non-blocking send, and
what the socket will not take is *held* in memory, at most HELD_MAX_BYTES, together with what was sent but is
not yet acknowledged. Over that bound bytes are skipped and the next record of the stream says how many.
The low-level modules are used on purpose: each import here competes with the server's own start.
"""

import _socket
import os
from _thread import allocate_lock
from collections import deque

from kmd.record import (
    ACK,
    BYE,
    DATA,
    GAP,
    NO_STREAM,
    STREAMS,
    Record,
    RecordError,
    RecordReader,
    parse_offsets,
    render_fields,
    render_gap,
    render_head,
)

HELD_MAX_BYTES = 4 << 20
"""Most that is held for kmd: with the interpreter it keeps the relay under 24 MiB."""
ENTRY_OVERHEAD_BYTES = 256
"""What one held record costs beside its bytes, so that tiny messages cannot outgrow the bound."""
READ_ACKS_ABOVE_BYTES = 256 << 10
"""Below this, acknowledgements may wait in the socket: reading each would cost the traffic a wake-up."""


class Entry:
    """A record that kmd has not yet acknowledged."""

    __slots__ = ("at_ns", "body", "length", "offset", "stream", "type")

    def __init__(self, type: int, stream: int, offset: int, at_ns: int, body: bytes, length: int) -> None:  # noqa: A002
        self.type = type
        self.stream = stream
        self.offset = offset
        self.at_ns = at_ns
        self.body = body
        self.length = length

    @property
    def cost_bytes(self) -> int:
        return len(self.body) + ENTRY_OVERHEAD_BYTES


class Tap:
    """Hands chunks on to kmd in order. `wake` is called, from any thread, when the link has something to do."""

    def __init__(self, wake_fd: int) -> None:
        self._lock = allocate_lock()
        self._wake_fd = wake_fd
        self._socket: _socket.socket | None = None
        self._reader = RecordReader()
        self._unsent: deque[Entry] = deque()
        self._unacked: deque[Entry] = deque()
        self._rest = memoryview(b"")
        self._held_bytes = 0
        self._next = [0] * STREAMS
        self._gaps: dict[int, Entry] = {}
        self.skipped_bytes = 0

    def keep(self, stream: int, chunk: bytes, at_ns: int) -> None:
        """Take a chunk that has crossed. Never blocks on kmd."""
        with self._lock:
            offset = self._next[stream]
            self._next[stream] = offset + len(chunk)
            entry = Entry(DATA, stream, offset, at_ns, chunk, len(chunk))
            if self._held_bytes > READ_ACKS_ABOVE_BYTES and self._socket:
                self._read_acks(self._socket)
            if not self._make_room(entry.cost_bytes):
                self._skip(entry)
                return
            was_idle = not self._unsent
            if stream in self._gaps:
                self._hold(self._gaps.pop(stream))
            self._hold(entry)
            if was_idle:  # otherwise the link waits until the socket takes bytes again
                self._send()

    def close(self, fields: dict[str, bytes], at_ns: int) -> None:
        """Both streams have ended: the last record says so."""
        with self._lock:
            for gap in self._gaps.values():
                self._hold(gap)
            self._gaps.clear()
            self._hold(Entry(BYE, NO_STREAM, 0, at_ns, render_fields(fields), 0))
            self._send()

    def attach(self, sock: _socket.socket, durable: tuple[int, int, int]) -> None:
        """Go on over *sock*, whose kmd has everything below *durable*: send the rest again, in order."""
        with self._lock:
            waiting = [*self._unacked, *self._unsent]
            self._unacked.clear()
            self._unsent = deque(entry for entry in waiting if not is_durable(entry, durable))
            self._held_bytes = sum(entry.cost_bytes for entry in self._unsent)
            self._rest = memoryview(b"")
            self._reader = RecordReader()
            self._socket = sock
            self._send()

    def detach(self) -> None:
        """Let the connection go; what is held stays for the next one."""
        with self._lock:
            self._drop()

    def poll_state(self) -> tuple[int, bool, bool]:
        """(descriptor of the connection or -1, is something unsent, is something unacknowledged)."""
        with self._lock:
            fd = self._socket.fileno() if self._socket else -1
            return fd, bool(self._unsent or self._rest), bool(self._unacked)

    def flush(self) -> None:
        """The socket takes bytes again."""
        with self._lock:
            self._send()

    def read_acks(self) -> bool:
        """Read what kmd has said. Returns whether it said anything new."""
        with self._lock:
            return self._socket is not None and self._read_acks(self._socket)

    def wake(self) -> None:
        try:
            os.write(self._wake_fd, b"w")
        except OSError:
            pass

    def _hold(self, entry: Entry) -> None:
        self._unsent.append(entry)
        self._held_bytes += entry.cost_bytes

    def _make_room(self, cost_bytes: int) -> bool:
        """
        Whether *cost_bytes* more may be held. What was sent may go first: kmd has it, or is reading it from the
        socket, and only a kmd that dies just then makes a gap of it.
        """
        while self._held_bytes + cost_bytes > HELD_MAX_BYTES and self._unacked:
            self._held_bytes -= self._unacked.popleft().cost_bytes
        return self._held_bytes + cost_bytes <= HELD_MAX_BYTES

    def _skip(self, entry: Entry) -> None:
        """Count a chunk that cannot be held; the stream's open gap grows by it."""
        self.skipped_bytes += entry.length
        gap = self._gaps.get(entry.stream)
        if gap is None:
            self._gaps[entry.stream] = gap = Entry(GAP, entry.stream, entry.offset, entry.at_ns, b"", 0)
        gap.length += entry.length
        gap.body = render_gap(gap.length)

    def _send(self) -> None:
        """Send while the socket takes it. A record that went only in part is finished before the next."""
        sock = self._socket
        if sock is None:
            return
        try:
            while self._unsent:
                if not self._rest:
                    entry = self._unsent[0]
                    head = render_head(entry.type, entry.stream, entry.offset, entry.at_ns, entry.body)
                    sent = sock.sendmsg((head, entry.body), (), _socket.MSG_DONTWAIT)
                    if sent < len(head) + len(entry.body):
                        self._rest = memoryview(head + entry.body)[sent:]
                        continue
                else:
                    self._rest = self._rest[sock.send(self._rest, _socket.MSG_DONTWAIT) :]
                    if self._rest:
                        continue
                self._unacked.append(self._unsent.popleft())
        except BlockingIOError:
            self.wake()
        except OSError:
            self._drop()

    def _read_acks(self, sock: _socket.socket) -> bool:
        """Drop what kmd has made durable. An end of file or nonsense ends the connection."""
        try:
            answer = sock.recv(4096, _socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            answer = b""
        try:
            for record in self._reader.feed(answer):
                self._settle(record)
        except RecordError:
            answer = b""
        if not answer:
            self._drop()
        return bool(answer)

    def _settle(self, record: Record) -> None:
        """An ACK covers a prefix of what was sent; the answer to BYE covers all of it."""
        said_bye = record.type == BYE
        durable = parse_offsets(record.body) if record.type == ACK else (0, 0, 0)
        while self._unacked and (said_bye or is_durable(self._unacked[0], durable)):
            self._held_bytes -= self._unacked.popleft().cost_bytes

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            self.wake()


def is_durable(entry: Entry, durable: tuple[int, int, int]) -> bool:
    """Whether kmd has committed all of *entry*. A BYE has no position: kmd answers it with its own."""
    return entry.stream < STREAMS and entry.offset + entry.length <= durable[entry.stream]
