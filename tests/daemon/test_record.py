"""Records: any split gives the same ones, and nothing that was altered passes."""

import contextlib
import tracemalloc
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmd.record import (
    ACK,
    BODY_MAX_BYTES,
    BYE,
    DATA,
    GAP,
    HEADER_BYTES,
    HELLO,
    NO_STREAM,
    POSITION_MAX,
    RUN,
    WELCOME,
    Record,
    RecordError,
    RecordReader,
    parse_fields,
    parse_gap,
    parse_offsets,
    parse_run,
    render_fields,
    render_gap,
    render_head,
    render_light_head,
    render_offsets,
    render_run,
)
from tests.daemon.strategies import cut_at, places

Plain = tuple[int, int, int, int, bytes]

RECORDS = st.lists(
    st.tuples(
        st.sampled_from((HELLO, DATA, GAP, BYE, WELCOME, ACK, RUN)),
        st.sampled_from((0, 1, 2, NO_STREAM)),
        st.integers(0, POSITION_MAX),
        st.integers(0, 2**63 - 1),
        st.binary(max_size=60),
    ),
    max_size=8,
)


def render(record: Plain) -> bytes:
    return render_head(*record) + record[4]


def plain(record: Record) -> Plain:
    return record.type, record.stream, record.offset, record.at_ns, record.body


def read(chunks: list[bytes], *, salvage: bool = False) -> list[Plain]:
    reader = RecordReader(salvage=salvage)
    return [plain(record) for chunk in chunks for record in reader.feed(chunk)]


@given(RECORDS, places(900))
def test_any_split_of_a_connection_gives_the_records_that_were_sent(records: list[Plain], cuts: list[int]) -> None:
    assert read(cut_at(b"".join(map(render, records)), cuts)) == records


@given(RECORDS)
def test_one_byte_at_a_time_gives_the_records_that_were_sent(records: list[Plain]) -> None:
    sent = b"".join(map(render, records))
    assert read([sent[at : at + 1] for at in range(len(sent))]) == records


def test_a_record_is_handed_out_with_its_last_byte_and_not_before() -> None:
    sent = render((DATA, 0, 7, 9, b"body"))
    for end in range(len(sent)):
        assert read([sent[:end]]) == []
    assert read([sent]) == [(DATA, 0, 7, 9, b"body")]


