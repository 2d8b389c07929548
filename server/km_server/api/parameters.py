"""
Query parameters to questions. Pure. A parameter that is unknown, double or out of bounds is a 400.

Each route's parameters are the fields of one struct: it decodes them and describes them in /api/openapi.json.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType
from multidict import MultiMapping

from km_server.api.cursor import parse_cursor
from km_server.api.times import parse_time
from km_server.errors import ApiError
from km_server.store.rollup import MINUTE_NS
from km_server.store.values import (
    ActivityQuery,
    Dimension,
    Filter,
    Order,
    Position,
    SessionQuery,
    Span,
    StatsQuery,
)
from kmd.mcp.names import Kind, Outcome, Stream

P = TypeVar("P", bound=msgspec.Struct)
V = TypeVar("V")

LIMIT_DEFAULT = 50
LIMIT_MAX = 1_000
BUCKETS_MAX = 5_000
"""Points of one time series."""

NUMBER_MAX_CHARS = 19
NO_NUL = r"^[^\x00]*$"
UNIT_MINUTES = {"m": 1, "h": 60, "d": 24 * 60}
BUCKET_MAX_MINUTES = 366 * 24 * 60

Limit = Annotated[int, Meta(ge=1, le=LIMIT_MAX, description="Items in a page at most.")]
Cursor = Annotated[str, Meta(max_length=80, description="`next_cursor` of the page before.")]
Time = Annotated[
    str,
    Meta(
        max_length=40,
        description="RFC 3339 with a zone, or Unix seconds with any fraction.",
        examples=["2026-01-31T12:00:00Z"],
    ),
]
Name = Annotated[str, Meta(max_length=1024, pattern=NO_NUL, description="Exactly this.")]
Target = Annotated[str, Meta(max_length=8192, pattern=NO_NUL, description="Exactly this.")]
Risk = Annotated[int, Meta(ge=0, le=100, description="Events with a risk of at least this.")]
Text = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=256,
        pattern=NO_NUL,
        description="Found in method, target, server or payload; ASCII letters in either case.",
    ),
]
Include = Annotated[
    str, Meta(pattern="^payload$", description="`payload` adds `payload`, or `payload_base64` where it is not UTF-8.")
]
Groups = Annotated[
    str,
    Meta(
        pattern="^((server|method|target)(,(server|method|target)){0,2})?$",
        description="What groups are made of, with commas; empty: totals alone.",
    ),
]
BucketWidth = Annotated[
    str,
    Meta(pattern="^[1-9][0-9]{0,5}[mhd]$", description="Also a time series with points this wide: 5m, 1h, 1d."),
]


class Spanned(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"from_": "from"}):
    """A span of time: `from` is included, `to` is not."""

    from_: Time | UnsetType = UNSET
    to: Time | UnsetType = UNSET


class Filters(Spanned, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"from_": "from"}):
    """Which events; what is not given does not narrow."""

    session: Name | UnsetType = UNSET
    server: Name | UnsetType = UNSET
    method: Name | UnsetType = UNSET
    target: Target | UnsetType = UNSET
    stream: Stream | UnsetType = UNSET
    kind: Kind | UnsetType = UNSET
    outcome: Outcome | UnsetType = UNSET
    risk_at_least: Risk | UnsetType = UNSET
    text: Text | UnsetType = UNSET


class ActivityParameters(Filters, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"from_": "from"}):
    """Of GET /api/v1/activity."""

    limit: Limit = LIMIT_DEFAULT
    cursor: Cursor | UnsetType = UNSET
    include: Include | UnsetType = UNSET
    order: Order = Order.NEWEST_FIRST


class TimelineParameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of GET /api/v1/sessions/{session}."""

    limit: Limit = LIMIT_DEFAULT
    cursor: Cursor | UnsetType = UNSET
    include: Include | UnsetType = UNSET


class SessionsParameters(Spanned, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"from_": "from"}):
    """Of GET /api/v1/sessions; the span is one that a session has events in."""

    limit: Limit = LIMIT_DEFAULT
    cursor: Cursor | UnsetType = UNSET
    server: Name | UnsetType = UNSET


class StatsParameters(Spanned, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"from_": "from"}):
    """Of GET /api/v1/stats."""

    group_by: Groups = "server,method,target"
    server: Name | UnsetType = UNSET
    method: Name | UnsetType = UNSET
    target: Target | UnsetType = UNSET
    bucket: BucketWidth | UnsetType = UNSET


class NoParameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of a route that has none."""


@dataclass(frozen=True, slots=True)
class Range:
    """Two times in nanoseconds; None is open."""

    from_ns: int | None
    to_ns: int | None


def parse_parameters(parameters: MultiMapping[str], shape: type[P]) -> P:
    """The parameters as a value of their struct. Raises ApiError 400."""
    known = {field.encode_name: field for field in msgspec.structs.fields(shape)}
    values: dict[str, str | int] = {}
    for name in parameters:
        if name not in known:
            hint = f"known: {', '.join(known)}" if known else "this takes none"
            raise ApiError(400, "bad_parameter", "there is no such parameter", hint=hint)
        if len(parameters.getall(name)) > 1:
            raise bad_parameter(name, "is given twice")
        text = parameters[name]
        if not is_unicode(text):
            raise bad_parameter(name, "is no usable text")
        number = text.isascii() and text.isdecimal() and len(text) <= NUMBER_MAX_CHARS
        values[name] = int(text) if number and known[name].encode_name in WHOLE_NUMBERS else text
    try:
        return msgspec.convert(values, shape)
    except msgspec.ValidationError as exc:
        raise explain(exc, shape) from None


WHOLE_NUMBERS = frozenset({"limit", "risk_at_least"})


def explain(error: msgspec.ValidationError, shape: type[msgspec.Struct]) -> ApiError:
    """What is wrong with a parameter; its value is not repeated."""
    sentence, _, place = str(error).rpartition(" - at `$.")
    name = place.rstrip("`")
    choices = CHOICES.get(name)
    if choices is not None:
        return bad_parameter(name, f"must be one of {', '.join(choices)}")
    if name in WHOLE_NUMBERS:
        return bad_parameter(name, f"must be a whole number: {'1 to 1000' if name == 'limit' else '0 to 100'}")
    return bad_parameter(name, f"cannot be this: {sentence[0].lower()}{sentence[1:]}")


CHOICES: Mapping[str, tuple[str, ...]] = {
    "stream": tuple(Stream),
    "kind": tuple(Kind),
    "outcome": tuple(Outcome),
    "order": tuple(Order),
}


def bad_parameter(name: str, problem: str) -> ApiError:
    """The answer to a parameter that cannot be used; it does not repeat the value."""
    return ApiError(400, "bad_parameter", f"'{name}' {problem}", hint="see /api/openapi.json")


def is_unicode(text: str) -> bool:
    """Whether the text is without the lone surrogates that stand for undecodable bytes of a URL."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def given(value: V | UnsetType) -> V | None:
    """A parameter's value, None when it was not given."""
    return None if isinstance(value, UnsetType) else value


