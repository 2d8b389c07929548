"""
Whether an event can be stored, decided without a store. Pure.

A batch is decoded in two steps: first its envelope, which must be right as a whole, then each event by itself,
so that a bad one costs nobody else anything. A reason names the field and what is wrong, never its content.
"""

import binascii
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import msgspec

from km_server.errors import ApiError
from km_server.ingest.form import (
    ENVELOPE_FIELDS,
    KNOWN_FIELDS,
    SESSION_FIELDS,
    BoundedEvent,
    BoundedSession,
    Envelope,
    NameOnly,
    PlainBatch,
    SchemaOnly,
    SingleEnvelope,
    StrictEvent,
)
from km_server.ingest.unknown import collect_unknown
from km_server.store.values import Arrival
from kmd.wire import SCHEMA, Event, Session, payload_bytes

AHEAD_MAX_NS = 24 * 3600 * 10**9
"""An event's clock may be this far ahead of ours; beyond it, one machine would spoil everyone's time line."""

UNKNOWN_MEMBER = "Invalid enum value"
"""Of all the decoder's sentences this one goes on with the value itself."""
NUL_ESCAPE = b"\\u0000"
HINT = "see docs/http-api.md"
SESSION_TEXTS = ("session", "name", "command", "host", "closed_first")
EVENT_TEXTS = ("session", "method", "target", "rpc_id")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class BatchBounds:
    """How many events (and as many sessions) a batch may hold, and how long one event's JSON may be."""

    max_events: int
    max_event_bytes: int


@dataclass(frozen=True, slots=True)
class CheckedBatch:
    """
    What goes to the store, and for each event of the batch its arrival or the reason against it.

    sent_by, lost_events: who says it has had to give up so many events.
    """

    batch_id: str
    sent_by: str
    lost_events: int
    sessions: tuple[Session, ...]
    judged: tuple[Arrival | str, ...]

    @property
    def arrivals(self) -> list[Arrival]:
        """The events that the store is asked to take."""
        return [one for one in self.judged if isinstance(one, Arrival)]


DECODE_PLAIN = msgspec.json.Decoder(PlainBatch)
DECODE_BATCH = msgspec.json.Decoder(Envelope)
DECODE_SINGLE = msgspec.json.Decoder(SingleEnvelope)
DECODE_SCHEMA = msgspec.json.Decoder(SchemaOnly)
DECODE_EVENT = msgspec.json.Decoder(StrictEvent)
DECODE_NEWER_EVENT = msgspec.json.Decoder(BoundedEvent)
DECODE_SESSION = msgspec.json.Decoder(BoundedSession)
DECODE_NAME = msgspec.json.Decoder(NameOnly)


def parse_batch(body: bytes, now_ns: int, bounds: BatchBounds) -> CheckedBatch:
    """Check the body of a batch. Raises ApiError: 400 when it is none, 413 when it holds too many events."""
    if (plain := parse_plain(body, now_ns, bounds)) is not None:
        return plain
    try:
        envelope = DECODE_BATCH.decode(body)
    except (ValueError, RecursionError) as exc:
        raise not_understood(body, exc) from None
    refuse_deep(body)
    return check_envelope(envelope, body, now_ns, bounds)


def parse_plain(body: bytes, now_ns: int, bounds: BatchBounds) -> CheckedBatch | None:
    """
    Check a batch in one go, at half the cost; None: something about it has to be looked at piece by piece.

    What is returned is what the long way would have returned.
    """
    if len(body) > bounds.max_event_bytes:
        return None
    try:
        batch = DECODE_PLAIN.decode(body)
    except (ValueError, RecursionError):
        return None
    if batch.schema != SCHEMA or max(len(batch.events), len(batch.sessions)) > bounds.max_events or holds_nul(batch):
        return None
    judged = tuple(judge_sound(event, now_ns) for event in batch.events)
    return CheckedBatch(batch.batch_id, batch.sent_by, batch.lost_events, batch.sessions, judged)


