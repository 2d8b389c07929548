"""
Text from elsewhere made fit for a terminal, and quantities made fit for people. Pure.

Server names, methods and targets come from programs that we only watch: an escape sequence in them must
never reach the terminal. `harmless` is the one door; everything untrusted goes through it.
"""

import unicodedata
from datetime import UTC, datetime, tzinfo

UNSAFE_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Controls, format characters (bidirectional overrides, zero width), surrogates, line separators."""

ARROWS = {"to_server": "→", "to_client": "←", "stderr": "!"}
KIB = 1024
MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86400


def harmless(text: str) -> str:
    r"""*text* with everything that a terminal could act on shown as an escape, such as `\x1b`."""
    if text.isprintable():
        return text
    return "".join(escape(char) if unicodedata.category(char) in UNSAFE_CATEGORIES else char for char in text)


def escape(char: str) -> str:
    """One character as Python would write it in a string, without the quotes."""
    point = ord(char)
    if point <= 0xFF:
        return f"\\x{point:02x}"
    return f"\\u{point:04x}" if point <= 0xFFFF else f"\\U{point:08x}"


def format_size(size_bytes: int) -> str:
    """`512 B`, `1.5 KiB`, `20 MiB`: at most three digits before the unit's step."""
    if size_bytes < KIB:
        return f"{size_bytes} B"
    size, unit = size_bytes / KIB, "KiB"
    for larger in ("MiB", "GiB", "TiB"):
        if size < KIB - 0.5:
            break
        size, unit = size / KIB, larger
    return f"{size:.1f} {unit}" if size < 9.95 else f"{size:.0f} {unit}"


def format_duration(took_ns: int) -> str:
    """`0.42 ms`, `17 ms`, `3.1 s`, `2 m 05 s`: how long an exchange took."""
    ms = took_ns / 1e6
    if ms < 9.995:
        return f"{ms:.2f} ms"
    if ms < 999.5:
        return f"{ms:.0f} ms"
    return f"{ms / 1000:.1f} s" if ms < 59_950 else format_age(ms / 1000)


def format_age(seconds: float) -> str:
    """`12 s`, `5 m 03 s`, `2 h 10 m`, `3 d 4 h`: the two largest units."""
    whole = max(0, int(seconds))
    if whole < MINUTE_S:
        return f"{whole} s"
    if whole < HOUR_S:
        return f"{whole // MINUTE_S} m {whole % MINUTE_S:02d} s"
    if whole < DAY_S:
        return f"{whole // HOUR_S} h {whole % HOUR_S // MINUTE_S:02d} m"
    return f"{whole // DAY_S} d {whole % DAY_S // HOUR_S} h"


def format_count(count: int, noun: str) -> str:
    """`1 event`, `2,500 events`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def render_time(at_ns: int, zone: tzinfo | None) -> str:
    """`2026-01-31T09:15:02.123+0000`; a time that no calendar knows is the epoch's."""
    try:
        at = datetime.fromtimestamp(at_ns // 10**9, UTC).astimezone(zone)
    except (ValueError, OverflowError, OSError):
        at = datetime.fromtimestamp(0, UTC)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{at_ns // 10**6 % 1000:03d}{at:%z}"