def parse_range(spanned: Spanned) -> Range:
    """The times of a span. Raises ApiError 400: one is none, or the end is before the start."""
    from_ns, to_ns = time_ns("from", given(spanned.from_)), time_ns("to", given(spanned.to))
    if from_ns is not None and to_ns is not None and from_ns > to_ns:
        raise bad_parameter("to", "is before 'from'")
    return Range(from_ns, to_ns)


def time_ns(name: str, text: str | None) -> int | None:
    """A time parameter in nanoseconds. Raises ApiError 400."""
    try:
        return None if text is None else parse_time(text)
    except ValueError as exc:
        raise bad_parameter(name, str(exc)) from None


def parse_filter(filters: Filters) -> Filter:
    """Which events are meant. Raises ApiError 400."""
    span = parse_range(filters)
    return Filter(
        from_ns=span.from_ns,
        to_ns=span.to_ns,
        session=given(filters.session),
        server=given(filters.server),
        method=given(filters.method),
        target=given(filters.target),
        stream=given(filters.stream),
        kind=given(filters.kind),
        outcome=given(filters.outcome),
        risk_at_least=given(filters.risk_at_least),
        text=given(filters.text),
    )


def parse_activity(parameters: MultiMapping[str]) -> ActivityQuery:
    """The question that `GET /api/v1/activity` asks. Raises ApiError 400."""
    asked = parse_parameters(parameters, ActivityParameters)
    return ActivityQuery(
        limit=asked.limit,
        after=position("cursor", given(asked.cursor)),
        payloads=given(asked.include) is not None,
        where=parse_filter(asked),
        order=asked.order,
    )


def parse_timeline(parameters: MultiMapping[str], session: str) -> ActivityQuery:
    """The question that `GET /api/v1/sessions/{session}` asks about its events. Raises ApiError 400."""
    asked = parse_parameters(parameters, TimelineParameters)
    return ActivityQuery(
        limit=asked.limit,
        after=position("cursor", given(asked.cursor)),
        payloads=given(asked.include) is not None,
        where=Filter(session=session),
        order=Order.OLDEST_FIRST,
    )


def parse_sessions(parameters: MultiMapping[str]) -> SessionQuery:
    """The question that `GET /api/v1/sessions` asks. Raises ApiError 400."""
    asked = parse_parameters(parameters, SessionsParameters)
    span = parse_range(asked)
    after = position("cursor", given(asked.cursor))
    return SessionQuery(asked.limit, after, given(asked.server), span.from_ns, span.to_ns)


def position(name: str, text: str | None) -> Position | None:
    """The place that a cursor names. Raises ApiError 400."""
    try:
        return None if text is None else parse_cursor(text)
    except ValueError as exc:
        raise bad_parameter(name, str(exc)) from None


def parse_stats(parameters: MultiMapping[str], now_ns: int) -> StatsQuery:
    """The question that `GET /api/v1/stats` asks, its span widened to whole minutes. Raises ApiError 400."""
    asked = parse_parameters(parameters, StatsParameters)
    span = parse_range(asked)
    bucket_minutes = parse_bucket(given(asked.bucket), span, now_ns)
    return StatsQuery(
        span=Span(
            None if span.from_ns is None else span.from_ns // MINUTE_NS,
            None if span.to_ns is None else -(-span.to_ns // MINUTE_NS),
        ),
        group_by=tuple(Dimension(name) for name in dict.fromkeys(asked.group_by.split(",")) if name),
        server=given(asked.server),
        method=given(asked.method),
        target=given(asked.target),
        bucket_minutes=bucket_minutes,
    )


def parse_bucket(text: str | None, span: Range, now_ns: int) -> int | None:
    """The width of a point in minutes. Raises ApiError 400: there would be too many points."""
    if text is None:
        return None
    minutes = int(text[:-1]) * UNIT_MINUTES[text[-1]]
    if minutes > BUCKET_MAX_MINUTES:
        raise bad_parameter("bucket", "must be at most 366d")
    if span.from_ns is None:
        raise bad_parameter("bucket", "needs 'from': a time series has a beginning")
    end_ns = now_ns if span.to_ns is None else span.to_ns
    points = (end_ns - span.from_ns) // (minutes * MINUTE_NS)
    if points > BUCKETS_MAX:
        least = -(-(end_ns - span.from_ns) // (BUCKETS_MAX * MINUTE_NS))
        raise bad_parameter("bucket", f"gives over {BUCKETS_MAX} points; take {least}m or more")
    return minutes
