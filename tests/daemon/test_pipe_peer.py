"""
A connection over a named pipe, with real bytes under it: a socket pair stands in for the pipe, and behaves as one.

As with a pipe, the far end's leaving is an error, an empty write arrives as nothing, and a write waits for room.
"""

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio

from kmd.intake.pipe_peer import BUFFER_BYTES, PipePeer

pytestmark = pytest.mark.trio


class SocketPipe:
    """kmd.intake.pipe_peer.Pipe over a socket."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._sock = sock
        self.empty_reads = 0
        self.largest_read = 0

    async def read_into(self, buffer: bytearray) -> int:
        self.largest_read = max(self.largest_read, len(buffer))
        if self.empty_reads:
            self.empty_reads -= 1
            await trio.lowlevel.checkpoint()
            return 0
        size = await self._sock.recv_into(buffer)
        if not size:
            raise BrokenPipeError(errno.EPIPE, "the pipe has been ended")
        return size

    async def write(self, data: bytes | bytearray | memoryview) -> int:
        return await self._sock.send(data)

    def close(self) -> None:
        self._sock.close()


@contextmanager
def connected() -> Iterator[tuple[PipePeer, SocketPipe, trio.SocketStream, list[str]]]:
    near, far = socket.socketpair()
    for sock in (near, far):
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    pipe, closed = SocketPipe(trio.socket.from_stdlib_socket(near)), list[str]()
    peer = PipePeer(pipe, own=True, when_closed=lambda: closed.append("closed"))
    with near, far:
        yield peer, pipe, trio.SocketStream(trio.socket.from_stdlib_socket(far)), closed


async def read_exactly(stream: trio.SocketStream, size: int) -> bytes:
    data = bytearray()
    with trio.fail_after(20):
        while len(data) < size:
            data += await stream.receive_some(size - len(data))
    return bytes(data)


async def test_bytes_go_both_ways_and_the_end_is_an_end() -> None:
    with connected() as (peer, pipe, far, _):
        pipe.empty_reads = 2
        await far.send_all(b"hello")
        assert await peer.receive_some(1 << 20) == b"hello"
        await far.send_all(b"ab")
        assert await peer.receive_some(1) == b"a"
        assert await peer.receive_some() == b"b"
        big = bytes(range(256)) * 1000
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.send_all, big)
            assert await read_exactly(far, len(big)) == big
        await far.aclose()
        assert await peer.receive_some() == b""
        with pytest.raises(trio.BrokenResourceError):
            await peer.send_all(b"x")


async def test_one_read_is_bounded() -> None:
    with connected() as (peer, pipe, far, _):
        await far.send_all(b"abc")
        assert await peer.receive_some(1 << 30) == b"abc"
        assert pipe.largest_read == BUFFER_BYTES


async def test_what_is_sent_now_comes_before_what_is_sent_later() -> None:
    with connected() as (peer, _, far, _):
        peer.send_now(b"1")
        await peer.send_all(b"2")
        assert await read_exactly(far, 2) == b"12"


async def test_while_the_other_end_does_not_read_only_one_of_those_waits() -> None:
    with connected() as (peer, _, far, _):
        first = bytes(1 << 20)  # more than fits
        peer.send_now(first)
        for _ in range(100):
            peer.send_now(b"left out")
            await trio.lowlevel.checkpoint()
        assert await read_exactly(far, len(first)) == first
        await peer.wait_send_all_might_not_block()
        peer.send_now(b"again")
        assert await read_exactly(far, 5) == b"again"


async def test_it_closes_once_and_says_so() -> None:
    with connected() as (peer, _, far, closed):
        await peer.aclose()
        await peer.aclose()
        assert closed == ["closed"]
        with pytest.raises(trio.ClosedResourceError):
            await peer.receive_some()
        with pytest.raises(trio.ClosedResourceError):
            await peer.send_all(b"x")
        peer.send_now(b"x")
        with trio.fail_after(20):
            assert await far.receive_some() == b""


async def test_closing_it_ends_what_waits_for_the_other_end() -> None:
    with connected() as (peer, _, _far, closed):
        peer.send_now(bytes(1 << 20))
        await trio.testing.wait_all_tasks_blocked()
        await peer.aclose()
        with trio.fail_after(20):
            await peer.wait_send_all_might_not_block()
        assert closed == ["closed"]
