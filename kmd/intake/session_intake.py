"""From records to commits: what one session's records become, whether they come by socket or from a spool."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from kmd.intake.sessions import LiveSession, Sessions
from kmd.mcp.conversation import Conversation
from kmd.mcp.message import Message
from kmd.mcp.names import Stream
from kmd.mcp.row import SessionStart
from kmd.outbox.outbox import Intake
from kmd.outbox.sessions import KnownSession
from kmd.record import (
    BYE,
    DATA,
    GAP,
    POSITION_MAX,
    PROTOCOL,
    PROTOCOLS,
    RUN,
    Record,
    RecordError,
    parse_fields,
    parse_gap,
    parse_run,
)

NAME_MAX_CHARS = 256
UNNAMED = "unnamed"
CLOSED_BY_RELAY = "relay"
"""In place of who closed first: the relay was killed before anybody did."""
STREAMS = tuple(Stream)


@dataclass(slots=True)
class Taken:
    """
    What some records brought: messages, and the BYE if the session ended with it.

    lost_at_ns: when the relay was last heard of, if it is gone for good without a BYE.
    """

    messages: list[Message] = field(default_factory=list)
    bye: Record | None = None
    lost_at_ns: int | None = None


def parse_hello(record: Record) -> SessionStart:
    """What HELLO says. Raises RecordError when a field is missing or is not what it should be."""
    fields = parse_fields(record.body)
    try:
        protocol = int(fields["protocol"])
        session = fields["session"].decode("ascii")
        name = fields["name"].decode("utf-8", "replace")[:NAME_MAX_CHARS]
        command = fields["command"].decode("utf-8", "replace")[:NAME_MAX_CHARS]
        pid, started_at_ns = int(fields["pid"]), int(fields["started_at_ns"])
        relay_pid = int(fields.get("relay_pid", b"0"))
    except (KeyError, ValueError) as exc:
        raise RecordError("a hello that lacks something") from exc
    if protocol not in PROTOCOLS:
        raise RecordError(f"protocol {protocol}, and this kmd speaks {PROTOCOL}: upgrade the older of the two")
    if (
        not is_session_id(session)
        or not 0 <= started_at_ns < 2**63
        or not (0 <= pid < 2**31 and 0 <= relay_pid < 2**31)
    ):
        raise RecordError("a hello with an impossible number")
    return SessionStart(session, name or command or UNNAMED, command, pid, started_at_ns, relay_pid)


def is_session_id(text: str) -> bool:
    """Whether *text* may name a session."""
    return len(text) == 36 and all(char in "0123456789abcdef-" for char in text)


def parse_lengths(bye: Record) -> dict[Stream, int]:
    """How long each stream was, as far as BYE says. Raises RecordError."""
    fields = parse_fields(bye.body)
    try:
        lengths = {s: int(fields[f"length.{n}"]) for n, s in enumerate(STREAMS) if f"length.{n}" in fields}
    except ValueError as exc:
        raise RecordError("a bye with an impossible number") from exc
    if any(not 0 <= length <= POSITION_MAX for length in lengths.values()):
        raise RecordError("a bye with an impossible number")
    return lengths


class SessionIntake:
    """Feeds one session's records to its conversation and commits what comes out."""

    def __init__(
        self, sessions: Sessions, live: LiveSession, known: KnownSession, *, passes_over: bool = False
    ) -> None:
        """passes_over: a record that makes no sense is left out, and is a gap; on a connection it ends that."""
        self._sessions = sessions
        self._live = live
        self._known = known
        self._passes_over = passes_over
        self._durable = {stream: known.durable.get(stream, 0) for stream in STREAMS}
        self._conversation = Conversation(known.durable, sessions.max_message_bytes)
        self._conversation.restore(known.open_requests)
        live.conversation = self._conversation

    @property
    def has_parked(self) -> bool:
        """Whether answers wait for their request; call `release` when nothing comes for a while."""
        return self._conversation.has_parked

    def offsets(self) -> tuple[int, int, int]:
        """How far each stream is settled; durable once `commit` has returned."""
        settled = self._conversation.settled
        return settled(Stream.TO_SERVER), settled(Stream.TO_CLIENT), settled(Stream.STDERR)

    def take(self, records: Iterable[Record]) -> Taken:
        """Feed records to the conversation. Raises RecordError on one that has no place here."""
        taken = Taken()
        for record in records:
            try:
                self._take_record(record, taken)
            except RecordError:
                if not self._passes_over:
                    raise
        return taken

    def _take_record(self, record: Record, taken: Taken) -> None:
        if record.type == RUN:
            for number, offset, chunk, at_ns in parse_run(record.body):
                taken.messages += self._take_chunk(STREAMS[number], offset, chunk, at_ns)
        elif record.type == DATA and record.stream < len(STREAMS):
            stream = STREAMS[record.stream]
            taken.messages += self._take_chunk(stream, record.offset, record.body, record.at_ns)
        elif record.type == GAP and record.stream < len(STREAMS):
            self._conversation.take_gap(STREAMS[record.stream], record.offset, parse_gap(record.body))
        elif record.type == BYE:
            taken.messages += self._conversation.finish(parse_lengths(record))
            taken.bye = record
        else:
            raise RecordError("a record that does not belong here")

    def _take_chunk(self, stream: Stream, offset: int, chunk: bytes, at_ns: int) -> list[Message]:
        self._live.count(stream, len(chunk))
        return self._conversation.take_chunk(stream, offset, chunk, at_ns)

    def release(self) -> Taken:
        """Hand out the answers whose request did not show up."""
        return Taken(self._conversation.release())

    def abandon(self, lost_at_ns: int) -> Taken:
        """The relay is gone without a BYE, nothing more will come: hand out what is complete; the session is over."""
        return Taken(self._conversation.abandon(), lost_at_ns=lost_at_ns)

    async def commit(self, taken: Taken) -> bool:
        """Make *taken* durable. Returns whether there was anything to commit."""
        durable = dict(zip(STREAMS, self.offsets(), strict=True))
        ended_at_ns, closed_first = self._judge_end(taken)
        if not taken.messages and ended_at_ns is None and durable == self._durable:
            return False
        gap_bytes = self._known.gap_bytes + self._conversation.gap_bytes
        intake = Intake(
            session_id=self._known.session_id,
            messages=taken.messages,
            durable=durable,
            gap_bytes=gap_bytes,
            ended_at_ns=ended_at_ns,
            closed_first=closed_first or None,
            keep_payloads=self._sessions.keep_payloads,
            open_requests=self._conversation.open_positions(),
        )
        await self._sessions.writer.commit(intake)
        self._durable = durable
        self._live.gap_bytes = gap_bytes
        self._live.events += len(taken.messages)
        self._live.is_over = ended_at_ns is not None
        return True

    def _judge_end(self, taken: Taken) -> tuple[int | None, str]:
        """When the session ended, and who closed first: by BYE, else by an earlier BYE, else the relay was killed."""
        if taken.bye is not None:
            closed_first = parse_fields(taken.bye.body).get("closed_first", b"")
            return taken.bye.at_ns, closed_first.decode("ascii", "replace")[:16]
        if taken.lost_at_ns is not None and self._known.ended_at_ns is not None:
            return self._known.ended_at_ns, self._known.closed_first
        return taken.lost_at_ns, CLOSED_BY_RELAY
