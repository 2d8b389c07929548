"""A message with its session and its place in the outbox, and the ends of sessions: what status and sync read."""

import msgspec

from kmd.mcp.message import Message


class SessionStart(msgspec.Struct, frozen=True):
    """
    What a relay says of its session when it begins. `command` is the program's file name; no arguments.

    pid: the server's. relay_pid: the relay's own, 0 where that is not known.
    """

    session: str
    name: str
    command: str
    pid: int
    started_at_ns: int
    relay_pid: int = 0


class SessionEnd(msgspec.Struct, frozen=True, kw_only=True):
    """A session that is over. end_seq: the order of ends. closed_first: as in kmd.wire.Session."""

    end_seq: int
    start: SessionStart
    ended_at_ns: int
    closed_first: str


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """seq: the order of commits, which never repeats."""

    seq: int
    session: SessionStart
    ended_at_ns: int | None
    closed_first: str = ""
    message: Message