def holds_nul(batch: PlainBatch) -> bool:
    """Whether any text but a payload holds a NUL. To look through the body for the escape takes three times as long."""
    texts = [batch.batch_id, batch.sent_by]
    for session in batch.sessions:
        texts += (session.session, session.name, session.command, session.host, session.closed_first)
    for event in batch.events:
        texts += (event.session, event.method or "", event.target or "", event.rpc_id or "")
    return "\0" in "".join(texts)


def parse_single(body: bytes, now_ns: int, bounds: BatchBounds) -> CheckedBatch:
    """Check the body of a single event: a batch of one. Raises ApiError 400."""
    try:
        single = DECODE_SINGLE.decode(body)
    except (ValueError, RecursionError) as exc:
        raise not_understood(body, exc) from None
    refuse_deep(body)
    envelope = Envelope(
        schema=single.schema,
        batch_id=single.batch_id,
        sent_by=single.sent_by,
        lost_events=single.lost_events,
        sessions=(single.session,),
        events=(single.event,),
    )
    return check_envelope(envelope, body, now_ns, bounds)


def not_understood(body: bytes, error: Exception) -> ApiError:
    """Say what is wrong with a body: its version first, for a newer one may look quite different."""
    try:
        require_schema(DECODE_SCHEMA.decode(body).schema)
    except ApiError as exc:
        return exc
    except (ValueError, RecursionError):
        pass
    if isinstance(error, msgspec.ValidationError):
        return ApiError(400, "bad_batch", f"the body is no batch: {describe(error)}", hint=HINT)
    return ApiError(400, "bad_json", f"the body is not JSON: {describe(error)}", hint=HINT)


def require_schema(schema: int) -> None:
    """Raises ApiError 400 for a version of the contract that this server does not know."""
    if schema != SCHEMA:
        raise ApiError(
            400,
            "unknown_schema",
            f"this server takes schema {SCHEMA} only",
            hint="upgrade km-server, or send with an older kmd",
        )


def refuse_deep(body: bytes) -> None:
    """Raises ApiError 400: something beside sessions and events is nested as no honest sender nests it."""
    unknown = collect_unknown(msgspec.Raw(body), ENVELOPE_FIELDS)
    if isinstance(unknown, str):
        raise ApiError(400, "bad_batch", f"the body is no batch: {unknown}", hint=HINT)


def check_envelope(envelope: Envelope, body: bytes, now_ns: int, bounds: BatchBounds) -> CheckedBatch:
    """Check what a batch holds; *body* is the JSON that it came from. Raises ApiError."""
    require_schema(envelope.schema)
    if max(len(envelope.events), len(envelope.sessions)) > bounds.max_events:
        raise ApiError(
            413,
            "too_many_events",
            f"a batch holds at most {bounds.max_events} events and as many sessions",
            hint="send fewer events at once",
        )
    if "\0" in envelope.sent_by or "\0" in envelope.batch_id:
        raise ApiError(400, "bad_batch", "the body is no batch: sent_by or batch_id holds a NUL", hint=HINT)
    sessions, refused = check_sessions(envelope.sessions)
    judged = tuple(judge_event(raw, refused, now_ns, bounds) for raw in envelope.events)
    checked = CheckedBatch(envelope.batch_id, envelope.sent_by, envelope.lost_events, sessions, judged)
    return refuse_nuls(checked) if NUL_ESCAPE in body else checked


def check_sessions(raws: Sequence[msgspec.Raw]) -> tuple[tuple[Session, ...], dict[str, str]]:
    """The sessions that can be stored, and the names of the others with what is wrong with them."""
    sound: list[Session] = []
    refused: dict[str, str] = {}
    for raw in raws:
        session = decode_bounded(DECODE_SESSION, raw)
        unknown = collect_unknown(raw, SESSION_FIELDS)
        session = unknown if isinstance(unknown, str) else session
        if isinstance(session, Session) and (field := field_with_nul(session, SESSION_TEXTS)):
            session = f"{field} holds a NUL"
        if isinstance(session, str):
            refused[session_name(raw)] = f"its session's description is not understood: {session}"
        else:
            sound.append(session)
    return tuple(sound), refused


