"""
The client's side of one server, and the record of what it saw.

Its ends of the pipes are non-blocking, so that every operation can have a bound.
"""

import hashlib
import os
import select
import subprocess
from collections.abc import Mapping
from typing import IO, Any

Record = dict[str, Any]

WAIT_S = 10.0
"""For what must happen; a loaded machine is slow, a hang is for ever."""
SHOWN_BYTES = 200
"""Longer outputs are compared by length and digest."""
SPAN_BYTES = 64 << 10


def digest(data: bytes) -> object:
    """*data* as a record shows it."""
    return data if len(data) <= SHOWN_BYTES else (len(data), hashlib.sha256(data).hexdigest())


class Client:
    """The client's side of one server: its ends of the pipes are non-blocking, each operation has a bound."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        pipes = (process.stdin, process.stdout, process.stderr)
        self.input, self.output, self.errors = (take_fd(pipe) for pipe in pipes)

    def send(self, data: bytes) -> None:
        """Write all of *data*. Raises BrokenPipeError when nobody reads, TimeoutError when nobody goes on reading."""
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self.input, view[:SPAN_BYTES]) :]
            except BlockingIOError:
                wait_ready(self.input, select.POLLOUT)

    def fill(self) -> int:
        """Write until nothing more is taken for a while; how many bytes went."""
        sent = 0
        while True:
            try:
                sent += os.write(self.input, b"f" * 4096)
            except BlockingIOError:
                poll = select.poll()
                poll.register(self.input, select.POLLOUT)
                if not poll.poll(300):
                    return sent

    def receive(self, size: int) -> bytes:
        """Exactly *size* bytes, less only at the end of stdout."""
        data = b""
        while len(data) < size and (part := read_some(self.output, size - len(data))):
            data += part
        return data

    def receive_line(self) -> bytes:
        line = b""
        while not line.endswith(b"\n") and (part := read_some(self.output, 1)):
            line += part
        return line

    def receive_note(self) -> bytes:
        """One line of stderr."""
        line = b""
        while not line.endswith(b"\n") and (part := read_some(self.errors, 1)):
            line += part
        return line

    def receive_errors(self, size: int) -> bytes:
        """Exactly *size* bytes of stderr, less only at its end."""
        data = b""
        while len(data) < size and (part := read_some(self.errors, size - len(data))):
            data += part
        return data

    def receive_rest(self) -> bytes:
        return read_rest(self.output)

    def exchange(self, data: bytes) -> bytes:
        """Write *data* and close, reading all the while; returns all of the output from here on."""
        return self._write_and_read(data, None)

    def converse(self, data: bytes) -> bytes:
        """Write *data*, reading all the while, until as much has come back; both directions stay open."""
        return self._write_and_read(data, len(data))

    def _write_and_read(self, data: bytes, size: int | None) -> bytes:
        view, parts, left, ended = memoryview(data), list[bytes](), size, False
        while view or not ended:
            if not view and size is None:
                self.close_input()
            ready = wait_any(
                {self.input: select.POLLOUT} if view else {}, {} if ended else {self.output: select.POLLIN}
            )
            if self.input in ready and view:
                try:
                    view = view[os.write(self.input, view[:SPAN_BYTES]) :]
                except BrokenPipeError:
                    view = memoryview(b"")
            if self.output in ready:
                parts.append(os.read(self.output, 1 << 20 if left is None else left))
                left = None if left is None else left - len(parts[-1])
                ended = not parts[-1] or left == 0
        if size is None:
            self.close_input()
        return b"".join(parts)

    def take_over(self, to_server: int, from_server: int) -> None:
        """Use these descriptors, which the client made itself, for stdin and stdout."""
        self.input, self.output = to_server, from_server
        os.set_blocking(to_server, False)
        os.set_blocking(from_server, False)

    def close_input(self) -> None:
        if self.input >= 0:
            os.close(self.input)
            self.input = -1

    def close_output(self) -> None:
        if self.output >= 0:
            os.close(self.output)
            self.output = -1

    def close_errors(self) -> None:
        if self.errors >= 0:
            os.close(self.errors)
            self.errors = -1

    def poll_errors(self, wait_ms: int) -> bool:
        """Whether something, or the end, can be read from stderr within *wait_ms*."""
        return is_readable(self.errors, wait_ms)

    def poll_output(self, wait_ms: int) -> bool:
        """The same of stdout."""
        return is_readable(self.output, wait_ms)

    def sees_gone(self, fd: int) -> bool:
        """Whether the server's end of *fd* goes away while nothing is written or read."""
        poll = select.poll()
        poll.register(fd, 0)
        return bool(poll.poll(WAIT_S * 1000))

    def wait(self) -> int:
        """The exit status as subprocess gives it: negative for a signal."""
        return self.process.wait(WAIT_S)

    def finish(self, data: bytes = b"") -> Record:
        """Send *data*, close, and take whatever comes until the end: output, errors, status."""
        output = self.exchange(data) if self.output >= 0 and self.input >= 0 else b""
        self.close_input()
        if self.output >= 0:
            output += self.receive_rest()
        errors = read_rest(self.errors) if self.errors >= 0 else b""
        return {"output": digest(output), "errors": digest(errors), "status": self.wait()}

    def close(self) -> None:
        self.close_input()
        self.close_output()
        self.close_errors()


def take_fd(pipe: IO[bytes] | None) -> int:
    """A non-blocking descriptor of our own for subprocess's *pipe*; -1 when there is none."""
    if pipe is None:
        return -1
    fd = os.dup(pipe.fileno())
    pipe.close()
    os.set_blocking(fd, False)
    return fd


def wait_any(*wanted: Mapping[int, int]) -> dict[int, int]:
    """Wait until one of the descriptors is ready. Raises TimeoutError."""
    poll = select.poll()
    for each in wanted:
        for fd, events in each.items():
            poll.register(fd, events)
    ready = dict(poll.poll(WAIT_S * 1000))
    if not ready:
        raise TimeoutError(f"nothing moved for {WAIT_S:.0f} s")
    return ready


def wait_ready(fd: int, events: int) -> None:
    wait_any({fd: events})


def is_readable(fd: int, wait_ms: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(wait_ms))


def read_some(fd: int, size: int) -> bytes:
    """At most *size* bytes, as soon as there are any; empty at the end."""
    wait_ready(fd, select.POLLIN)
    return os.read(fd, size)


def read_rest(fd: int) -> bytes:
    parts = []
    while part := read_some(fd, 1 << 20):
        parts.append(part)
    return b"".join(parts)
