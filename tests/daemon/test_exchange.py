"""Exchanges: an answer finds its own request, at once or when the request comes, and nothing waits for ever."""

from itertools import count

import msgspec
import pytest

from kmd.mcp.exchange import OPEN_MAX, OPEN_REMEMBERED, PARKED_MAX, PARKED_MAX_BYTES, PARKED_MAX_NS, Exchanges
from kmd.mcp.message import Message
from kmd.mcp.names import Kind, Outcome, Stream

OFFSETS = count(0, 100)


def request(
    rpc_id: str | None = "1", at_ns: int = 0, *, stream: Stream = Stream.TO_SERVER, method: str = "tools/call"
) -> Message:
    return Message(
        stream=stream,
        offset=next(OFFSETS),
        at_ns=at_ns,
        kind=Kind.REQUEST,
        method=method,
        target="search",
        rpc_id=rpc_id,
        size_bytes=1,
        payload=b"",
    )


def answer(
    rpc_id: str | None = "1", at_ns: int = 10, *, stream: Stream = Stream.TO_CLIENT, is_error: bool = False
) -> Message:
    return Message(
        stream=stream,
        offset=next(OFFSETS),
        at_ns=at_ns,
        kind=Kind.ERROR if is_error else Kind.RESPONSE,
        rpc_id=rpc_id,
        size_bytes=1,
        outcome=Outcome.RPC_ERROR if is_error else Outcome.OK,
        payload=b"",
    )


def observe(exchanges: Exchanges, *messages: Message) -> list[Message]:
    return [ready for message in messages for ready in exchanges.observe(message)]


def test_an_answer_gets_its_requests_method_target_and_time() -> None:
    asked, answered = observe(Exchanges(), request(at_ns=5), answer(at_ns=12))
    assert asked.took_ns is None
    assert (answered.method, answered.target, answered.took_ns) == ("tools/call", "search", 7)


def test_a_clock_that_goes_back_gives_no_negative_time() -> None:
    exchanges = Exchanges()
    exchanges.observe(request(at_ns=50))
    (answered,) = exchanges.observe(answer(at_ns=10))
    assert answered.took_ns == 0


def test_both_sides_may_use_the_same_id_at_once() -> None:
    exchanges = Exchanges()
    observe(exchanges, request(method="initialize"), request(stream=Stream.TO_CLIENT, method="sampling/createMessage"))
    to_client, to_server = observe(exchanges, answer(), answer(stream=Stream.TO_SERVER))
    assert (to_client.method, to_server.method) == ("initialize", "sampling/createMessage")
    assert exchanges.open_count == 0


def test_one_and_the_text_one_are_two_ids() -> None:
    exchanges = Exchanges()
    observe(exchanges, request("1", method="a"), request('"1"', method="b"))
    assert [ready.method for ready in observe(exchanges, answer('"1"'), answer("1"))] == ["b", "a"]


def test_an_id_that_is_used_again_after_its_answer_names_the_new_request() -> None:
    exchanges = Exchanges()
    messages = [request(at_ns=0, method="a"), answer(at_ns=1), request(at_ns=2, method="b"), answer(at_ns=3)]
    assert [ready.method for ready in observe(exchanges, *messages)] == ["a", "a", "b", "b"]


def test_an_answer_that_comes_after_the_next_use_of_its_id_still_finds_its_own_request() -> None:
    exchanges = Exchanges()
    messages = [request(at_ns=0, method="a"), request(at_ns=20, method="b"), answer(at_ns=10), answer(at_ns=30)]
    assert [ready.method for ready in observe(exchanges, *messages)] == ["a", "b", "a", "b"]
    assert exchanges.open_count == 0


def test_an_id_used_twice_without_an_answer_means_the_newest() -> None:
    exchanges = Exchanges()
    messages = [request(at_ns=0, method="a"), request(at_ns=1, method="b"), answer(at_ns=2)]
    assert observe(exchanges, *messages)[-1].method == "b"


@pytest.mark.parametrize("rpc_id", ["null", None])
def test_an_answer_without_an_id_is_handed_out_at_once_and_unpaired(rpc_id: str | None) -> None:
    exchanges = Exchanges()
    exchanges.observe(request(rpc_id))
    (answered,) = exchanges.observe(answer(rpc_id, is_error=True))
    assert (answered.method, exchanges.has_parked, exchanges.open_count) == (None, False, 0)


def test_an_answer_that_overtook_its_request_waits_and_comes_after_it() -> None:
    exchanges = Exchanges()
    early = answer(at_ns=10)
    assert exchanges.observe(early) == []
    assert exchanges.parked_offset(Stream.TO_CLIENT) == early.offset
    assert exchanges.parked_offset(Stream.TO_SERVER) is None
    asked, answered = exchanges.observe(request(at_ns=5))
    assert (asked.kind, answered.offset, answered.took_ns) == (Kind.REQUEST, early.offset, 5)
    assert exchanges.parked_offset(Stream.TO_CLIENT) is None


