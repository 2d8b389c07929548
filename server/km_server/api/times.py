"""Times as callers write them and as they are answered. Pure."""

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation

TIME_MAX_NS = 2**63 - 1
TIME_MAX_CHARS = 40

NS_PER_S = 10**9
FRACTION = re.compile(r"(.*:[0-9]{2})\.([0-9]+)([^0-9.][^.]*)", re.ASCII)
"""Whole seconds, their fraction (of which Python's own parser takes six digits), the zone."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def parse_time(text: str) -> int:
    """RFC 3339, or seconds since 1970 with any fraction, in nanoseconds. Raises ValueError."""
    sentence = "must be RFC 3339 with a zone, like 2026-01-31T12:00:00Z, or Unix seconds"
    if len(text) > TIME_MAX_CHARS or not text.isascii():
        raise ValueError(sentence)
    try:
        seconds = Decimal(text)
    except InvalidOperation:
        at_ns = parse_rfc3339(text, sentence)
    else:
        if not seconds.is_finite() or not 0 <= seconds <= TIME_MAX_NS:
            raise ValueError("is out of range")
        at_ns = int(seconds * NS_PER_S)
    if not 0 <= at_ns <= TIME_MAX_NS:
        raise ValueError("is out of range")
    return at_ns


def parse_rfc3339(text: str, sentence: str) -> int:
    """Nanoseconds since 1970 (digits below them are dropped). Raises ValueError(*sentence*)."""
    parts = FRACTION.fullmatch(text.upper())  # RFC 3339 section 5.6: a small t and z are fine
    whole, digits, zone = parts.groups() if parts else (text.upper(), "", "")
    try:
        at = datetime.fromisoformat(whole + zone)
    except ValueError:
        raise ValueError(sentence) from None
    if at.tzinfo is None:
        raise ValueError(sentence)
    return (at - EPOCH) // timedelta(microseconds=1) * 1000 + int(digits[:9].ljust(9, "0"))


def render_time(at_ns: int) -> str:
    """RFC 3339 in UTC with nine digits of a second."""
    seconds, fraction_ns = divmod(at_ns, NS_PER_S)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{fraction_ns:09d}Z"


def render_maybe(at_ns: int | None) -> str | None:
    """RFC 3339 in UTC; None where there is no time."""
    return None if at_ns is None else render_time(at_ns)
