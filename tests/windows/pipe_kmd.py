"""Where relays bring their records on Windows: a pipe that answers as kmd does, and keeps what came."""

import sys

assert sys.platform == "win32"

import contextlib
import ctypes
import threading
from pathlib import Path

from kmd.record import (
    ACK,
    BYE,
    DATA,
    HELLO,
    NO_STREAM,
    RUN,
    STREAMS,
    WELCOME,
    RecordReader,
    parse_run,
    render_head,
    render_offsets,
)
from kmd.shim.windows.calls import (
    ERROR_IO_PENDING,
    Overlapped,
    Security,
    close_handle,
    connect_named_pipe,
    create_event,
    create_named_pipe,
    overlapped_result,
    start_read,
    start_write,
)
from kmd.shim.windows.names import RELAY, pipe_name


class PipeKmd:
    """
    Takes one relay after the other, up to *relays*. streams: what has come of each stream; ended: after the last.

    hangs_up_after: so many bytes of records, and the first connection is closed without a word.
    """

    def __init__(self, home: Path, sddl: str, relays: int = 1, hangs_up_after: int | None = None) -> None:
        """Raises OSError."""
        self.streams = [bytearray() for _ in range(STREAMS)]
        self.byes = 0
        self.connections = 0
        self._hangs_up_after = hangs_up_after
        self._relays = relays
        self._security = Security(sddl)
        self._name = pipe_name(str(home), RELAY)
        self._pipe = create_named_pipe(self._name, self._security, 65536, first=True)
        self._overlapped = Overlapped(event=create_event())
        self._buffer = ctypes.create_string_buffer(65536)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while True:
            if connect_named_pipe(self._pipe, ctypes.addressof(self._overlapped)) == ERROR_IO_PENDING:
                overlapped_result(self._pipe, self._overlapped, wait=True)
            self.connections += 1
            with contextlib.suppress(BrokenPipeError):
                self._serve()
            close_handle(self._pipe)
            if self.byes == self._relays:
                return
            self._pipe = create_named_pipe(self._name, self._security, 65536, first=False)

    def _serve(self) -> None:
        reader, read_bytes = RecordReader(), 0
        while True:
            start_read(self._pipe, self._buffer, self._overlapped)
            count = overlapped_result(self._pipe, self._overlapped, wait=True)
            read_bytes += count
            for record in reader.feed(ctypes.string_at(self._buffer, count)):
                if record.type == HELLO:
                    self._say(render_offsets(WELCOME, self._durable()))
                elif record.type == BYE:
                    self.byes += 1
                    self._say(render_head(BYE, NO_STREAM, 0, 0, b""))
                else:
                    assert record.type in (DATA, RUN)
                    self._take(
                        parse_run(record.body)
                        if record.type == RUN
                        else [(record.stream, record.offset, record.body, 0)]
                    )
                    self._say(render_offsets(ACK, self._durable()))
            if self._hangs_up_after is not None and read_bytes > self._hangs_up_after:
                self._hangs_up_after = None
                return

    def _take(self, chunks: list[tuple[int, int, bytes, int]]) -> None:
        for stream, offset, chunk, _ in chunks:
            assert offset <= len(self.streams[stream]), "a gap"
            self.streams[stream][offset:] = chunk

    def _durable(self) -> tuple[int, int, int]:
        to_server, to_client, stderr = map(len, self.streams)
        return to_server, to_client, stderr

    def _say(self, data: bytes) -> None:
        start_write(self._pipe, data, self._overlapped)
        overlapped_result(self._pipe, self._overlapped, wait=True)
