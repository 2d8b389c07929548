"""Places in a list as opaque text, and back. Pure."""

import base64
import binascii

from km_server.api.times import TIME_MAX_NS
from km_server.store.values import Position

CURSOR_MAX_CHARS = 80


def render_cursor(position: Position) -> str:
    """A place in a list as opaque text."""
    return base64.urlsafe_b64encode(f"{position.at_ns}.{position.id}".encode()).decode().rstrip("=")


def parse_cursor(text: str) -> Position:
    """The place that render_cursor made a text of. Raises ValueError for any other text."""
    sentence = "is no cursor of this server"
    if len(text) > CURSOR_MAX_CHARS or not text.isascii():
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
