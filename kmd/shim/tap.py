"""
The tap: the relay's copy of what crossed, on its way to kmd.

Pumps call `keep` after a chunk has crossed; that is one append to the *inbox*, because whatever a pump does
there stands between a request and its answer. The link *absorbs* the inbox a moment later: a non-blocking send
to kmd, and what the socket will not take is *held*, together with what was sent but is not yet acknowledged.
The link moves what is over the mark to the spool. Should even that not keep up, bytes are skipped; as every
record carries its offset, and the last one the length of each stream, kmd sees exactly which.
The low-level modules are used on purpose: each import here competes with the server's own start.
"""

import _socket
import os
import time
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable

from kmd.record import (
    ACK,
    BYE,
    DATA,
    NO_STREAM,
    STREAMS,
    Record,
    RecordError,
    RecordReader,
    parse_offsets,
    render_fields,
    render_light_head,
)

INBOX_MAX_BYTES = 1 << 20
"""With more than that in the inbox the pump absorbs it itself: the link does not get a turn."""
LARGE_BYTES = 16 << 10
"""A chunk of that size is sent at once: beside its own copies one more counts for little, and memory stays warm."""
SEND_AT_ONCE = 16
"""Records of one send: fewer system calls for small messages, and short turns between the pumps' own."""
HELD_MAX_BYTES = 7 << 20
"""Most that is held in memory: with inbox and interpreter it keeps the relay under 24 MiB."""
SPILL_ABOVE_BYTES, SPILL_DOWN_TO_BYTES = 4 << 20, 3 << 20
"""From where on the link moves the oldest records to the spool, and how far it goes."""
BEHIND_BYTES = 4 << 20
"""So much unsent on a living connection means that kmd does not keep up: the spool takes over."""
ENTRY_OVERHEAD_BYTES = 256
"""What one held record costs beside its bytes, so that tiny messages cannot outgrow the bound."""
READ_ACKS_ABOVE_BYTES = 256 << 10
"""Below this, acknowledgements may wait in the socket: reading each would cost the traffic a wake-up."""
SLOW_DISK_S = 0.1
"""A spool write that takes longer came from a disk that would delay the traffic."""
NOTHING = (0,) * STREAMS


class Entry:
    """A record that kmd has not yet acknowledged."""

    __slots__ = ("at_ns", "body", "offset", "stream", "type")

    def __init__(self, type: int, stream: int, offset: int, at_ns: int, body: bytes) -> None:  # noqa: A002
        self.type = type
        self.stream = stream
        self.offset = offset
        self.at_ns = at_ns
        self.body = body

    @property
    def cost_bytes(self) -> int:
        return len(self.body) + ENTRY_OVERHEAD_BYTES

    def is_durable(self, durable: tuple[int, ...]) -> bool:
        """Whether kmd has committed all of it. A BYE has no position: kmd answers it with its own."""
        return self.stream < STREAMS and self.offset + len(self.body) <= durable[self.stream]


