"""Lines: cut anywhere, resent, with holes: every byte is in a line, still open, or counted as a gap."""

import hashlib
import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmd.mcp.line import Line, LineAssembler
from tests.daemon.strategies import STREAMS, cut_at, places

NO_CAP = 1 << 40
START = 1000


def split(data: bytes) -> list[tuple[int, bytes]]:
    """The oracle: (offset, line) of each terminated line of a stream that begins at START."""
    found, offset = [], START
    for line in data.split(b"\n")[:-1]:
        found.append((offset, line))
        offset += len(line) + 1
    return found


def feed(assembler: LineAssembler, data: bytes, cuts: list[int]) -> list[Line]:
    """Everything in pieces; the stream's first byte stands at START."""
    lines, offset = list[Line](), START
    for chunk in cut_at(data, cuts):
        lines += assembler.feed(offset, chunk, offset)
        offset += len(chunk)
    return lines


def brief(lines: list[Line]) -> list[tuple[int, bytes]]:
    return [(line.offset, line.payload) for line in lines]


@given(STREAMS, places())
def test_any_split_gives_the_lines_of_the_whole_at_their_offsets(data: bytes, cuts: list[int]) -> None:
    assembler = LineAssembler(START, NO_CAP)
    lines = feed(assembler, data, cuts)
    assert brief(lines) == split(data)
    assert all((line.size_bytes, line.sha256) == (len(line.payload), None) for line in lines)
    assert assembler.next_offset == START + len(data)
    assert assembler.complete_offset == START + data.rfind(b"\n") + 1
    assert assembler.gap_bytes == 0


@given(STREAMS, places())
def test_a_line_is_dated_by_the_chunk_that_ends_it(data: bytes, cuts: list[int]) -> None:
    marks = [START, *(START + min(cut, len(data)) for cut in sorted(cuts)), START + len(data)]
    for line in feed(LineAssembler(START, NO_CAP), data, cuts):
        end = line.offset + line.size_bytes
        assert line.at_ns in [low for low, high in pairwise(marks) if low <= end < high]


@given(STREAMS, places())
def test_the_end_of_the_stream_hands_out_the_last_line_without_its_newline(data: bytes, cuts: list[int]) -> None:
    assembler = LineAssembler(START, NO_CAP)
    lines = feed(assembler, data, cuts) + list(assembler.finish())
    assert b"\n".join(line.payload for line in lines) == data.removesuffix(b"\n")
    assert assembler.complete_offset == START + len(data)
    assert list(assembler.finish()) == []


@given(STREAMS, st.lists(st.tuples(st.integers(0, 400), st.integers(0, 60)), max_size=20))
def test_a_resend_from_any_earlier_offset_changes_nothing(data: bytes, resends: list[tuple[int, int]]) -> None:
    assembler, lines, next_at = LineAssembler(START, NO_CAP), list[Line](), 0
    for back, length in [*resends, (0, len(data))]:
        start = max(0, next_at - back)
        lines += assembler.feed(START + start, data[start : start + length], 0)
        next_at = max(next_at, min(len(data), start + length))
        assert assembler.next_offset == START + next_at
    lines += assembler.feed(START + next_at, data[next_at:], 0)
    assert brief(lines) == split(data)
    assert assembler.gap_bytes == 0


HOLES = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 15), st.booleans()), min_size=1, max_size=12)
"""(bytes fed, bytes missing after them, whether a GAP record says so)"""


def lines_around(data: bytes, missing: set[int]) -> list[tuple[int, bytes]]:
    """The oracle for holes: a line is known when it has none, and neither has the newline before it."""
    return [
        (offset, line)
        for offset, line in split(data)
        if not missing & set(range(offset - 1 - START, offset + len(line) + 1 - START))
    ]


Step = tuple[int, bytes, int]
"""(offset, the bytes that come there, else how many a GAP record skips there)"""


def render_steps(data: bytes, holes: list[tuple[int, int, bool]]) -> list[Step]:
    """What a relay sends of *data* when it could not keep everything."""
    steps, at = list[Step](), 0
    for length, hole, is_told in [*holes, (len(data), 0, False)]:
        steps.append((START + at, data[at : at + length], 0))
        at = min(len(data), at + length)
        if is_told:
            steps.append((START + at, b"", min(hole, len(data) - at)))
        at = min(len(data), at + hole)
    return steps


def take(assembler: LineAssembler, steps: list[Step]) -> list[Line]:
    lines = list[Line]()
    for offset, chunk, missing in steps:
        if missing:
            assembler.skip(offset, missing)
        elif chunk:
            lines += assembler.feed(offset, chunk, 0)
    return lines


def find_missing(data: bytes, steps: list[Step]) -> set[int]:
    """Positions in *data* that never came."""
    return set(range(len(data))) - {offset - START + n for offset, chunk, _ in steps for n in range(len(chunk))}


