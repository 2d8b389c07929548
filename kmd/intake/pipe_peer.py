"""
A connection over a named pipe, as a Peer. It knows pipes only as something that reads, writes and closes.

What differs from a socket is worked out here: the end is an error there, an empty write is no end, and what does not
fit waits instead of being refused.
"""

import contextlib
from collections.abc import Callable
from typing import Protocol

import trio

from kmd.intake.peer import Peer

BUFFER_BYTES = 64 << 10
"""One read, and what each direction of a pipe holds in the kernel."""


class Pipe(Protocol):
    """One end of a pipe: each call moves some bytes, or raises OSError (BrokenPipeError: the other end is closed)."""

    async def read_into(self, buffer: bytearray) -> int: ...
    async def write(self, data: bytes | bytearray | memoryview) -> int: ...
    def close(self) -> None: ...


class PipePeer(Peer):
    """
    Somebody at the other end of *pipe*.

    own: whether it is this user. when_closed: called once, when this end has been closed.
    """

    def __init__(self, pipe: Pipe, *, own: bool, when_closed: Callable[[], None]) -> None:
        self._pipe = pipe
        self._own = own
        self._when_closed = when_closed
        self._is_closed = False
        self._is_sent = trio.Event()
        self._is_sent.set()

    def is_own(self) -> bool:
        return self._own

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        buffer = bytearray(min(max_bytes or BUFFER_BYTES, BUFFER_BYTES))
        size = 0
        while not size:  # somebody who writes nothing has not left
            self._check_open()
            try:
                size = await self._pipe.read_into(buffer)
            except BrokenPipeError:
                self._check_open()
                await trio.lowlevel.checkpoint()
                return b""
            except OSError as exc:
                raise trio.BrokenResourceError("the pipe cannot be read") from exc
        return bytes(memoryview(buffer)[:size])

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._is_sent.wait()
        await self._write(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._is_sent.wait()
        await trio.lowlevel.checkpoint()

    def send_now(self, data: bytes) -> None:
        """Leaves the writing to a task of its own: as long as that waits for the other end, nothing more is sent."""
        if self._is_closed or not self._is_sent.is_set():
            return
        self._is_sent = trio.Event()
        trio.lowlevel.spawn_system_task(self._send_alone, data, self._is_sent)

    async def _send_alone(self, data: bytes, is_sent: trio.Event) -> None:
        try:
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self._write(data)
        finally:
            is_sent.set()

    async def _write(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        while view:
            self._check_open()
            try:
                view = view[await self._pipe.write(view) :]
            except OSError as exc:
                raise trio.BrokenResourceError("the other end of the pipe is closed") from exc

    async def aclose(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._pipe.close()
            self._when_closed()
        await trio.lowlevel.checkpoint()

    def _check_open(self) -> None:
        if self._is_closed:
            raise trio.ClosedResourceError("this end of the pipe is closed")
