"""Conversations: whatever the order in which a session's bytes come, its messages and their pairs are the same."""

from collections.abc import Iterable, Mapping
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmd.mcp.conversation import Conversation
from kmd.mcp.line import Line
from kmd.mcp.message import Message, parse_line
from kmd.mcp.names import Kind, Stream
from tests.daemon.two_way import BOTH, Chunk, Play, Session, shuffle

NO_CAP = 1 << 40
Name = tuple[Stream, int, int]
SEEDS = st.integers(0, 2**32).map(Random)


def name(message: Message) -> Name:
    return message.stream, message.offset, message.index


def follow(conversation: Conversation, chunks: Iterable[Chunk]) -> list[Message]:
    """The messages of *chunks*; no step may call settled what was not handed out."""
    handed_out: list[Message] = []
    for chunk in chunks:
        handed_out += conversation.take_chunk(chunk.stream, chunk.offset, chunk.data, chunk.at_ns)
    return handed_out


def all_names(session: Session) -> set[Name]:
    """The oracle: a message for every line of both streams, and for every member of an array."""
    names = set()
    for stream, whole in session.streams.items():
        offset = 0
        for payload in whole.split(b"\n")[:-1]:
            names |= {name(message) for message in parse_line(stream, Line(offset, payload, len(payload), 0))}
            offset += len(payload) + 1
    return names


def pairs(messages: Iterable[Message]) -> dict[tuple[Stream, int], str | None]:
    return {(m.stream, m.offset): m.method for m in messages if m.kind in (Kind.RESPONSE, Kind.ERROR)}


def check_whole(session: Session, messages: list[Message]) -> None:
    names = [name(message) for message in messages]
    assert len(names) == len(set(names))
    assert set(names) == all_names(session)
    assert pairs(messages) == session.paired
    for message in messages:
        start = message.offset
        if message.index == 0:
            assert session.streams[message.stream][start : start + message.size_bytes] == message.payload


@settings(max_examples=400)
@given(SEEDS, st.integers(1, 120))
def test_pumps_that_overtake_each_other_change_no_message_and_no_pair(random: Random, steps: int) -> None:
    session = Play(random, ids_are_reused=True).run(steps)
    conversation = Conversation({}, NO_CAP)
    check_whole(session, [*follow(conversation, session.kept), *conversation.finish({})])


@settings(max_examples=400)
@given(SEEDS, st.integers(1, 100))
def test_any_interleaving_of_the_two_streams_gives_the_same_messages_and_pairs(random: Random, steps: int) -> None:
    session = Play(random, ids_are_reused=False).run(steps)
    conversation = Conversation({}, NO_CAP)
    messages = follow(conversation, shuffle(session.kept, random))
    check_whole(session, [*messages, *conversation.finish({})])


@settings(max_examples=100)
@given(SEEDS, st.integers(1, 100))
def test_nothing_is_settled_that_was_not_handed_out(random: Random, steps: int) -> None:
    session = Play(random, ids_are_reused=True).run(steps)
    conversation, handed_out = Conversation({}, NO_CAP), set[Name]()
    everything = all_names(session)
    for chunk in shuffle(session.kept, random):
        handed_out |= {name(message) for message in follow(conversation, [chunk])}
        for missing in everything - handed_out:
            assert conversation.settled(missing[0]) <= missing[1]
    handed_out |= {name(message) for message in conversation.finish({})}
    assert handed_out == everything
    for stream in BOTH:
        assert conversation.settled(stream) == len(session.streams[stream])


def resend(kept: list[Chunk], durable: Mapping[Stream, int]) -> list[Chunk]:
    """What a relay sends to a kmd that has *durable*: every chunk with something above it, in the old order."""
    return [chunk for chunk in kept if chunk.offset + len(chunk.data) > durable[chunk.stream]]


@settings(max_examples=600)
@given(SEEDS, st.integers(1, 100), st.lists(st.floats(0, 1), min_size=1, max_size=3))
def test_ending_anywhere_and_going_on_from_what_is_settled_stores_every_message_once_with_its_pair(
    random: Random, steps: int, ends: list[float]
) -> None:
    session = Play(random, ids_are_reused=True).run(steps)
    stored: dict[Name, Message] = {}
    durable, rest, opened = dict.fromkeys(Stream, 0), session.kept, set[Name]()
    for end in [*ends, None]:
        conversation = Conversation(durable, NO_CAP)
        conversation.restore(stored[place] for place in sorted(opened, key=list(stored).index))
        messages = follow(conversation, rest if end is None else rest[: int(end * len(rest))])
        if end is None:
            messages += conversation.finish({})
        for message in messages:
            stored.setdefault(name(message), message)
        durable = {stream: conversation.settled(stream) for stream in Stream}
        opened = {(stream, *position) for stream, found in conversation.open_positions().items() for position in found}
        rest = resend(session.kept, durable)
    assert rest == []
    check_whole(session, list(stored.values()))


@given(SEEDS, st.integers(1, 80))
def test_the_time_taken_is_that_between_the_two_messages(random: Random, steps: int) -> None:
    session = Play(random, ids_are_reused=True).run(steps)
    conversation = Conversation({}, NO_CAP)
    messages = [*follow(conversation, session.kept), *conversation.finish({})]
    asked = {message.method: message.at_ns for message in messages if message.kind is Kind.REQUEST}
    for message in messages:
        if message.kind in (Kind.RESPONSE, Kind.ERROR) and message.method:
            assert message.took_ns == message.at_ns - asked[message.method] > 0


def test_a_gap_at_the_end_is_counted_from_the_length_that_the_relay_knew() -> None:
    conversation = Conversation({}, NO_CAP)
    (message,) = conversation.take_chunk(Stream.TO_SERVER, 0, b'{"method":"a"}\nbegun', 0)
    assert conversation.finish({Stream.TO_SERVER: 100, Stream.TO_CLIENT: 30}) == []
    assert conversation.gap_bytes == 100 - 15 + 30
    assert message.size_bytes == 14
    assert (conversation.settled(Stream.TO_SERVER), conversation.settled(Stream.TO_CLIENT)) == (100, 30)


@pytest.mark.parametrize("length", [-5, 0, 10, 19, 10**30])
def test_a_length_that_cannot_be_changes_nothing(length: int) -> None:
    conversation = Conversation({}, NO_CAP)
    conversation.take_chunk(Stream.TO_SERVER, 0, b'{"method":"a"}\nlast', 0)
    (last,) = conversation.finish({Stream.TO_SERVER: length})
    assert (last.payload, conversation.gap_bytes) == (b"last", 0)


def test_answers_on_stderr_answer_nothing() -> None:
    conversation = Conversation({}, NO_CAP)
    conversation.take_chunk(Stream.TO_SERVER, 0, b'{"id":1,"method":"a"}\n', 0)
    (text,) = conversation.take_chunk(Stream.STDERR, 0, b'{"id":1,"result":{}}\n', 1)
    (answer,) = conversation.take_chunk(Stream.TO_CLIENT, 0, b'{"id":1,"result":{}}\n', 2)
    assert (text.kind, answer.method) == (Kind.NOT_JSON, "a")