def session_name(raw: msgspec.Raw) -> str:
    """Whose description it was; empty when nobody can tell."""
    try:
        return DECODE_NAME.decode(raw).session
    except (ValueError, RecursionError):
        return ""


def decode_bounded(decoder: "msgspec.json.Decoder[T]", raw: msgspec.Raw) -> T | str:
    """A value within the bounds of its type, or what is wrong with it."""
    try:
        return decoder.decode(raw)
    except (ValueError, RecursionError) as exc:
        return describe(exc)


def judge_event(raw: msgspec.Raw, refused_sessions: dict[str, str], now_ns: int, bounds: BatchBounds) -> Arrival | str:
    """The event, ready to be stored, or the reason against it."""
    if len(memoryview(raw)) > bounds.max_event_bytes:
        return f"it is over {bounds.max_event_bytes:,} bytes"
    extra: bytes | str | None = None
    event: BoundedEvent | str = decode_bounded(DECODE_EVENT, raw)
    if isinstance(event, str):  # it may have fields of a later version
        event = decode_bounded(DECODE_NEWER_EVENT, raw)
        extra = None if isinstance(event, str) else collect_unknown(raw, KNOWN_FIELDS)
    if isinstance(event, str):
        return f"not understood: {event}"
    if isinstance(extra, str):
        return extra
    return refused_sessions.get(event.session) or judge_sound(event, now_ns, extra)


def judge_sound(event: BoundedEvent, now_ns: int, extra: bytes | None = None) -> Arrival | str:
    """An event whose fields are within their bounds, ready to be stored, or the reason against it."""
    if reason := event_problem(event, now_ns):
        return reason
    try:
        payload = payload_bytes(event)
    except (binascii.Error, ValueError):
        return "payload_base64 is no base64"
    return payload_problem(event, payload) or Arrival(event, payload, event.risk, extra)


def event_problem(event: Event, now_ns: int) -> str:
    """What is wrong with an event's fields that its types do not say; empty when nothing is."""
    if event.at_ns > now_ns + AHEAD_MAX_NS:
        return "at_ns is over 24 h ahead of this server's clock"
    if event.sha256 is not None and event.sha256.strip("0123456789abcdef"):
        return "sha256 is not lower-case hexadecimal"
    return ""


def payload_problem(event: Event, payload: bytes | None) -> str:
    """Whether the payload and what is said of it agree; empty when they do."""
    if event.payload is not None and event.payload_base64 is not None:
        return "it has both payload and payload_base64"
    if payload is None:
        return ""
    if event.truncated and len(payload) > event.size_bytes:
        return "its truncated payload is longer than size_bytes"
    if not event.truncated and len(payload) != event.size_bytes:
        return "its payload is not size_bytes long"
    return ""


def refuse_nuls(checked: CheckedBatch) -> CheckedBatch:
    """The batch without what PostgreSQL could not keep: a NUL in any text but a payload."""
    judged = tuple(
        f"{field} holds a NUL"
        if isinstance(one, Arrival) and (field := field_with_nul(one.event, EVENT_TEXTS))
        else one
        for one in checked.judged
    )
    return replace(checked, judged=judged)


def field_with_nul(described: Event | Session, fields: tuple[str, ...]) -> str:
    """The first of *fields* with a NUL in it; empty when there is none."""
    for field in fields:
        if "\0" in (getattr(described, field) or ""):
            return field
    return ""


def describe(error: Exception) -> str:
    """The decoder's sentence, which names a place or a field and no content."""
    match error:
        case msgspec.MsgspecError():
            sentence, at, place = str(error).rpartition(" - at ")
            return UNKNOWN_MEMBER + at + place if sentence.startswith(UNKNOWN_MEMBER) else str(error)
        case RecursionError():
            return "it is nested too deeply"
        case UnicodeDecodeError():
            return "it is not UTF-8"
        case _:
            return "it cannot be decoded"
