"""Text that a terminal cannot act on, and quantities for people."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmctl.text import format_age, format_count, format_duration, format_size, harmless


@given(st.text(st.characters()))
def test_harmless_text_holds_nothing_that_a_terminal_acts_on(text: str) -> None:
    for char in harmless(text):
        assert unicodedata.category(char) not in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("tools/call", "tools/call"),
        ("größe 大小 🔧", "größe 大小 🔧"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("a\u202eb", "a\\u202eb"),
        ("a\nb\rc\td", "a\\x0ab\\x0dc\\x09d"),
        ("\ud800", "\\ud800"),
        ("\u2028", "\\u2028"),
        ("\U000e0001", "\\U000e0001"),
        ("\x7f", "\\x7f"),
    ],
)
def test_harmless(text: str, shown: str) -> None:
    assert harmless(text) == shown


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (10 * 1024, "10 KiB"),
        (1024 * 1024 - 1, "1.0 MiB"),
        (16 << 20, "16 MiB"),
        (3 << 30, "3.0 GiB"),
        (5 << 40, "5.0 TiB"),
        (5000 << 40, "5000 TiB"),
    ],
)
def test_sizes(size: int, shown: str) -> None:
    assert format_size(size) == shown


@pytest.mark.parametrize(
    ("took_ns", "shown"),
    [
        (0, "0.00 ms"),
        (420_000, "0.42 ms"),
        (9_999_000, "10 ms"),
        (17_400_000, "17 ms"),
        (999_600_000, "1.0 s"),
        (3_140_000_000, "3.1 s"),
        (59_960_000_000, "59 s"),
        (125_000_000_000, "2 m 05 s"),
    ],
)
def test_durations(took_ns: int, shown: str) -> None:
    assert format_duration(took_ns) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-5, "0 s"), (59.9, "59 s"), (303, "5 m 03 s"), (7_800, "2 h 10 m"), (86_400 * 3 + 4 * 3600, "3 d 4 h")],
)
def test_ages(seconds: float, shown: str) -> None:
    assert format_age(seconds) == shown


def test_counts() -> None:
    assert [format_count(n, "event") for n in (0, 1, 2500)] == ["0 events", "1 event", "2,500 events"]
