"""
One relay's connection: records in, messages to the writer, acknowledgements out.

The loop is read → parse → commit → acknowledge, one step at a time: what a relay sends meanwhile waits in the
socket, outlives the relay there, and bounds what kmd holds. A lone small record is followed by a short
pause, so that lock-step traffic wakes kmd a few hundred times a second at most instead of once per message.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import structlog
import trio

from kmd.intake.sessions import LiveSession, Sessions
from kmd.mcp.conversation import Conversation
from kmd.mcp.message import Message
from kmd.mcp.names import Stream
from kmd.mcp.row import SessionStart
from kmd.outbox.outbox import Intake, KnownSession
from kmd.record import (
    ACK,
    BYE,
    DATA,
    GAP,
    HELLO,
    NO_STREAM,
    PROTOCOL,
    WELCOME,
    Record,
    RecordError,
    RecordReader,
    parse_fields,
    parse_gap,
    render_head,
    render_offsets,
)

RECV_BYTES = 256 << 10
"""One read, and so about what one connection brings to a commit."""
SMALL_READ_BYTES = 16 << 10
PAUSE_S = 0.004
"""After a small read: lets records gather in the socket, where they are safe from the relay's death."""
HELLO_TIMEOUT_S = 10.0
PARKED_TIMEOUT_S = 0.25
"""How long an answer may wait for the request that it overtook."""
NAME_MAX_CHARS = 256
STREAMS = tuple(Stream)

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Taken:
    """What one read brought: messages, and the BYE if the session ended with it."""

    messages: list[Message] = field(default_factory=list)
    bye: Record | None = None


async def serve_relay(sock: trio.socket.SocketType, sessions: Sessions) -> None:
    """Serve one relay until it leaves. A peer that talks nonsense is let go; its session's offsets stay."""
    try:
        reader = RecordReader()
        with trio.fail_after(HELLO_TIMEOUT_S):
            hello, records = await receive_hello(sock, reader)
        async with sessions.enter(parse_hello(hello)) as (live, known):
            await Connection(sock, reader, sessions, live, known).run(records)
    except (RecordError, trio.TooSlowError) as exc:
        log.warning("a relay was let go", reason=str(exc) or "no hello in time")
    except OSError as exc:
        log.debug("a relay's connection broke", error=type(exc).__name__)


async def receive_hello(sock: trio.socket.SocketType, reader: RecordReader) -> tuple[Record, Iterator[Record]]:
    """The first record, which must be HELLO, and those that came with it. Raises RecordError."""
    while chunk := await sock.recv(RECV_BYTES):
        records = iter(list(reader.feed(chunk)))
        for record in records:
            if record.type != HELLO:
                raise RecordError("the first record is no hello")
            return record, records
    raise RecordError("no hello")


def parse_hello(record: Record) -> SessionStart:
    """What HELLO says. Raises RecordError when a field is missing or is not what it should be."""
    fields = parse_fields(record.body)
    try:
        protocol = int(fields["protocol"])
        session = fields["session"].decode("ascii")
        name = fields["name"].decode("utf-8", "replace")[:NAME_MAX_CHARS]
        command = fields["command"].decode("utf-8", "replace")[:NAME_MAX_CHARS]
        pid, started_at_ns = int(fields["pid"]), int(fields["started_at_ns"])
    except (KeyError, ValueError) as exc:
        raise RecordError("a hello that lacks something") from exc
    if protocol != PROTOCOL:
        raise RecordError(f"protocol {protocol}, and this kmd speaks {PROTOCOL}: upgrade the older of the two")
    is_id = len(session) == 36 and all(char in "0123456789abcdef-" for char in session)
    if not is_id or not 0 <= started_at_ns < 2**63 or not 0 <= pid < 2**31:
        raise RecordError("a hello with an impossible number")
    return SessionStart(session, name, command, pid, started_at_ns)


