"""
The pump: one thread that passes bytes on in all directions.

It waits for every end at once, reads what a *way* has, at most 64 KiB, writes it to the other side without waiting for
room there, and leaves it in the tap. What does not fit stays with its way, which reads nothing more until it has
crossed: so back-pressure passes through, and no direction holds up another. A far side that goes is seen at once, and
the near side is let go, so that its next write fails as it would bare.

After each step it looks a few times more before it sleeps: an answer often comes at once, and to be woken takes longer
than all that a step does. Only then does it tell the link, which would compete with a message that is under way.

One thread for all, because of where a scheduler places what it wakes: with a thread for each direction a message and
its answer meet on different processors, and a round trip may take twice as long (docs/measurements.md).
"""

import _socket
import os
import select
import stat
import time
from _thread import allocate_lock
from errno import EAGAIN

from kmd.record import STDERR, TO_SERVER
from kmd.shim.bulk import SPLICE_NONBLOCK, Segment, Tee, are_plain_pipes, load_tee
from kmd.shim.link import Ending
from kmd.shim.slabs import CHUNK_BYTES, Chunk, Slab, is_spare, spare_slab
from kmd.shim.tap import LARGE_BYTES, Tap

NOWAIT = getattr(os, "RWF_NOWAIT", 0)
"""For preadv(2) and pwritev(2): do not wait, whatever the descriptor's own flag says, as others may share that."""
TURN_BYTES = 4096
"""PIPE_BUF: what poll(2) calls writable takes so much at once, also where it would wait for more."""
BY_FLAG, BY_NOWAIT, BY_TURNS = 0, 1, 2
"""
How an end is kept from making the pump wait. By its own O_NONBLOCK: the server's, and a pipe of the client's that could
be opened once more; a file never waits. By NOWAIT: the client's socket, on Linux since 6.4. By turns, a poll(2) before
each: a terminal, and where the others are not to be had.
"""
LOOK_ON_NS = 50_000
"""How long the pump looks on before it sleeps, giving way to whoever has something to do on its processor."""
GOES_ON = b""
"""What a step returns that has not ended its way; otherwise the name of the side that has."""


class Way:
    """
    One direction, from *near* to *far*. rest: what has been read and has not crossed; owed_bytes: the same for what
    lies teed in *segment*. With either the way `waits` for its far side. at_ns: when that was teed, Unix time. spare:
    where it reads to when there is no memory for more; what lies there crosses and is not kept.
    """

    __slots__ = (
        "at_ns",
        "far",
        "far_mode",
        "far_side",
        "in_bulk",
        "near",
        "near_mode",
        "near_side",
        "owed_bytes",
        "rest",
        "segment",
        "spare",
        "stream",
        "teed_bytes",
        "waits",
    )

    def __init__(self, near: int, far: int, stream: int) -> None:
        self.near = near
        self.far = far
        self.stream = stream
        if stream == TO_SERVER:
            self.near_side, self.far_side = b"client", b"server"
            self.near_mode, self.far_mode = mode_of(near, os.O_RDONLY), BY_FLAG
            os.set_blocking(far, False)
        else:
            self.near_side, self.far_side = b"server", b"client"
            self.near_mode, self.far_mode = BY_FLAG, mode_of(far, os.O_WRONLY)
            os.set_blocking(near, False)
        self.rest: Chunk | None = None
        self.spare = spare_slab()
        self.waits = False
        self.in_bulk = False
        self.segment: Segment | None = None
        self.teed_bytes = self.owed_bytes = 0
        self.at_ns = 0

    def read(self, into: memoryview) -> int:
        """How many bytes; 0 at the end, also one by an error; -1 when somebody else has read them."""
        try:
            if self.near_mode == BY_NOWAIT:
                return os.preadv(self.near, (into,), -1, NOWAIT)
            return os.readv(self.near, (into,))
        except BlockingIOError:
            return -1
        except OSError:
            return 0

    def write(self, chunk: memoryview) -> int:
        """What there is room for: how many bytes. By turns after a poll(2) alone. Raises OSError: it is gone."""
        try:
            if self.far_mode == BY_FLAG:
                return os.write(self.far, chunk)
            if self.far_mode == BY_NOWAIT:
                return os.pwritev(self.far, (chunk,), -1, NOWAIT)
            return os.write(self.far, chunk[:TURN_BYTES])
        except BlockingIOError:
            return 0

    def close(self) -> None:
        """Both ends, as the two sides would see it bare."""
        end_writing(self.far)
        os.close(self.far)
        os.close(self.near)


