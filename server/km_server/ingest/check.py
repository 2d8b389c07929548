"""
Whether an event can be stored, decided without a store. Pure.

A batch is decoded in two steps: first its envelope, which must be right as a whole, then each event by itself,
so that a bad one costs nobody else anything. A reason names the field and what is wrong, never its content.
"""

import binascii
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from km_server.errors import ApiError
from km_server.store.protocol import Arrival
from kmd.wire import BATCH_MAX_EVENTS, OFFSET_MAX, SCHEMA, Event, Session, payload_bytes

AHEAD_MAX_NS = 24 * 3600 * 10**9
"""An event's clock may be this far ahead of ours; beyond it, one machine would spoil everyone's time line."""

SESSIONS_MAX = BATCH_MAX_EVENTS
SESSION_MAX_CHARS = 128
NAME_MAX_CHARS = 256
METHOD_MAX_CHARS = 1024
TARGET_MAX_CHARS = 8192
"""A resource's URI may be long."""
RPC_ID_MAX_CHARS = 4096
BATCH_ID_MAX_CHARS = 256
SHA256_CHARS = 64


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """A batch whose sessions and events are still JSON text."""

    schema: int = SCHEMA
    batch_id: str
    sessions: tuple[msgspec.Raw, ...] = ()
    events: tuple[msgspec.Raw, ...] = ()