def test_a_newer_message_on_the_other_stream_shows_that_no_request_will_come() -> None:
    exchanges = Exchanges()
    lone = answer("5", at_ns=10)
    exchanges.observe(lone)
    released, passed = exchanges.observe(request("6", at_ns=11))
    assert (released.offset, released.method, passed.rpc_id) == (lone.offset, None, "6")
    assert not exchanges.has_parked


def test_an_older_message_on_the_other_stream_shows_nothing_yet() -> None:
    exchanges = Exchanges()
    exchanges.observe(answer("5", at_ns=10))
    assert [ready.rpc_id for ready in exchanges.observe(request("6", at_ns=9))] == ["6"]
    assert exchanges.has_parked


def test_release_hands_out_every_answer_that_waits_in_order() -> None:
    exchanges = Exchanges()
    waiting = [answer(str(number)) for number in range(5)]
    assert observe(exchanges, *waiting) == []
    assert exchanges.release() == waiting
    assert exchanges.release() == []


def test_too_many_waiting_answers_push_out_the_oldest() -> None:
    exchanges = Exchanges()
    waiting = [answer(str(number)) for number in range(PARKED_MAX + 3)]
    assert observe(exchanges, *waiting) == waiting[:3]
    assert exchanges.parked_offset(Stream.TO_CLIENT) == waiting[3].offset


def test_waiting_answers_hold_a_bounded_number_of_bytes() -> None:
    exchanges = Exchanges()
    held = PARKED_MAX_BYTES // 4
    large = [msgspec.structs.replace(answer(str(n)), payload=b"x" * held) for n in range(6)]
    assert observe(exchanges, *large) == large[:2]
    huge = msgspec.structs.replace(answer("9"), payload=b"x" * (PARKED_MAX_BYTES * 2))
    assert observe(exchanges, huge) == large[2:]
    assert exchanges.release() == [huge]


def test_an_answer_does_not_wait_for_ever_while_its_own_stream_goes_on() -> None:
    exchanges = Exchanges()
    early = answer("1", at_ns=0)
    assert observe(exchanges, early, answer("2", at_ns=PARKED_MAX_NS)) == []
    assert observe(exchanges, answer("3", at_ns=PARKED_MAX_NS + 1)) == [early]


def test_too_many_open_requests_give_up_the_oldest() -> None:
    exchanges = Exchanges()
    for number in range(OPEN_MAX + 1):
        exchanges.observe(request(str(number), at_ns=number))
    assert exchanges.open_count == OPEN_MAX
    assert exchanges.observe(answer("0", at_ns=OPEN_MAX + 5)) == []
    (answered,) = exchanges.observe(answer("1", at_ns=OPEN_MAX + 5))
    assert answered.took_ns == OPEN_MAX + 4


def test_an_error_to_the_discovery_of_the_era_is_no_failure() -> None:
    exchanges = Exchanges()
    exchanges.observe(request(method="server/discover"))
    (answered,) = exchanges.observe(answer(is_error=True))
    assert answered.outcome is Outcome.PROBE


def test_an_error_to_anything_else_is_one() -> None:
    _, answered = observe(Exchanges(), request(), answer(is_error=True))
    assert answered.outcome is Outcome.RPC_ERROR


def test_a_request_known_from_before_a_restart_is_answered() -> None:
    exchanges = Exchanges()
    exchanges.restore(request("2"))
    assert exchanges.open_count == 1
    (answered,) = exchanges.observe(answer("2", at_ns=40))
    assert answered.took_ns == 40


def test_open_positions_are_those_of_the_newest_unanswered_requests_oldest_first() -> None:
    exchanges = Exchanges()
    for number in range(OPEN_REMEMBERED + 9):
        exchanges.observe(msgspec.structs.replace(request(f"{number}"), offset=number * 10))
    exchanges.observe(answer(f"{OPEN_REMEMBERED}"))
    positions = exchanges.open_positions(Stream.TO_SERVER)
    assert positions == [(n * 10, 0) for n in range(8, OPEN_REMEMBERED + 9) if n != OPEN_REMEMBERED]
    assert exchanges.open_positions(Stream.TO_CLIENT) == []


def test_an_unanswered_request_whose_id_is_used_again_keeps_its_position() -> None:
    exchanges = Exchanges()
    for offset in (5, 70):
        exchanges.observe(msgspec.structs.replace(request("1"), offset=offset, at_ns=offset))
    assert exchanges.open_positions(Stream.TO_SERVER) == [(5, 0), (70, 0)]
