"""A relay by hand: speaks the record protocol on a plain socket, and says what kmd answers. Every wait is bounded."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from kmd.record import (
    ACK,
    BYE,
    DATA,
    GAP,
    HELLO,
    NO_STREAM,
    WELCOME,
    Record,
    RecordReader,
    parse_offsets,
    render_fields,
    render_gap,
    render_head,
)
from tests.support.processes import WAIT_S

Offsets = tuple[int, int, int]


def session_name(number: int) -> str:
    return f"01890a5d-ac96-774b-bcce-{number:012x}"


def render_hello(session: str, /, **fields: bytes) -> bytes:
    """A HELLO record; *fields* replace or add to the usual ones."""
    usual = {"protocol": b"1", "session": session.encode(), "name": b"raw", "command": b"cat"}
    body = render_fields({**usual, "pid": b"77", "started_at_ns": b"1700000000000000000", **fields})
    return render_head(HELLO, NO_STREAM, 0, 0, body) + body


class RawRelay:
    """One connection. `acked` is what kmd said last."""

    def __init__(self, home: Path) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.settimeout(WAIT_S)
        self._sock.connect(str(home / "kmd.sock"))
        self._reader = RecordReader()
        self._waiting: list[Record] = []
        self.acked: Offsets = (0, 0, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sock.close()

    def send(self, data: bytes) -> None:
        self._sock.sendall(data)

    def hello(self, session: str, /, **fields: bytes) -> Offsets:
        """Open the session; returns what WELCOME says is durable."""
        self.send(render_hello(session, **fields))
        record = self.receive()
        assert record is not None
        assert record.type == WELCOME
        self.acked = parse_offsets(record.body)
        return self.acked

    def data(self, stream: int, offset: int, body: bytes, at_ns: int = 1_800_000_000_000_000_000) -> None:
        self.send(render_head(DATA, stream, offset, at_ns, body) + body)

    def gap(self, stream: int, offset: int, length: int) -> None:
        body = render_gap(length)
        self.send(render_head(GAP, stream, offset, 0, body) + body)

    def bye(self, **fields: bytes) -> None:
        body = render_fields(fields)
        self.send(render_head(BYE, NO_STREAM, 0, 1_800_000_001_000_000_000, body) + body)

    def receive(self) -> Record | None:
        """The next record, None when kmd has closed the connection."""
        while not self._waiting:
            try:
                chunk = self._sock.recv(65536)
            except ConnectionResetError:
                return None
            if not chunk:
                return None
            self._waiting += self._reader.feed(chunk)
        return self._waiting.pop(0)

    def wait_acked(self, *least: int) -> Offsets:
        """Until kmd has acknowledged at least so much of each stream."""
        while any(have < want for have, want in zip(self.acked, least, strict=False)):
            record = self.receive()
            assert record is not None, f"closed at {self.acked}, waiting for {least}"
            assert record.type == ACK
            now = parse_offsets(record.body)
            assert all(new >= old for new, old in zip(now, self.acked, strict=True))
            self.acked = now
        return self.acked

    def wait_closed(self) -> None:
        """Until kmd has closed the connection; acknowledgements on the way are passed over."""
        while record := self.receive():
            assert record.type == ACK

    def wait_bye(self) -> None:
        while (record := self.receive()) is not None and record.type == ACK:
            self.acked = parse_offsets(record.body)
        assert record is not None
        assert record.type == BYE


@contextmanager
def connected(home: Path, session: str) -> Iterator[RawRelay]:
    """A relay that has said HELLO."""
    with RawRelay(home) as relay:
        relay.hello(session)
        yield relay