class Connection:
    """A relay that has said HELLO."""

    def __init__(
        self,
        sock: trio.socket.SocketType,
        reader: RecordReader,
        sessions: Sessions,
        live: LiveSession,
        known: KnownSession,
    ) -> None:
        self._sock = sock
        self._reader = reader
        self._sessions = sessions
        self._live = live
        self._known = known
        self._conversation = Conversation(known.durable, sessions.max_message_bytes)
        self._conversation.restore(known.recent)
        self._live.conversation = self._conversation

    async def run(self, records: Iterator[Record]) -> None:
        """Welcome the relay, then take in what it sends until BYE or the end of the connection."""
        await self._send_all(render_offsets(WELCOME, self._offsets()))
        taken = self._take(records)
        while True:
            await self._commit(taken)
            if taken.bye is not None:
                await self._send_all(render_head(BYE, NO_STREAM, 0, 0, b""))
                return
            chunk = await self._receive()
            if chunk == b"":
                await self._commit(Taken(self._conversation.release()))
                return
            if chunk is None:
                taken = Taken(self._conversation.release())
                continue
            if len(chunk) < SMALL_READ_BYTES:
                await trio.sleep(PAUSE_S)
            taken = self._take(self._reader.feed(chunk))

    async def _receive(self) -> bytes | None:
        """The next bytes, b"" at the end, None when a parked answer has waited long enough."""
        if not self._conversation.has_parked:
            return bytes(await self._sock.recv(RECV_BYTES))
        with trio.move_on_after(PARKED_TIMEOUT_S):
            return bytes(await self._sock.recv(RECV_BYTES))
        return None

    def _take(self, records: Iterator[Record]) -> Taken:
        """Feed records to the conversation. Raises RecordError on one that has no place here."""
        taken = Taken()
        for record in records:
            match record.type:
                case t if t == DATA and record.stream < len(STREAMS):
                    stream = STREAMS[record.stream]
                    taken.messages += self._conversation.take_chunk(stream, record.offset, record.body, record.at_ns)
                    self._live.count(stream, len(record.body))
                case t if t == GAP and record.stream < len(STREAMS):
                    self._conversation.take_gap(STREAMS[record.stream], record.offset, parse_gap(record.body))
                case t if t == BYE:
                    taken.messages += self._conversation.finish()
                    taken.bye = record
                case _:
                    raise RecordError("a record that does not belong here")
        return taken

    async def _commit(self, taken: Taken) -> None:
        """Make *taken* durable, then acknowledge it."""
        offsets = self._offsets()
        durable = dict(zip(STREAMS, offsets, strict=True))
        gap_bytes = self._known.gap_bytes + self._conversation.gap_bytes
        if not taken.messages and taken.bye is None and durable == self._live.durable:
            return
        closed_first = parse_fields(taken.bye.body).get("closed_first", b"") if taken.bye else b""
        intake = Intake(
            session_id=self._known.session_id,
            messages=taken.messages,
            durable=durable,
            gap_bytes=gap_bytes,
            ended_at_ns=taken.bye.at_ns if taken.bye else None,
            closed_first=closed_first.decode("ascii", "replace")[:16] or None,
            keep_payloads=self._sessions.keep_payloads,
        )
        await self._sessions.writer.commit(intake)
        self._live.durable = durable
        self._live.gap_bytes = gap_bytes
        self._live.events += len(taken.messages)
        self._acknowledge(offsets)

    def _offsets(self) -> tuple[int, int, int]:
        settled = self._conversation.settled
        return settled(Stream.TO_SERVER), settled(Stream.TO_CLIENT), settled(Stream.STDERR)

    def _acknowledge(self, offsets: tuple[int, int, int]) -> None:
        """Say what is durable, unless the relay has not read earlier acks: the next one will cover this."""
        with contextlib.suppress(OSError):
            os.write(self._sock.fileno(), render_offsets(ACK, offsets))

    async def _send_all(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[await self._sock.send(view) :]
