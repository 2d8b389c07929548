"""
One relay's connection: records in, messages to the writer, acknowledgements out.

The loop is read → parse → commit → acknowledge, one step at a time: what a relay sends meanwhile waits in the
socket, outlives the relay there, and bounds what kmd holds. A lone small record is followed by a short
pause, so that lock-step traffic wakes kmd a few hundred times a second at most instead of once per message.
"""

from collections.abc import Iterator

import structlog
import trio

from kmd.intake.peer import Peer
from kmd.intake.session_intake import SessionIntake, Taken, parse_hello
from kmd.intake.sessions import Sessions
from kmd.record import (
    ACK,
    BYE,
    HELLO,
    NO_STREAM,
    WELCOME,
    Record,
    RecordError,
    RecordReader,
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

log = structlog.get_logger(__name__)


async def serve_relay(peer: Peer, sessions: Sessions) -> None:
    """Serve one relay until it leaves. A peer that talks nonsense is let go; its session's offsets stay."""
    try:
        reader = RecordReader()
        with trio.fail_after(HELLO_TIMEOUT_S):
            hello, records = await receive_hello(peer, reader)
        async with sessions.enter(parse_hello(hello)) as (live, known):
            await Connection(peer, reader, SessionIntake(sessions, live, known)).run(records)
    except (RecordError, trio.TooSlowError) as exc:
        log.warning("a relay was let go", reason=str(exc) or "no hello in time")
    except trio.BrokenResourceError:
        log.debug("a relay's connection broke")


async def receive_hello(peer: Peer, reader: RecordReader) -> tuple[Record, Iterator[Record]]:
    """The first record, which must be HELLO, and those that came with it. Raises RecordError."""
    while chunk := await peer.receive_some(RECV_BYTES):
        records = iter(list(reader.feed(chunk)))
        for record in records:
            if record.type != HELLO:
                raise RecordError("the first record is no hello")
            return record, records
    raise RecordError("no hello")


class Connection:
    """A relay that has said HELLO."""

    def __init__(self, peer: Peer, reader: RecordReader, intake: SessionIntake) -> None:
        self._peer = peer
        self._reader = reader
        self._intake = intake

    async def run(self, records: Iterator[Record]) -> None:
        """Welcome the relay, then take in what it sends until BYE or the end of the connection."""
        await self._peer.send_all(render_offsets(WELCOME, self._intake.offsets()))
        taken = self._intake.take(records)
        while True:
            if await self._intake.commit(taken):
                self._acknowledge()
            if taken.bye is not None:
                await self._peer.send_all(render_head(BYE, NO_STREAM, 0, 0, b""))
                return
            taken = Taken()  # what was committed must not stay in memory while the relay is silent
            chunk = await self._receive()
            if chunk == b"":
                await self._intake.commit(self._intake.release())
                return
            taken = self._intake.release() if chunk is None else await self._take(chunk)

    async def _take(self, chunk: bytes) -> Taken:
        if len(chunk) < SMALL_READ_BYTES:
            await trio.sleep(PAUSE_S)
        return self._intake.take(self._reader.feed(chunk))

    async def _receive(self) -> bytes | None:
        """The next bytes, b"" at the end, None when a parked answer has waited long enough."""
        if not self._intake.has_parked:
            return await self._peer.receive_some(RECV_BYTES)
        with trio.move_on_after(PARKED_TIMEOUT_S):
            return await self._peer.receive_some(RECV_BYTES)
        return None

    def _acknowledge(self) -> None:
        """Say what is durable, unless the relay has not read earlier acks: the next one will cover this."""
        self._peer.send_now(render_offsets(ACK, self._intake.offsets()))
