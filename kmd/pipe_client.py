"""
The client's end of kmd's pipe on Windows, for a program that waits: what a connected socket is elsewhere.

Anybody may make a pipe of any name, also before kmd does. So nothing is said before the pipe's owner was seen to be
this user, and whoever is at the other end learns who this is, but cannot act as this user.
"""

import sys

assert sys.platform == "win32"

import contextlib
import ctypes
import errno
import time
from typing import Self

from kmd.shim.windows import calls

LOOK_AGAIN_S = 0.02
"""While every instance of the pipe is taken: kmd makes another one as soon as somebody has connected."""


def connect_pipe(name: str, timeout_s: float) -> "PipeClient":
    """
    The pipe *name*, which must be this user's.

    Raises: FileNotFoundError (nobody has made it), TimeoutError (kmd takes nobody in), PermissionError (another
    user's), OSError.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            handle = calls.open_pipe(name)
            break
        except OSError as exc:
            if exc.winerror != calls.ERROR_PIPE_BUSY:
                raise
            if time.monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, "every instance of the pipe is taken") from exc
        time.sleep(LOOK_AGAIN_S)
    client = PipeClient(handle)
    try:
        if calls.owner_sid(handle) != calls.current_user_sid():
            raise PermissionError(errno.EACCES, "the pipe is another user's; nothing was said to it")
    except BaseException:
        client.close()
        raise
    return client


class PipeClient:
    """A connected pipe with the few words of a socket that kmctl uses. One thread, one operation at a time."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._event = calls.create_event()
        self._timeout_s: float | None = None

    def settimeout(self, timeout_s: float | None) -> None:
        """How long each operation may take; None for ever."""
        self._timeout_s = timeout_s

    def sendall(self, data: bytes) -> None:
        """Raises OSError, TimeoutError among them."""
        while data:
            overlapped = self._begin()
            calls.start_write(self._handle, data, overlapped)
            data = data[self._wait(overlapped) :]

    def recv(self, most: int) -> bytes:
        """At most *most* bytes, b"" at the end. Raises OSError, TimeoutError among them."""
        buffer = ctypes.create_string_buffer(most)
        size = 0
        while not size:  # kmd never writes nothing; the end is an error
            overlapped = self._begin()
            try:
                calls.start_read(self._handle, buffer, overlapped)
                size = self._wait(overlapped)
            except BrokenPipeError:
                return b""
        return buffer.raw[:size]

    def close(self) -> None:
        """Nothing is under way any more: each operation ends before its method does."""
        calls.close_handle(self._handle)
        calls.close_handle(self._event)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _begin(self) -> calls.Overlapped:
        calls.reset_event(self._event)
        return calls.Overlapped(event=self._event)

    def _wait(self, overlapped: calls.Overlapped) -> int:
        """How many bytes were moved. The buffers are ours again when this returns or raises."""
        try:
            is_done = calls.wait_for_any([self._event], self._timeout_s)
        except BaseException:  # Control-C
            self._give_up(overlapped)
            raise
        if is_done:
            return calls.overlapped_result(self._handle, overlapped, wait=True)
        self._give_up(overlapped)
        raise TimeoutError(errno.ETIMEDOUT, "no answer in time")

    def _give_up(self, overlapped: calls.Overlapped) -> None:
        calls.cancel_io(self._handle, overlapped)
        with contextlib.suppress(OSError):  # it was cancelled
            calls.overlapped_result(self._handle, overlapped, wait=True)
