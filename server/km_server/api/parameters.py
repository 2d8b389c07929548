"""Query parameters to questions. Pure. A parameter that is unknown, double or out of bounds is a 400."""

import base64
import binascii
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import TypeVar

from multidict import MultiMapping

from km_server.errors import ApiError
from km_server.store.rollup import MINUTE_NS
from km_server.store.values import ActivityQuery, Filter, Position, Span
from kmd.mcp.names import Kind, Outcome

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)

TIME_MAX_NS = 2**63 - 1
LIMIT_DEFAULT = 50
LIMIT_MAX = 1_000
TEXT_MAX_CHARS = 1_024
"""Nothing that can be filtered by is longer."""
NUMBER_MAX_CHARS = 40

ACTIVITY = ("limit", "cursor", "include", "from", "to", "session", "server", "method", "kind", "outcome")
STATS = ("from", "to")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def parse_activity(parameters: MultiMapping[str]) -> ActivityQuery:
    """The question that `GET /api/v1/activity` asks. Raises ApiError 400."""
    given = check_names(parameters, ACTIVITY)
    return ActivityQuery(
        limit=parse_with(given, "limit", parse_limit) or LIMIT_DEFAULT,
        after=parse_with(given, "cursor", parse_cursor),
        payloads=parse_with(given, "include", parse_include) or False,
        where=Filter(
            from_ns=parse_with(given, "from", parse_time),
            to_ns=parse_with(given, "to", parse_time),
            session=parse_with(given, "session", parse_text),
            server=parse_with(given, "server", parse_text),
            method=parse_with(given, "method", parse_text),
            kind=parse_with(given, "kind", lambda text: parse_member(Kind, text)),
            outcome=parse_with(given, "outcome", lambda text: parse_member(Outcome, text)),
        ),
    )


def parse_span(parameters: MultiMapping[str]) -> Span:
    """The span that `GET /api/v1/stats` asks for, widened to whole minutes. Raises ApiError 400."""
    given = check_names(parameters, STATS)
    from_ns = parse_with(given, "from", parse_time)
    to_ns = parse_with(given, "to", parse_time)
    if from_ns is not None and to_ns is not None and from_ns > to_ns:
        raise bad_parameter("to", "is before 'from'")
    return Span(
        None if from_ns is None else from_ns // MINUTE_NS,
        None if to_ns is None else -(-to_ns // MINUTE_NS),
    )


def check_names(parameters: MultiMapping[str], known: tuple[str, ...]) -> Mapping[str, str]:
    """The parameters, each at most once. A misspelt one must not silently mean its default."""
    for name in parameters:
        if name not in known:
            raise ApiError(400, "bad_parameter", "there is no such parameter", hint=f"known: {', '.join(known)}")
        if len(parameters.getall(name)) > 1:
            raise bad_parameter(name, "is given twice")
    return {name: parameters[name] for name in parameters}


def parse_with(given: Mapping[str, str], name: str, parse: Callable[[str], T]) -> T | None:
    """The value of a parameter, None when it is not given. Raises ApiError 400."""
    if name not in given:
        return None
    try:
        return parse(given[name])
    except ValueError as exc:
        raise bad_parameter(name, str(exc)) from None


def bad_parameter(name: str, problem: str) -> ApiError:
    """The answer to a parameter that cannot be used; it does not repeat the value."""
    return ApiError(400, "bad_parameter", f"'{name}' {problem}", hint="see docs/http-api.md")


def parse_limit(text: str) -> int:
    """How many. Raises ValueError."""
    if not (text.isascii() and text.isdecimal() and len(text) <= NUMBER_MAX_CHARS):
        raise ValueError(f"must be 1 to {LIMIT_MAX}")
    if not 1 <= int(text) <= LIMIT_MAX:
        raise ValueError(f"must be 1 to {LIMIT_MAX}")
    return int(text)


def parse_include(text: str) -> bool:
    """Whether payloads are wanted. Raises ValueError."""
    if text != "payload":
        raise ValueError("can only be 'payload'")
    return True


def parse_text(text: str) -> str:
    """A text to compare with. Raises ValueError."""
    if len(text) > TEXT_MAX_CHARS or "\0" in text or not is_unicode(text):
        raise ValueError("is no usable text")
    return text


def is_unicode(text: str) -> bool:
    """Whether the text is without the lone surrogates that stand for undecodable bytes of a URL."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def parse_member(choices: type[E], text: str) -> str:
    """One of a closed set. Raises ValueError."""
    if text not in [choice.value for choice in choices]:
        raise ValueError(f"must be one of {', '.join(choices)}")
    return text


def parse_time(text: str) -> int:
    """RFC 3339, or seconds since 1970 with any fraction, in nanoseconds. Raises ValueError."""
    sentence = "must be RFC 3339 with a zone, like 2026-01-31T12:00:00Z, or Unix seconds"
    if len(text) > NUMBER_MAX_CHARS or not text.isascii():
        raise ValueError(sentence)
    try:
        seconds = Decimal(text)
    except InvalidOperation:
        at_ns = parse_rfc3339(text, sentence)
    else:
        if not seconds.is_finite() or not 0 <= seconds <= TIME_MAX_NS:
            raise ValueError("is out of range")
        at_ns = int(seconds * 10**9)
    if not 0 <= at_ns <= TIME_MAX_NS:
        raise ValueError("is out of range")
    return at_ns


def parse_rfc3339(text: str, sentence: str) -> int:
    """Nanoseconds since 1970 (the text's digits below a microsecond are dropped). Raises ValueError(*sentence*)."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(sentence) from None
    if at.tzinfo is None:
        raise ValueError(sentence)
    return (at - EPOCH) // timedelta(microseconds=1) * 1000


def render_cursor(position: Position) -> str:
    """A place in the feed as opaque text."""
    return base64.urlsafe_b64encode(f"{position.at_ns}.{position.id}".encode()).decode().rstrip("=")


def parse_cursor(text: str) -> Position:
    """The place that render_cursor made a text of. Raises ValueError for any other text."""
    sentence = "is no cursor of this server"
    if len(text) > 2 * NUMBER_MAX_CHARS or not text.isascii():
        raise ValueError(sentence)
    try:
        plain = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True).decode("ascii")
        at_ns, row_id = (int(part) for part in plain.split("."))
    except (binascii.Error, ValueError):
        raise ValueError(sentence) from None
    position = Position(at_ns, row_id)
    if not (0 <= at_ns <= TIME_MAX_NS and 0 <= row_id <= TIME_MAX_NS) or render_cursor(position) != text:
        raise ValueError(sentence)
    return position