class Tap:
    """
    Hands chunks on to kmd in order.

    spill: set by the link, moves what is over the mark to the spool. durable: what kmd said last. is_done: kmd
    has committed the BYE. skipped_bytes: what could be kept nowhere. A byte is written to *wake_fd*, from any
    thread, when the link has something to do.
    """

    def __init__(self, wake_fd: int) -> None:
        self.durable: tuple[int, ...] = NOTHING
        self.is_done = False
        self.skipped_bytes = 0
        self.spill: Callable[[], None] = lambda: None
        self._disk_is_slow = False
        self._lock = allocate_lock()
        self._wake_fd = wake_fd
        self._socket: _socket.socket | None = None
        self._reader = RecordReader()
        self._unacked: deque[Entry] = deque()
        self._unsent: deque[Entry] = deque()
        self._rest = memoryview(b"")
        self._held_bytes = 0
        self._unsent_bytes = 0
        self._next = [0] * STREAMS
        self._inbox: deque[tuple[int, bytes, int]] = deque()
        self._came = [0] * STREAMS  # each counted by its own pump
        self._is_stirred = False

    def keep(self, stream: int, chunk: bytes, at_ns: int) -> None:
        """Take a chunk that has crossed. Never waits for kmd."""
        self._inbox.append((stream, chunk, at_ns))
        self._came[stream] += len(chunk)
        if len(chunk) > LARGE_BYTES or self._came[stream] - self._next[stream] > INBOX_MAX_BYTES:
            self.absorb()
        elif not self._is_stirred:
            self._is_stirred = True
            self.wake()

    @property
    def is_stirred(self) -> bool:
        """Whether something has come into the inbox since the last `absorb`."""
        return self._is_stirred

    def absorb(self) -> None:
        """Hold and send what is in the inbox. Called by the link, and by a pump when the inbox is full."""
        self._is_stirred = False
        while self._inbox:
            with self._lock:
                if self._held_bytes > READ_ACKS_ABOVE_BYTES and self._socket:
                    self._read_acks(self._socket)
                was_idle = not self._unsent
                self._take_in()
                if was_idle:  # otherwise the link waits until the socket takes bytes again
                    self._send()
                if self.is_behind:
                    self._drop()
            if self._held_bytes > SPILL_ABOVE_BYTES:
                self._spill_now()

    def _take_in(self) -> None:
        """Move some chunks from the inbox to what is held, each with its place in its stream."""
        for _ in range(SEND_AT_ONCE):
            if not self._inbox:
                return
            stream, chunk, at_ns = self._inbox.popleft()
            entry = Entry(DATA, stream, self._next[stream], at_ns, chunk)
            self._next[stream] += len(chunk)
            if self._held_bytes + entry.cost_bytes <= HELD_MAX_BYTES:
                self._hold(entry)
            else:
                self.skipped_bytes += len(chunk)

    def close(self, fields: dict[str, bytes], at_ns: int) -> None:
        """Both streams have ended: the last record says so, and how long each was."""
        self.absorb()
        with self._lock:
            lengths = {f"length.{stream}": b"%d" % length for stream, length in enumerate(self._next)}
            self._hold(Entry(BYE, NO_STREAM, 0, at_ns, render_fields({**fields, **lengths})))
            if len(self._unsent) == 1:
                self._send()

    def attach(self, sock: _socket.socket, durable: tuple[int, ...]) -> None:
        """Go on over *sock*, whose kmd has everything below *durable*: send the rest again, in order."""
        with self._lock:
            self.durable = durable
            waiting = [*self._unacked, *self._unsent]
            self._unacked.clear()
            self._unsent = deque(entry for entry in waiting if not entry.is_durable(durable))
            self._held_bytes = self._unsent_bytes = sum(entry.cost_bytes for entry in self._unsent)
            self._rest = memoryview(b"")
            self._reader = RecordReader()
            self._socket = sock
            self._send()

    def detach(self) -> None:
        """Let the connection go; what is held stays for the next one."""
        with self._lock:
            self._drop()

    def poll_state(self) -> tuple[int, bool]:
        """(descriptor of the connection or -1, whether something waits for the socket to take it)."""
        with self._lock:
            return self._socket.fileno() if self._socket else -1, bool(self._unsent)

    @property
    def is_behind(self) -> bool:
        """Whether kmd, though connected, does not keep up."""
        return self._unsent_bytes > BEHIND_BYTES

    def flush(self) -> None:
        """The socket takes bytes again."""
        with self._lock:
            self._send()

    def read_acks(self) -> bool:
        """Read what kmd has said. Returns whether it said anything."""
        with self._lock:
            return self._socket is not None and self._read_acks(self._socket)

    def take_oldest(self) -> list[Entry]:
        """
        Hand out the oldest records over the mark, to be spooled. On a living connection only what was sent:
        the order on the socket must hold.
        """
        with self._lock:
            if self._held_bytes <= SPILL_ABOVE_BYTES:
                return []
            return self._take(SPILL_DOWN_TO_BYTES, with_unsent=self._socket is None)

    def take_all(self) -> list[Entry]:
        """Hand out everything: the relay leaves, and the spool is what remains."""
        self.absorb()
        with self._lock:
            self._drop()
            return self._take(0, with_unsent=True)

    def wake(self) -> None:
        """Have the link look."""
        try:
            os.write(self._wake_fd, b"w")
        except OSError:
            pass  # full: it will look anyway

    def _spill_now(self) -> None:
        """
        Spill from whichever thread is here, a pump perhaps: it is a copy into the page cache. A disk that once
        makes it wait is left alone from then on, and what finds no room is skipped.
        """
        if self._disk_is_slow:
            return
        began_s = time.monotonic()
        self.spill()
        self._disk_is_slow = time.monotonic() - began_s > SLOW_DISK_S

    def _take(self, down_to_bytes: int, *, with_unsent: bool) -> list[Entry]:
        taken = []
        while self._held_bytes > down_to_bytes and self._unacked:
            taken.append(self._unacked.popleft())
            self._held_bytes -= taken[-1].cost_bytes
        while with_unsent and self._held_bytes > down_to_bytes and self._unsent:
            taken.append(self._unsent.popleft())
            self._held_bytes -= taken[-1].cost_bytes
            self._unsent_bytes -= taken[-1].cost_bytes
        return taken

    def _hold(self, entry: Entry) -> None:
        self._unsent.append(entry)
        self._held_bytes += entry.cost_bytes
        self._unsent_bytes += entry.cost_bytes

    def _send(self) -> None:
        """Send while the socket takes it. A record that went only in part is finished before the next."""
        sock = self._socket
        if sock is None:
            return
        try:
            while self._unsent:
                if self._rest:
                    self._rest = self._rest[sock.send(self._rest, _socket.MSG_DONTWAIT) :]
                    if not self._rest:
                        self._mark_sent()
                else:
                    self._send_some(sock)
        except BlockingIOError:
            self.wake()
        except OSError:
            self._drop()

    def _send_some(self, sock: _socket.socket) -> None:
        """One send of several records. Raises OSError."""
        parts = []
        for entry in self._unsent:
            parts.append(render_light_head(entry.type, entry.stream, entry.offset, entry.at_ns, entry.body))
            parts.append(entry.body)
            if len(parts) == 2 * SEND_AT_ONCE:
                break
        sent = sock.sendmsg(parts, (), _socket.MSG_DONTWAIT)
        for at in range(0, len(parts), 2):
            length = len(parts[at]) + len(parts[at + 1])
            if sent < length:
                if sent:
                    self._rest = memoryview(parts[at] + parts[at + 1])[sent:]
                return
            sent -= length
            self._mark_sent()

    def _mark_sent(self) -> None:
        entry = self._unsent.popleft()
        self._unsent_bytes -= entry.cost_bytes
        self._unacked.append(entry)

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
        if record.type == BYE:
            self.is_done = True
            self._take(0, with_unsent=True)
        elif record.type == ACK:
            self.durable = parse_offsets(record.body)
            while self._unacked and self._unacked[0].is_durable(self.durable):
                self._held_bytes -= self._unacked.popleft().cost_bytes

    def _drop(self) -> None:
        self._rest = memoryview(b"")
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            self.wake()