@given(STREAMS, HOLES)
def test_lines_before_and_after_a_hole_are_whole_and_every_byte_is_accounted_for(
    data: bytes, holes: list[tuple[int, int, bool]]
) -> None:
    assembler, steps = LineAssembler(START, NO_CAP), render_steps(data, holes)
    lines = take(assembler, steps)
    assert brief(lines) == lines_around(data, find_missing(data, steps))
    in_lines = sum(line.size_bytes + 1 for line in lines)
    still_open = assembler.next_offset - assembler.complete_offset
    assert in_lines + assembler.gap_bytes + still_open == assembler.next_offset - START


@given(STREAMS, HOLES)
def test_at_the_end_every_byte_is_in_a_line_or_in_a_gap(data: bytes, holes: list[tuple[int, int, bool]]) -> None:
    assembler = LineAssembler(START, NO_CAP)
    lines = take(assembler, render_steps(data, holes))
    last = list(assembler.finish())
    in_lines = sum(line.size_bytes + 1 for line in lines) + sum(line.size_bytes for line in last)
    assert in_lines + assembler.gap_bytes == assembler.next_offset - START
    assert assembler.complete_offset == assembler.next_offset


@settings(max_examples=300)
@given(STREAMS, HOLES, st.integers(0, 12))
def test_going_on_from_the_complete_offset_gives_the_same_lines_and_gaps(
    data: bytes, holes: list[tuple[int, int, bool]], stop: int
) -> None:
    """kmd ends and another goes on from what was acknowledged: the rest of a broken line is still no line."""
    steps = render_steps(data, holes)
    whole, first = LineAssembler(START, NO_CAP), LineAssembler(START, NO_CAP)
    expected = take(whole, steps)
    found = take(first, steps[:stop])
    second = LineAssembler(first.complete_offset, NO_CAP)
    found += take(second, [step for step in steps if step[0] + len(step[1]) + step[2] > first.complete_offset])
    assert brief(found) == brief(expected)
    assert first.gap_bytes + second.gap_bytes == whole.gap_bytes
    assert second.next_offset in (whole.next_offset, first.complete_offset)


def test_a_whole_object_behind_a_gap_is_a_message_and_not_part_of_the_gap() -> None:
    assembler = LineAssembler(0, NO_CAP)
    assert not list(assembler.feed(0, b"begun", 0))
    assert brief(list(assembler.feed(20, b'{"id":1}\n', 0))) == [(20, b'{"id":1}')]
    assert (assembler.gap_bytes, assembler.complete_offset) == (20, 29)


def test_the_rest_of_a_broken_line_is_no_line_after_a_restart_either() -> None:
    first = LineAssembler(0, NO_CAP)
    assert not list(first.feed(0, b'{"id":1,"met', 0))
    assert not list(first.feed(20, b'"tools/c', 0))
    second = LineAssembler(first.complete_offset, NO_CAP)
    assert brief(list(second.feed(20, b'"tools/call"}\n{}\n', 0))) == [(34, b"{}")]
    assert first.gap_bytes + second.gap_bytes == 34


@given(STREAMS, places(), st.integers(0, 30))
def test_a_line_over_the_bound_is_its_prefix_with_true_size_and_digest(
    data: bytes, cuts: list[int], max_bytes: int
) -> None:
    lines = feed(LineAssembler(START, max_bytes), data, cuts)
    for line, (offset, whole) in zip(lines, split(data), strict=True):
        assert (line.offset, line.payload, line.size_bytes) == (offset, whole[:max_bytes], len(whole))
        assert line.sha256 == (hashlib.sha256(whole).hexdigest() if len(whole) > max_bytes else None)


def test_a_line_of_two_hundred_mebibytes_takes_no_more_memory_than_the_bound() -> None:
    assembler, chunk, digest = LineAssembler(0, 1 << 20), bytes(range(11, 256)) * 260, hashlib.sha256()
    tracemalloc.start()
    try:
        for number in range(3300):
            assert not list(assembler.feed(number * len(chunk), chunk, 0))
        (line,) = assembler.feed(3300 * len(chunk), b"\n", 0)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    for _ in range(3300):
        digest.update(chunk)
    assert (line.size_bytes, len(line.payload)) == (3300 * len(chunk), 1 << 20)
    assert line.sha256 == digest.hexdigest()


def test_a_broken_line_of_any_length_takes_no_memory_and_is_all_gap() -> None:
    assembler, chunk = LineAssembler(0, 1 << 20), b"x" * 65536
    list(assembler.feed(0, b"begun", 0))
    tracemalloc.start()
    try:
        for number in range(500):
            assert not list(assembler.feed(10 + number * len(chunk), chunk, 0))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    end = 10 + 500 * len(chunk)
    assert brief(list(assembler.feed(end, b"\nwhole\n", 0))) == [(end + 1, b"whole")]
    assert assembler.gap_bytes == end + 1


@pytest.mark.parametrize(("offset", "length"), [(START - 50, 20), (START, 0), (START - 5, 5)])
def test_a_gap_that_lies_before_what_is_known_changes_nothing(offset: int, length: int) -> None:
    assembler = LineAssembler(START, NO_CAP)
    list(assembler.feed(START, b"beg", 0))
    assembler.skip(offset, length)
    assert brief(list(assembler.feed(START + 3, b"un\n", 0))) == [(START, b"begun")]
    assert assembler.gap_bytes == 0
