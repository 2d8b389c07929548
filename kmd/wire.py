"""
The contract with km-server: what one POST carries and what comes back.

An *event* is a message with what was worked out about it; its identity is `(session, stream, offset, index)`,
so sending it again is always safe. A *batch* carries events and a description of each session they belong
to. The *receipt* names the batch and gives one *verdict* per event, in the order of the batch.
JSON; unknown fields are ignored on both sides, so either may be newer. Times are Unix nanoseconds.
"""

import base64
from enum import StrEnum

import msgspec

from kmd.mcp.names import Kind, Outcome, Stream

SCHEMA = 1
BATCH_MAX_EVENTS = 1000
"""Most events that a server takes in one batch; kmd sends fewer (see kmd.sync.plan)."""

OFFSET_MAX = 2**63 - 1
"""Positions, sizes and times fit a signed 64-bit integer: both stores keep them as such."""


class Session(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, gc=False):
    """
    One run of one wrapped server. `name` is what `km --name` said; `command` the program's own name.

    closed_first: once it has ended, which side closed first, `client` or `server`; `relay` when nobody saw that because
    the relay was killed (`ended_at_ns` is then when it was last heard of); empty when that is not known.
    """

    session: str
    name: str
    command: str = ""
    started_at_ns: int = 0
    ended_at_ns: int | None = None
    closed_first: str = ""
    host: str = ""


class Event(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, gc=False):
    """
    One message as observed.

    size_bytes: the message's true length without its line terminator. rpc_id: the id's raw JSON text, so
    `1` and `"1"` differ. took_ns, outcome, error_code: on answers only, measured from the request.
    payload: the exact bytes, as text where they are UTF-8, else in payload_base64; neither when the
    payload was not kept. truncated: the payload is a prefix; sha256 then names the whole (hex).
    """

    session: str
    stream: Stream
    offset: int
    index: int = 0
    at_ns: int
    kind: Kind
    method: str | None = None
    target: str | None = None
    rpc_id: str | None = None
    size_bytes: int
    took_ns: int | None = None
    outcome: Outcome | None = None
    error_code: int | None = None
    truncated: bool = False
    sha256: str | None = None
    payload: str | None = None
    payload_base64: str | None = None


class Batch(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """
    The body of `POST /api/v1/events/batch`; every event's session is described in `sessions`.

    lost_events: how many events the sender has had to give up since it was installed before they were delivered
    everywhere, because of its bounds or a damaged file. They never come.
    """

    schema: int = SCHEMA
    batch_id: str
    sent_by: str = ""
    lost_events: int = 0
    sessions: tuple[Session, ...] = ()
    events: tuple[Event, ...] = ()


class Single(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The body of `POST /api/v1/events`: a batch of one, answered by the same receipt."""

    schema: int = SCHEMA
    batch_id: str = ""
    session: Session
    event: Event


class Status(StrEnum):
    """What the server did with an event."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    REJECTED = "rejected"


class Verdict(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """The answer for one event; `reason` is set when it was rejected."""

    status: Status
    reason: str = ""


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a batch: `verdicts[i]` belongs to `events[i]`. Sent only after the commit."""

    schema: int = SCHEMA
    batch_id: str
    verdicts: tuple[Verdict, ...]


def payload_fields(payload: bytes | None, text_max_bytes: int = OFFSET_MAX) -> tuple[str | None, str | None]:
    """
    Split payload bytes into the pair (payload, payload_base64) that an Event carries.

    text_max_bytes: longer ones are base64 in any case, for a sender that must bound its body: JSON may need six
    characters for one byte of text, base64 never more than 4/3.
    """
    if payload is None:
        return None, None
    if len(payload) > text_max_bytes:
        return None, base64.b64encode(payload).decode("ascii")
    try:
        return payload.decode("utf-8"), None
    except UnicodeDecodeError:
        return None, base64.b64encode(payload).decode("ascii")


def payload_bytes(event: Event) -> bytes | None:
    """The exact bytes of an event's payload, None when it carries none. Raises ValueError: bad base64."""
    if event.payload is not None:
        return event.payload.encode("utf-8")
    if event.payload_base64 is not None:
        return base64.b64decode(event.payload_base64, validate=True)
    return None
