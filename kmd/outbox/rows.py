"""What a stored event looks like when it is read: the columns, and how they become a Row."""

from collections.abc import Sequence
from typing import Any

from kmd.mcp.message import Message
from kmd.mcp.names import Kind, Outcome, Stream
from kmd.mcp.row import Row, SessionStart

SESSION_COLUMNS = "s.session, s.name, s.command, s.started_at_ns, s.ended_at_ns, s.closed_first"
MESSAGE_COLUMNS = (
    "{0}.stream, {0}.offset, {0}.idx, {0}.at_ns, {0}.kind, {0}.method, {0}.target, {0}.rpc_id, {0}.size_bytes,"
    " {0}.took_ns, {0}.outcome, {0}.error_code, {0}.sha256, {0}.payload"
)
"""Of the table {0}: an event's, or the copy of one."""

STREAMS = {stream.value: stream for stream in Stream}
KINDS = {kind.value: kind for kind in Kind}
OUTCOMES = {outcome.value: outcome for outcome in Outcome}


def parse_row(values: Sequence[Any]) -> Row:
    """
    The values of seq, SESSION_COLUMNS and MESSAGE_COLUMNS as a Row.

    Names that a flipped bit has made unknown must not stop the rows behind them.
    """
    seq, session, name, command, started_at_ns, ended_at_ns, closed_first, *of_message = values
    stream, offset, index, at_ns, kind, method, target, rpc_id, size, took, outcome, code, sha256, payload = of_message
    return Row(
        seq=seq,
        session=SessionStart(session, name, command, 0, started_at_ns),
        ended_at_ns=ended_at_ns,
        closed_first=closed_first or "",
        message=Message(
            stream=STREAMS.get(stream, Stream.TO_SERVER),
            offset=offset,
            index=index,
            at_ns=at_ns,
            kind=KINDS.get(kind, Kind.INVALID),
            method=method,
            target=target,
            rpc_id=rpc_id,
            size_bytes=size,
            took_ns=took,
            outcome=OUTCOMES.get(outcome),
            error_code=code,
            sha256=sha256,
            payload=payload,
        ),
    )