class Pump:
    """`run` it in a thread of its own; `wait` returns when all ways have ended and the tap has been told so."""

    def __init__(self, tap: Tap, ending: Ending, flows: list[tuple[int, int, int]]) -> None:
        """flows: near descriptor, far descriptor, stream. It is the pump that closes them. Raises OSError."""
        self._tap = tap
        self._slab = tap.next_slab()
        self._is_flowing = False  # more than fits: then it is the processors that are short, and no answer is near
        self._ending = ending
        self._poll = select.poll()
        self._ways: dict[int, Way] = {}
        self._tee: Tee | None = None
        self._closed_first = b""
        self._done = allocate_lock()
        self._done.acquire()
        self._anchor_ns = time.time_ns() - time.monotonic_ns()
        for near, far, stream in flows:
            way = Way(near, far, stream)
            self._ways[near] = self._ways[far] = way
            self._await_near(way)

    def load_tee(self) -> None:
        """Once the pump runs: it takes some milliseconds."""
        self._tee = load_tee()

    def wait(self) -> None:
        """Block until all directions have ended: whatever becomes of the capture, the traffic comes first."""
        with self._done:
            pass

    def run(self) -> None:
        """Pass bytes on until all ways have ended, each at its own time."""
        try:
            while self._ways:
                for fd, _ in self._news():
                    if (way := self._ways.get(fd)) is not None:  # else it has ended a moment ago
                        self._step(way, fd)
        finally:
            for way in {*self._ways.values()}:  # a fault of ours: rather an end than a silence
                way.close()
            self._tap.close({"closed_first": self._closed_first}, self._now_ns())
            self._ending.ended = True
            self._done.release()
            self._tap.wake()

    def _step(self, way: Way, fd: int) -> None:
        if fd == way.near:
            closed_by = self._pass(way)
        elif way.waits:
            closed_by = self._catch_up(way)
        else:
            closed_by = way.far_side
        if closed_by:
            self._end(way, closed_by)

    def _news(self) -> list[tuple[int, int]]:
        """Wait until an end has something to say."""
        poll = self._poll.poll
        until_ns = time.monotonic_ns() + (0 if self._is_flowing else LOOK_ON_NS)
        while time.monotonic_ns() < until_ns:
            if news := poll(0):
                return news
            os.sched_yield()
        self._tap.tell()
        return poll()

    def _now_ns(self) -> int:
        return time.monotonic_ns() + self._anchor_ns

    def _pass(self, way: Way) -> bytes:
        """What has come, or the end of it."""
        if way.in_bulk and self._tee is not None and (outcome := self._pass_bulk(way, self._tee)) is not None:
            return outcome
        chunk = self._read(way)
        if chunk is None:
            return GOES_ON
        size = chunk[3]
        if not size:
            return way.near_side
        if way.far_mode == BY_TURNS:
            return self._leave(way, chunk)
        try:
            crossed = way.write(chunk[1].memory[chunk[2] : chunk[2] + size])
        except OSError:
            self._forgo(chunk)
            return way.far_side
        if crossed < size:
            return self._leave(way, self._keep_start(chunk, crossed))
        self._keep(chunk)
        if size > LARGE_BYTES:
            way.in_bulk = are_plain_pipes(way.near, way.far)
        return GOES_ON

    def _read(self, way: Way) -> Chunk | None:
        """What has come; an empty chunk, without a claim, at the end; None when there is nothing."""
        slab = self._slab
        start = slab.used_bytes
        if start > slab.last_start:
            slab, start = self._next_slab(way), 0
        size = way.read(slab.memory[start : start + CHUNK_BYTES])
        if size < 0:
            return None
        if size:
            self._is_flowing = size == CHUNK_BYTES
            slab.used_bytes = start + size
            slab.claims += 1
        return way.stream, slab, start, size, time.monotonic_ns() + self._anchor_ns

    def _next_slab(self, way: Way) -> Slab:
        try:
            self._slab = self._tap.next_slab()
        except Exception:  # noqa: BLE001 - no memory, most likely; see `_keep`
            return way.spare
        return self._slab

    def _leave(self, way: Way, rest: Chunk) -> bytes:
        """*rest* crosses when there is room for it."""
        way.rest = rest
        self._await_far(way)
        return GOES_ON

    def _catch_up(self, way: Way) -> bytes:
        """There may be room on the far side for what waits."""
        if way.segment is not None:
            return self._splice(way, way.segment)
        rest = way.rest
        if rest is None:
            return GOES_ON
        _, slab, start, size, _ = rest
        try:
            crossed = way.write(slab.memory[start : start + size])
        except OSError:
            return way.far_side
        if crossed < size:
            way.rest = self._keep_start(rest, crossed)
            return GOES_ON
        way.rest = None
        self._keep(rest)
        self._await_near(way)
        return GOES_ON

    def _keep(self, chunk: Chunk) -> None:
        try:
            if is_spare(chunk[1]):
                self._tap.skip(chunk)
            else:
                self._tap.take(chunk)
        except Exception:  # noqa: BLE001 - no fault of the capture may end the traffic
            self._tap.detach()

    def _keep_start(self, chunk: Chunk, crossed: int) -> Chunk:
        """The first *crossed* bytes of *chunk* have crossed. Returns the rest."""
        if not crossed:
            return chunk
        stream, slab, start, size, at_ns = chunk
        slab.claims += 1
        self._keep((stream, slab, start, crossed, at_ns))
        return stream, slab, start + crossed, size - crossed, at_ns

    def _forgo(self, chunk: Chunk) -> None:
        """*chunk* will never cross."""
        chunk[1].claims -= 1

    def _pass_bulk(self, way: Way, tee: Tee) -> bytes | None:
        """Pass a large chunk on without reading it. None when it has to be read after all."""
        segment = self._tap.open_segment(way.stream)
        size = tee(way.near, segment.write_end) if segment is not None else 0
        way.in_bulk = size >= LARGE_BYTES
        self._is_flowing = size == CHUNK_BYTES
        if segment is None or size <= 0:
            return None  # whatever it is, the read sees it
        way.at_ns = self._now_ns()
        way.segment = segment
        way.teed_bytes = way.owed_bytes = size
        return self._splice(way, segment)

    def _splice(self, way: Way, segment: Segment) -> bytes:
        """Move on what lies in the near pipe and in *segment*, too."""
        try:
            way.owed_bytes -= os.splice(way.near, way.far, way.owed_bytes, flags=SPLICE_NONBLOCK)
        except BlockingIOError:
            pass
        except OSError:
            segment.is_spoilt = True
            self._tap.keep_segment(way.stream, segment, way.teed_bytes - way.owed_bytes, way.at_ns)
            return way.far_side
        if way.owed_bytes:
            self._await_far(way)
            return GOES_ON
        way.segment = None
        self._tap.keep_segment(way.stream, segment, way.teed_bytes, way.at_ns)
        if way.waits:
            self._await_near(way)
        return GOES_ON

    def _await_near(self, way: Way) -> None:
        """Wait for bytes, and for the far side to go. The near end stands first: what it has said is passed on."""
        way.waits = False
        self._forget(way.far)
        self._poll.register(way.near, select.POLLIN)
        self._poll.register(way.far, 0)

    def _await_far(self, way: Way) -> None:
        """Wait for room on the far side, and for nothing else."""
        way.waits = self._is_flowing = True
        self._forget(way.near)
        self._poll.register(way.far, select.POLLOUT)

    def _forget(self, fd: int) -> None:
        try:
            self._poll.unregister(fd)
        except KeyError:
            pass  # it was not waited for

    def _end(self, way: Way, closed_by: bytes) -> None:
        for fd in (way.near, way.far):
            self._forget(fd)
            del self._ways[fd]
        if way.rest is not None:
            self._forgo(way.rest)
        way.close()
        if way.stream != STDERR:
            self._closed_first = self._closed_first or closed_by


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