class SingleEnvelope(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a single event, its parts still JSON text."""

    schema: int = SCHEMA
    batch_id: str = ""
    session: msgspec.Raw
    event: msgspec.Raw


class SchemaOnly(msgspec.Struct, frozen=True):
    """What is asked of a body that is not understood."""

    schema: int = SCHEMA


@dataclass(frozen=True, slots=True)
class CheckedBatch:
    """What goes to the store, and for each event of the batch its arrival or the reason against it."""

    batch_id: str
    sessions: tuple[Session, ...]
    judged: tuple[Arrival | str, ...]

    @property
    def arrivals(self) -> list[Arrival]:
        """The events that the store is asked to take."""
        return [one for one in self.judged if isinstance(one, Arrival)]


DECODE_BATCH = msgspec.json.Decoder(Envelope)
DECODE_SINGLE = msgspec.json.Decoder(SingleEnvelope)
DECODE_SCHEMA = msgspec.json.Decoder(SchemaOnly)
DECODE_EVENT = msgspec.json.Decoder(Event)
DECODE_SESSION = msgspec.json.Decoder(Session)


def parse_batch(body: bytes, now_ns: int) -> CheckedBatch:
    """Check the body of a batch. Raises ApiError: 400 when it is none, 413 when it holds too many events."""
    try:
        envelope = DECODE_BATCH.decode(body)
    except (ValueError, RecursionError) as exc:
        raise not_understood(body, exc) from None
    return check_envelope(envelope, now_ns)


def parse_single(body: bytes, now_ns: int) -> CheckedBatch:
    """Check the body of a single event: a batch of one. Raises ApiError 400."""
    try:
        single = DECODE_SINGLE.decode(body)
    except (ValueError, RecursionError) as exc:
        raise not_understood(body, exc) from None
    envelope = Envelope(
        schema=single.schema, batch_id=single.batch_id, sessions=(single.session,), events=(single.event,)
    )
    return check_envelope(envelope, now_ns)


def not_understood(body: bytes, error: Exception) -> ApiError:
    """Say what is wrong with a body: its version first, for a newer one may look quite different."""
    try:
        require_schema(DECODE_SCHEMA.decode(body).schema)
    except ApiError as exc:
        return exc
    except (ValueError, RecursionError):
        pass
    if isinstance(error, msgspec.ValidationError):
        return ApiError(400, "bad_batch", f"the body is no batch: {describe(error)}", hint="see docs/http-api.md")
    return ApiError(400, "bad_json", f"the body is not JSON: {describe(error)}", hint="see docs/http-api.md")


def require_schema(schema: int) -> None:
    """Raises ApiError 400 for a version of the contract that this server does not know."""
    if schema != SCHEMA:
        raise ApiError(
            400,
            "unknown_schema",
            f"this server takes schema {SCHEMA} only",
            hint="upgrade km-server, or send with an older kmd",
        )


def check_envelope(envelope: Envelope, now_ns: int) -> CheckedBatch:
    """Check what a batch holds. Raises ApiError."""
    require_schema(envelope.schema)
    if not is_text(envelope.batch_id, BATCH_ID_MAX_CHARS):
        raise ApiError(400, "bad_batch", f"batch_id is over {BATCH_ID_MAX_CHARS} characters")
    if len(envelope.events) > BATCH_MAX_EVENTS or len(envelope.sessions) > SESSIONS_MAX:
        raise ApiError(
            413,
            "too_many_events",
            f"a batch holds at most {BATCH_MAX_EVENTS} events and as many sessions",
            hint="send fewer events at once",
        )
    sessions, refused = check_sessions(envelope.sessions)
    judged = tuple(judge_event(raw, refused, now_ns) for raw in envelope.events)
    return CheckedBatch(envelope.batch_id, sessions, judged)


def check_sessions(raws: Sequence[msgspec.Raw]) -> tuple[tuple[Session, ...], dict[str, str]]:
    """The sessions that can be stored, and the names of the others with what is wrong with them."""
    sound: list[Session] = []
    refused: dict[str, str] = {}
    for raw in raws:
        try:
            session = DECODE_SESSION.decode(raw)
        except (ValueError, RecursionError):
            continue  # nobody can tell whose description it was: its events will say "not described"
        if problem := session_problem(session):
            refused[session.session] = f"its session's {problem}"
        else:
            sound.append(session)
    return tuple(sound), refused


def session_problem(session: Session) -> str:
    """What keeps a session from being stored; empty when nothing does."""
    if not session.session or not is_text(session.session, SESSION_MAX_CHARS):
        return f"session must have 1 to {SESSION_MAX_CHARS} characters"
    if not session.name:
        return "name is empty"
    for field in ("name", "command", "host"):
        if not is_text(getattr(session, field), NAME_MAX_CHARS):
            return f"{field} is over {NAME_MAX_CHARS} characters"
    if not is_count(session.started_at_ns):
        return f"started_at_ns is outside 0 to {OFFSET_MAX}"
    if session.ended_at_ns is not None and not is_count(session.ended_at_ns):
        return f"ended_at_ns is outside 0 to {OFFSET_MAX}"
    return ""


def judge_event(raw: msgspec.Raw, refused_sessions: dict[str, str], now_ns: int) -> Arrival | str:
    """The event, ready to be stored, or the reason against it."""
    try:
        event = DECODE_EVENT.decode(raw)
    except (ValueError, RecursionError) as exc:
        return f"not understood: {describe(exc)}"
    if reason := refused_sessions.get(event.session) or event_problem(event, now_ns):
        return reason
    try:
        payload = payload_bytes(event)
    except (binascii.Error, ValueError):
        return "payload_base64 is no base64"
    return payload_problem(event, payload) or Arrival(event, payload)


def event_problem(event: Event, now_ns: int) -> str:
    """What is wrong with an event's fields; empty when nothing is."""
    for field in ("offset", "index", "at_ns", "size_bytes"):
        if not is_count(getattr(event, field)):
            return f"{field} is outside 0 to {OFFSET_MAX}"
    if event.took_ns is not None and not is_count(event.took_ns):
        return f"took_ns is outside 0 to {OFFSET_MAX}"
    if event.error_code is not None and not -OFFSET_MAX <= event.error_code <= OFFSET_MAX:
        return f"error_code is outside ±{OFFSET_MAX}"
    if event.at_ns > now_ns + AHEAD_MAX_NS:
        return "at_ns is over 24 h ahead of this server's clock"
    for field, most in TEXT_FIELDS:
        if not is_text(getattr(event, field) or "", most):
            return f"{field} is over {most} characters"
    if event.sha256 is not None and not is_sha256(event.sha256):
        return "sha256 is not 64 lower-case hexadecimal digits"
    return ""


TEXT_FIELDS = (
    ("session", SESSION_MAX_CHARS),
    ("method", METHOD_MAX_CHARS),
    ("target", TARGET_MAX_CHARS),
    ("rpc_id", RPC_ID_MAX_CHARS),
)


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


def is_count(number: int) -> bool:
    """Whether both stores can keep the number, and it is no negative one."""
    return 0 <= number <= OFFSET_MAX


def is_text(text: str, most_chars: int) -> bool:
    """Whether both stores can keep the text: not too long, and no NUL, which PostgreSQL refuses."""
    return len(text) <= most_chars and "\0" not in text


def is_sha256(text: str) -> bool:
    """Whether the text is a digest as kmd writes it."""
    return len(text) == SHA256_CHARS and not text.strip("0123456789abcdef")


def describe(error: Exception) -> str:
    """The decoder's sentence, which names a place or a field and no content."""
    match error:
        case msgspec.MsgspecError():
            return str(error)
        case RecursionError():
            return "it is nested too deeply"
        case UnicodeDecodeError():
            return "it is not UTF-8"
        case _:
            return "it cannot be decoded"
