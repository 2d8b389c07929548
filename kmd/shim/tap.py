"""
The tap: the relay's copy of what crossed, on its way to kmd.

A pump gives it each chunk that has crossed, which goes to the *inbox*. The link *absorbs* that when the traffic pauses:
it makes RUN records of what has gathered, sends them without waiting, and *holds* them until kmd acknowledges them.

When kmd does not keep up, the tap *stands aside*: what it holds moves to the spool, and the link drains that when the
traffic lets it. On Linux many large chunks in a row are not even read: they gather in the *bulk* of their stream, and
the inbox has their places. So the order in which kmd sees things is always: spool, held, inbox.

Should even the spool not take it, bytes are skipped; as every record carries its offsets, and the last one the
length of each stream, kmd sees exactly which.
"""

import _socket
import os
import time
from _thread import allocate_lock

from kmd.record import (
    ACK,
    BYE,
    NO_STREAM,
    RUN,
    STREAMS,
    Record,
    RecordError,
    RecordReader,
    parse_offsets,
    render_fields,
    render_run,
)
from kmd.shim.bulk import Piece, Segment
from kmd.shim.disk import Disk
from kmd.shim.held import NEVER, Entry, Held, left_of
from kmd.shim.inbox import CALL_ABOVE_CHUNKS, FULL_BYTES, FULL_CHUNKS, MAX_BYTES, Inbox
from kmd.shim.slabs import Chunk, Slab, Slabs, claims_of, copy_of, drop, parts_of
from kmd.shim.spool import FREE_MIN_BYTES, Spool, read_exactly

LARGE_BYTES = 16 << 10
"""After a chunk of that size the next ones gather in a bulk, where that can be had."""
DIRECT_MAX_BYTES = 256 << 10
"""More than that unacknowledged means that kmd does not keep up with large chunks: the spool is the shorter way."""
HELD_MAX_BYTES = 4 << 20
"""Most that is held in memory: with inbox and interpreter it keeps the relay under 24 MiB."""
SPILL_ABOVE_BYTES = 2 << 20
"""From where on what is held moves to the spool."""
READ_ACKS_ABOVE_BYTES = 128 << 10
"""Below this, acknowledgements may wait in the socket: reading each would cost the traffic a wake-up."""
DONTWAIT = getattr(_socket, "MSG_DONTWAIT", 0)  # Windows has none: what the tap is given there never waits