def mode_of(fd: int, flags: int) -> int:
    """How the client's end *fd*, opened with *flags*, is kept from making the pump wait."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode) or (stat.S_ISFIFO(mode) and open_again(fd, flags)):
        return BY_FLAG
    return BY_NOWAIT if stat.S_ISSOCK(mode) and knows_nowait() else BY_TURNS


def open_again(fd: int, flags: int) -> bool:
    """
    Have a description of the client's pipe that is the relay's alone, and does not wait: whoever else has the client's
    would see that flag. Returns False where that cannot be had: no /proc, somebody else's pipe, one that keeps packets.
    """
    import fcntl  # noqa: PLC0415 - not on Windows, where all else here can be imported

    try:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & getattr(os, "O_DIRECT", 0):
            return False
        own = os.open(f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    os.dup2(own, fd)
    os.close(own)
    return True


def knows_nowait() -> bool:
    """Whether NOWAIT can be had of a socket. Asked with a pair of our own, as asking takes reading."""
    if not NOWAIT:
        return False
    try:
        ends = [end.detach() for end in _socket.socketpair()]
    except OSError:
        return False  # no descriptor left
    try:
        os.preadv(ends[0], (bytearray(1),), -1, NOWAIT)
    except OSError as exc:
        return exc.errno == EAGAIN
    finally:
        for fd in ends:
            os.close(fd)
    return False
