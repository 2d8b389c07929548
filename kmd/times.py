"""Times as text. Pure."""

from datetime import UTC, datetime


def render_time(at_ns: int | None) -> str | None:
    """RFC 3339 in UTC."""
    if at_ns is None:
        return None
    return datetime.fromtimestamp(at_ns / 1e9, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
