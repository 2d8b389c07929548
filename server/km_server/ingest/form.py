"""
The forms that a body may have: an envelope round sessions and events, each field within the stores' bounds.

A form is a type that the decoder checks, many times faster than Python could. A *body* is what a sender should
write, an *envelope* the same with sessions and events still as JSON text (so that a bad one costs nobody else
anything), a *plain* batch one in which nothing is unknown (decoded in one go). Shapes are kmd.wire's.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from kmd.wire import OFFSET_MAX, SCHEMA, Event, Session

Count = Annotated[int, Meta(ge=0, le=OFFSET_MAX)]
ErrorCode = Annotated[int, Meta(ge=-OFFSET_MAX, le=OFFSET_MAX)]
SessionName = Annotated[str, Meta(min_length=1, max_length=128)]
ServerName = Annotated[str, Meta(min_length=1, max_length=256)]
Detail = Annotated[str, Meta(max_length=256)]
Method = Annotated[str, Meta(max_length=1024)]
Target = Annotated[str, Meta(max_length=8192)]
"""A resource's URI may be long."""
RpcId = Annotated[str, Meta(max_length=4096)]
Sha256 = Annotated[str, Meta(min_length=64, max_length=64)]
BatchId = Annotated[str, Meta(max_length=256)]
SenderName = Annotated[str, Meta(max_length=256)]
RISK_MAX = 100
RiskScore = Annotated[int, Meta(ge=0, le=RISK_MAX)]


class BoundedSession(Session, frozen=True, kw_only=True):
    """A session whose fields fit the stores."""

    session: SessionName
    name: ServerName
    command: Detail = ""
    started_at_ns: Count = 0
    ended_at_ns: Count | None = None
    host: Detail = ""
    closed_first: Detail = ""


class BoundedEvent(Event, frozen=True, kw_only=True):
    """An event whose fields fit the stores. The decoder checks it, many times faster than Python could."""

    session: SessionName
    offset: Count
    index: Count = 0
    at_ns: Count
    method: Method | None = None
    target: Target | None = None
    rpc_id: RpcId | None = None
    size_bytes: Count
    took_ns: Count | None = None
    error_code: ErrorCode | None = None
    sha256: Sha256 | None = None
    risk: RiskScore | None = None


class StrictEvent(BoundedEvent, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A BoundedEvent without fields that this version does not know, as most are: they need no second look."""


class BatchBody(msgspec.Struct, frozen=True, kw_only=True):
    """
    The body of a batch; every event's session is described in `sessions`, or known. See kmd.wire.Batch.

    Fields that this version does not know are kept and handed back as `extra` of the event.
    """

    schema: int = SCHEMA
    batch_id: BatchId
    sent_by: SenderName = ""
    lost_events: Count = 0
    sessions: tuple[BoundedSession, ...] = ()
    events: tuple[BoundedEvent, ...] = ()


class PlainSession(BoundedSession, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A session without a field that nobody knows."""


class PlainBatch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A BatchBody in which nothing is unknown and nothing out of bounds: what kmd of this version sends."""

    schema: int = SCHEMA
    batch_id: BatchId
    sent_by: SenderName = ""
    lost_events: Count = 0
    sessions: tuple[PlainSession, ...] = ()
    events: tuple[StrictEvent, ...] = ()


class SingleBody(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a single event: a batch of one."""

    schema: int = SCHEMA
    batch_id: BatchId = ""
    sent_by: SenderName = ""
    lost_events: Count = 0
    session: BoundedSession
    event: BoundedEvent


class NameOnly(msgspec.Struct, frozen=True):
    """The one field that is read of a session's description that cannot be understood, to name it in a verdict."""

    session: str


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """A BatchBody whose sessions and events are still JSON text."""

    schema: int = SCHEMA
    batch_id: BatchId
    sent_by: SenderName = ""
    lost_events: Count = 0
    sessions: tuple[msgspec.Raw, ...] = ()
    events: tuple[msgspec.Raw, ...] = ()


class SingleEnvelope(msgspec.Struct, frozen=True, kw_only=True):
    """A SingleBody whose parts are still JSON text."""

    schema: int = SCHEMA
    batch_id: BatchId = ""
    sent_by: SenderName = ""
    lost_events: Count = 0
    session: msgspec.Raw
    event: msgspec.Raw


class SchemaOnly(msgspec.Struct, frozen=True):
    """The one field that is read of a body that cannot be understood: it may be of a later schema."""

    schema: int = SCHEMA


KNOWN_FIELDS = frozenset(BoundedEvent.__struct_fields__)
SESSION_FIELDS = frozenset(BoundedSession.__struct_fields__)
ENVELOPE_FIELDS = frozenset({*BatchBody.__struct_fields__, *SingleBody.__struct_fields__})