def test_every_single_flipped_bit_of_a_record_is_refused() -> None:
    whole = render((DATA, 1, 1 << 33, 1 << 60, b'{"jsonrpc":"2.0","id":1}\n'))
    behind = bytes(BODY_MAX_BYTES + HEADER_BYTES)
    for bit in range(len(whole) * 8):
        torn = bytearray(whole)
        torn[bit // 8] ^= 1 << bit % 8
        reader = RecordReader()
        with pytest.raises(RecordError):
            next(chain(reader.feed(bytes(torn)), reader.feed(behind)))  # a longer length waits for that much


def test_a_flipped_bit_costs_a_spool_that_record_only() -> None:
    records: list[Plain] = [(DATA, 0, at, 5, b"x%d\n" % at) for at in range(5)]
    sent = [render(record) for record in records]
    for bit in range(len(sent[2]) * 8):
        torn = bytearray(sent[2])
        torn[bit // 8] ^= 1 << bit % 8
        reader = RecordReader(salvage=True)
        spool = b"".join([*sent[:2], bytes(torn), *sent[3:]])
        found = [plain(record) for record in [*reader.feed(spool), *reader.finish()]]
        assert found == [*records[:2], *records[3:]]
        assert reader.lost_bytes == len(torn)


@given(st.integers(BODY_MAX_BYTES + 1, 2**32 - 1))
def test_a_body_over_the_bound_is_refused_on_sight_of_its_header(length: int) -> None:
    head = bytearray(render_head(DATA, 0, 0, 0, b""))
    head[4:8] = length.to_bytes(4, "little")
    tracemalloc.start()
    try:
        with pytest.raises(RecordError):
            list(RecordReader().feed(bytes(head)))
        assert tracemalloc.get_traced_memory()[1] < 1 << 16
    finally:
        tracemalloc.stop()


def test_the_largest_body_passes_and_one_byte_more_does_not() -> None:
    largest: Plain = (DATA, 0, 0, 0, bytes(BODY_MAX_BYTES))
    assert read([render(largest)]) == [largest]
    with pytest.raises(RecordError):
        read([render((DATA, 0, 0, 0, bytes(BODY_MAX_BYTES + 1)))])


@pytest.mark.parametrize("offset", [POSITION_MAX + 1, 2**63, 2**64 - 1])
def test_a_position_that_no_stream_can_reach_is_refused(offset: int) -> None:
    with pytest.raises(RecordError):
        read([render((DATA, 0, offset, 0, b"x"))])
    with pytest.raises(RecordError):
        parse_gap(render_gap(offset))


@pytest.mark.parametrize("at_ns", [2**63, 2**64 - 1])
def test_a_time_that_no_database_can_hold_is_refused(at_ns: int) -> None:
    with pytest.raises(RecordError):
        read([render((DATA, 0, 0, at_ns, b"x"))])


@given(st.lists(st.one_of(st.binary(max_size=80), RECORDS.map(lambda many: b"".join(map(render, many)))), max_size=6))
def test_garbage_raises_record_error_or_nothing(chunks: list[bytes]) -> None:
    with contextlib.suppress(RecordError):
        read(chunks)
    reader = RecordReader(salvage=True)
    for chunk in chunks:
        list(reader.feed(chunk))
    list(reader.finish())


@pytest.mark.parametrize("damage", [b"\0", bytes(range(256))])
def test_salvage_passes_over_much_damage_quickly(damage: bytes) -> None:
    """After a power loss a spool may have holes of gigabytes; byte by byte this would not end in the test's time."""
    reader = RecordReader(salvage=True)
    piece = damage * ((1 << 20) // len(damage))
    assert sum(len(list(reader.feed(piece))) for _ in range(256)) == 0
    (found,) = [*reader.feed(render_head(DATA, 0, 7, 8, b"whole") + b"whole"), *reader.finish()]
    assert (found.offset, found.body) == (7, b"whole")
    assert reader.lost_bytes == 256 * len(piece)


@given(RECORDS, st.binary(min_size=1, max_size=40), st.integers(0, 8))
def test_salvage_finds_every_whole_record_around_garbage_and_counts_the_rest(
    records: list[Plain], garbage: bytes, place: int
) -> None:
    sent = [render(record) for record in records]
    sent.insert(min(place, len(sent)), garbage)
    reader = RecordReader(salvage=True)
    found = [plain(record) for record in [*reader.feed(b"".join(sent)), *reader.finish()]]
    assert found == records
    assert reader.lost_bytes == len(garbage)


@given(st.binary(max_size=60))
def test_the_bodies_of_any_bytes_raise_record_error_or_nothing(body: bytes) -> None:
    for parse in (parse_fields, parse_gap, parse_offsets, parse_run):
        with contextlib.suppress(RecordError):
            parse(body)


CHUNKS = st.lists(st.tuples(st.integers(0, 2), st.binary(max_size=20), st.integers(0, 2**63 - 1)), max_size=9)


@given(CHUNKS, st.tuples(*[st.integers(0, POSITION_MAX)] * 3))
def test_a_run_gives_each_chunk_its_place_and_time(
    chunks: list[tuple[int, bytes, int]], starts: tuple[int, int, int]
) -> None:
    streams, parts, times_ns = bytes(c[0] for c in chunks), [c[1] for c in chunks], [c[2] for c in chunks]
    body = b"".join([render_run(starts, streams, [len(part) for part in parts], times_ns), *parts])
    places = list(starts)
    for (stream, part, at_ns), found in zip(chunks, parse_run(body), strict=True):
        assert found == (stream, places[stream], part, at_ns)
        places[stream] += len(part)


@given(CHUNKS, st.data())
def test_a_run_that_does_not_add_up_is_refused(chunks: list[tuple[int, bytes, int]], data: st.DataObject) -> None:
    streams, parts, times_ns = bytes(c[0] for c in chunks), [c[1] for c in chunks], [c[2] for c in chunks]
    body = b"".join([render_run((0, 0, 0), streams, [len(part) for part in parts], times_ns), *parts])
    for wrong in (body[: data.draw(st.integers(0, len(body) - 1))], body + b"x"):
        with pytest.raises(RecordError):
            parse_run(wrong)
    if chunks:
        with pytest.raises(RecordError):
            parse_run(body[:28] + b"\x03" + body[29:])


def test_a_body_without_a_crc_of_its_own_passes_only_where_bodies_are_trusted() -> None:
    sent = render_light_head(DATA, 0, 0, 5, 4) + b"body" + render((DATA, 0, 4, 6, b"more"))
    trusting, doubting = RecordReader(salvage=True), RecordReader(salvage=True)
    doubting.trusts_bodies = False
    assert [plain(record) for record in trusting.feed(sent)] == [(DATA, 0, 0, 5, b"body"), (DATA, 0, 4, 6, b"more")]
    assert [plain(record) for record in doubting.feed(sent)] == [(DATA, 0, 4, 6, b"more")]
    assert doubting.lost_bytes == HEADER_BYTES + 4


NAMES = st.text("abcdefghijklmnopqrstuvwxyz_.", min_size=1, max_size=12)
VALUES = st.binary(max_size=30).filter(lambda value: b"\0" not in value)


@given(st.dictionaries(NAMES, VALUES, max_size=6))
def test_fields_come_back_as_they_went_whatever_bytes_they_hold(fields: dict[str, bytes]) -> None:
    assert parse_fields(render_fields(fields)) == fields


@given(st.tuples(*[st.integers(0, 2**64 - 1)] * 3))
def test_offsets_and_gaps_come_back_as_they_went(offsets: tuple[int, int, int]) -> None:
    ((type_, stream, _, _, body),) = read([render_offsets(ACK, offsets)])
    assert (type_, stream, parse_offsets(body)) == (ACK, NO_STREAM, offsets)
    length = offsets[0] % (POSITION_MAX + 1)
    assert parse_gap(render_gap(length)) == length