class Tap:
    """
    Hands chunks on to kmd in order.

    durable: what kmd said last. is_done: kmd has committed the BYE. skipped_bytes: what could be kept nowhere.
    is_stirred: something has come since the last `absorb`. The link is woken by a byte to *wake_fd*, from any thread.
    """

    def __init__(self, wake_fd: int, spool: Spool) -> None:
        self.durable: tuple[int, ...] = (0,) * STREAMS
        self.is_done = False
        self.skipped_bytes = 0
        self.is_stirred = False
        self._is_told = False
        self._lock = allocate_lock()
        self._wake_fd = wake_fd
        self._spool = spool
        self._disk = Disk()
        self._socket: _socket.socket | None = None
        self._is_direct = False
        self._reader = RecordReader()
        self._held = Held()
        self._rest: list[bytes | memoryview] = []  # of a record that went only in part
        self._next = [0] * STREAMS
        self._slabs = Slabs()
        self.inbox = Inbox()

    def next_slab(self) -> Slab:
        """Where the pump is to read to from now on. Before it takes too much memory it makes some free."""
        self._relieve()
        if self.inbox.calls:
            self.wake()
        return self._slabs.take()

    def prepare(self) -> None:
        """Have memory ready. Called by the link."""
        self._slabs.prepare()

    def take(self, chunk: Chunk) -> None:
        """A chunk has crossed: its claim is the tap's now. Never waits for kmd."""
        count = self.inbox.add(chunk)
        self.is_stirred = True
        if count > CALL_ABOVE_CHUNKS:
            self.tell()
            if count > FULL_CHUNKS:
                self._absorb_some()

    def keep(self, stream: int, data: memoryview, at_ns: int) -> None:
        """Likewise *data*, which lies in memory of the caller's own."""
        self._relieve()
        self.take(copy_of(stream, data, at_ns))
        self.tell()

    def skip(self, chunk: Chunk) -> None:
        """A chunk has crossed that cannot be kept, as there was no memory."""
        self.absorb()
        with self._lock:
            self._next[chunk[0]] += chunk[3]
            self.skipped_bytes += chunk[3]
            drop(claims_of([chunk]))

    def tell(self) -> None:
        """Have the link look, if there is something that it has not been told of. A pump does that in a pause."""
        if self.is_stirred and not self._is_told:
            self._is_told = True
            self.wake()

    def open_segment(self, stream: int) -> Segment | None:
        """Where this stream's next chunks may gather without being read; None when no pipe is to be had."""
        bulk = self.inbox.bulks[stream]
        opened = bulk.open_segment()
        for _ in range(STREAMS):
            if opened is not None:
                break
            self._absorb_some(wait=False)
            opened = bulk.open_segment()
        return opened

    def keep_segment(self, stream: int, segment: Segment, size: int, at_ns: int) -> None:
        """The next *size* bytes in the pipe of *segment* have crossed."""
        self.inbox.add_piece(stream, segment, size, at_ns)
        self.is_stirred = True
        if segment.is_full and self.inbox.calls:
            self.wake()

    @property
    def prefers_spool(self) -> bool:
        """Whether kmd does not keep up and the disk has room, or the spool stands before what comes anyway."""
        if not self._is_direct and self._spool.size_bytes > 0:
            return True
        return self._held.cost_bytes > DIRECT_MAX_BYTES and self._spool.has_room(FREE_MIN_BYTES)

    def absorb(self) -> int:
        """Hold and send what is in the inbox, and spill what is too much. Returns how many chunks it took."""
        self.is_stirred = self._is_told = False
        count = 0
        while taken := self._absorb_some():  # one turn each, so that a pump need not wait for all of them
            count += taken
        return count

    def _relieve(self) -> None:
        size_bytes = self.inbox.size_bytes
        if size_bytes > FULL_BYTES:
            self._absorb_some(wait=size_bytes > MAX_BYTES)

    def _absorb_some(self, *, wait: bool = True) -> int:
        if not self._lock.acquire(wait):
            return 0
        try:
            taken = self._take_in()
            self._settle_down()
        finally:
            self._lock.release()
        return taken

    def close(self, fields: dict[str, bytes], at_ns: int) -> None:
        """All streams have ended: the last record says so, and how long each was."""
        self.absorb()
        with self._lock:
            lengths = {f"length.{stream}": b"%d" % length for stream, length in enumerate(self._next)}
            body = render_fields({**fields, **lengths})
            self._held.add(Entry(BYE, NO_STREAM, 0, at_ns, (body,), NEVER, 0))
            self._send()

    def attach(self, sock: _socket.socket, durable: tuple[int, ...]) -> None:
        """A new connection, whose kmd has everything below *durable*. Nothing is sent before `go_on`."""
        with self._lock:
            self.durable = durable
            self._held.rewind(durable)
            self._rest = []
            self._reader = RecordReader()
            self._socket = sock
            self._is_direct = False
            self._spool.rewind()
            if self._spool.is_covered(durable):
                self._spool.discard()

    def detach(self) -> None:
        """Let the connection go; what is held stays for the next one."""
        with self._lock:
            self._drop()

    def go_on(self) -> bool:
        """Send from memory again if the connection has been sent the whole spool. Returns whether it has."""
        with self._lock:
            if self._socket and not self._is_direct and not self._rest and not self._spool.backlog_bytes:
                self._is_direct = True
                self._send()
            return self._is_direct

    def drain(self, length: int) -> bool:
        """
        Send some of what stands before the held records: the rest of a broken-off one, then up to *length* bytes of
        the spool. Only the link calls this. Returns whether the socket took anything.
        """
        with self._lock:
            if self._socket is None or self._is_direct:
                return False
            try:
                if self._rest:
                    sent = self._socket.sendmsg(self._rest, (), DONTWAIT)
                    self._rest = left_of(self._rest, sent)
                else:
                    sent = self._socket.send(self._spool.read(length), DONTWAIT)
                    self._spool.position += sent
            except BlockingIOError:
                return False
            except OSError:
                self._drop()
                return False
            return sent > 0

    def flush(self) -> None:
        """The socket takes bytes again."""
        with self._lock:
            self._send()

    def poll_state(self) -> tuple[int, bool]:
        """(descriptor of the connection or -1, whether something waits for the socket to take it)."""
        with self._lock:
            waits = self._is_direct and self._held.next_unsent is not None
            return self._socket.fileno() if self._socket else -1, waits

    @property
    def must_drain(self) -> bool:
        """Whether the connection stands, and the tap aside."""
        return self._socket is not None and not self._is_direct

    def read_acks(self) -> bool:
        """Read what kmd has said. Returns whether it said anything."""
        with self._lock:
            return self._socket is not None and self._read_acks(self._socket)

    def leave_to_spool(self) -> None:
        """kmd cannot be had: everything that is held is for the one that adopts the spool."""
        with self._lock:
            self._drop()
            self._spill()
            try:
                self._spool.seal()
            except (OSError, RecordError):
                pass  # kmd believes an unsealed record of the same boot

    def wake(self) -> None:
        """Have the link look."""
        try:
            os.write(self._wake_fd, b"w")
        except OSError:
            pass  # full: it will look anyway

    def _take_in(self) -> int:
        """Make one record of what comes next, and send it if nothing waits before it. Returns of how many chunks."""
        chunks, pieces = self.inbox.take()
        if chunks:
            self._take_in_chunks(chunks)
        elif pieces:
            self._take_in_pieces(pieces)
        return len(chunks) + len(pieces)

    def _take_in_chunks(self, taken: list[Chunk]) -> None:
        streams, _, _, lengths, times_ns = zip(*taken, strict=True)
        table = render_run(self._next, bytes(streams), lengths, times_ns)
        for stream, length in zip(streams, lengths, strict=True):
            self._next[stream] += length
        size = sum(lengths)
        parts: list[bytes | memoryview] = [table, *parts_of(taken)]
        ends = tuple(self._next)
        self._hold(Entry(RUN, NO_STREAM, 0, times_ns[0], parts, ends, size, claims_of(taken)))

    def _take_in_pieces(self, pieces: list[Piece]) -> None:
        """Some of a bulk: to memory while kmd keeps up, else to the spool."""
        stream, segment, at_ns = pieces[0].stream, pieces[0].segment, pieces[0].at_ns
        lengths = [piece.size for piece in pieces]
        size = sum(lengths)
        table = render_run(self._next, bytes((stream,)) * len(pieces), lengths, [piece.at_ns for piece in pieces])
        self._next[stream] += size
        body = self._spool_pipe(segment.read_end, size, at_ns, table)
        if body is not None:
            self._hold(Entry(RUN, NO_STREAM, 0, at_ns, [table, body], tuple(self._next), size))
        self.inbox.bulks[stream].drop(segment, len(pieces))

    def _spool_pipe(self, source: int, size: int, at_ns: int, table: bytes) -> bytes | None:
        """Returns None when the spool has what is in the pipe, else the bytes: it does not take them, or need not."""
        began_s = time.monotonic()
        if not self.prefers_spool and size <= DIRECT_MAX_BYTES:
            return read_exactly(source, size)
        if not self._disk.may_be_tried(began_s) or not self._spill():
            return read_exactly(source, size)
        body = self._spool.append_pipe(RUN, at_ns, table, source, size, self._next)
        self._disk.judge(began_s, time.monotonic(), done=body is None)
        return body

    def _hold(self, entry: Entry) -> None:
        if self._held.cost_bytes + entry.cost_bytes > HELD_MAX_BYTES:
            self._settle_down()
        if self._held.cost_bytes + entry.cost_bytes > HELD_MAX_BYTES:
            self.skipped_bytes += entry.carried_bytes
            entry.let_go()
            return
        was_idle = self._held.next_unsent is None
        self._held.add(entry)
        if was_idle:  # otherwise the link waits until the socket takes bytes again
            self._send()

    def _settle_down(self) -> None:
        """Read what kmd has acknowledged, and spill if it is too much still."""
        if self._socket and self._held.cost_bytes > READ_ACKS_ABOVE_BYTES:
            self._read_acks(self._socket)
        held_bytes, began_s = self._held.cost_bytes, time.monotonic()
        if held_bytes <= SPILL_ABOVE_BYTES or not self._disk.may_be_tried(began_s):
            return
        if self._spool.has_room(held_bytes):
            done = self._spill()
            self._disk.judge(began_s, time.monotonic(), done=done)

    def _spill(self) -> bool:
        """
        Stand aside: move everything that is held to the spool. On a living connection what was sent of it is not
        sent again. Returns False, and holds it all still, when the spool does not take it.
        """
        held = self._held
        sent, waiting = held.list_sent(), held.list_unsent()
        if self._rest and waiting:
            sent.append(waiting.pop(0))  # broken off: `drain` sends its rest before anything else
            self._rest = [b"".join(self._rest)]  # its memory will be written again
        if self._is_direct:
            if not self._spool.append(sent):
                return False
            self._spool.position = max(self._spool.position, self._spool.size_bytes)
            held.replace((), waiting)
            sent = []
        self._is_direct = False
        if not self._spool.append([*sent, *waiting]):
            return False
        held.replace((), ())
        self.wake()
        return True

    def _send(self) -> None:
        """Send while the socket takes it. A record that went only in part is finished before the next."""
        sock = self._socket
        if sock is None or not self._is_direct:
            return
        try:
            while (entry := self._held.next_unsent) is not None:
                parts = self._rest or entry.for_socket()
                self._rest = left_of(parts, sock.sendmsg(parts, (), DONTWAIT))
                if not self._rest:
                    self._held.mark_sent()
        except BlockingIOError:
            self.wake()
        except OSError:
            self._drop()

    def _read_acks(self, sock: _socket.socket) -> bool:
        """Drop what kmd has made durable. An end of file or nonsense ends the connection."""
        try:
            answer = sock.recv(4096, DONTWAIT)
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
            self._held.replace((), ())
        elif record.type == ACK:
            self.durable = parse_offsets(record.body)
            self._held.settle(self.durable)
            if not self._spool.backlog_bytes and self._spool.is_covered(self.durable):
                self._spool.discard()

    def _drop(self) -> None:
        self._rest = []
        self._is_direct = False
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            self.wake()
