"""What hypothesis draws in these tests: splits of a byte string, and streams with many newlines."""

from collections.abc import Sequence
from itertools import pairwise

from hypothesis import strategies as st


def cut_at(data: bytes, places: Sequence[int]) -> list[bytes]:
    """*data* cut at *places*, which may repeat and may lie beyond its end."""
    marks = [0, *sorted(min(place, len(data)) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(marks)]


def places(most: int = 400) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, most), max_size=12)


STREAMS = st.lists(
    st.one_of(st.just(b"\n"), st.just(b"\r\n"), st.binary(max_size=12), st.just(b"x" * 40)), min_size=4, max_size=30
).map(b"".join)
"""Bytes of one stream: many newlines, empty lines, carriage returns, some long lines."""
