"""Messages and sessions with as little as a test has to say about them."""

import hashlib

from kmd.mcp.message import Message
from kmd.mcp.names import Kind, Outcome, Stream
from kmd.mcp.row import Row, SessionStart

START = SessionStart(
    session="01890a5d-ac96-774b-bcce-b302099a8057", name="files", command="server", pid=42, started_at_ns=1_700_000
)


def message(
    offset: int, payload: bytes | None = b"{}", *, stream: Stream = Stream.TO_SERVER, index: int = 0
) -> Message:
    return Message(
        stream=stream,
        offset=offset,
        index=index,
        at_ns=1_000_000 + offset,
        kind=Kind.NOTIFICATION,
        method="notifications/message",
        size_bytes=len(payload or b""),
        payload=payload,
    )


def full_message(offset: int) -> Message:
    """A message with something in every field."""
    return Message(
        stream=Stream.TO_CLIENT,
        offset=offset,
        index=3,
        at_ns=2**62,
        kind=Kind.ERROR,
        method="tools/call",
        target="n\u00e4me \U0001f600",
        rpc_id='"\u0000"',
        size_bytes=2**40,
        took_ns=2**50,
        outcome=Outcome.PROBE,
        error_code=-(2**31),
        sha256=hashlib.sha256(b"x").hexdigest(),
        payload=b"\x00\xff{",
    )


def row(seq: int, payload: bytes = b"{}", start: SessionStart = START) -> Row:
    return Row(seq=seq, session=start, ended_at_ns=None, message=message(seq * 100, payload))
