"""What sync decides, without a clock, a socket or chance: how long to wait, what to send, what an answer means."""

import json
import zlib
from collections.abc import Iterable
from datetime import UTC, datetime
from email.utils import format_datetime
from math import log2
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmd.mcp.row import Row
from kmd.sync.answer import SERVER_ERROR_SPLIT_AFTER, Action, Answer, Reply, judge_answer, parse_retry_after
from kmd.sync.backoff import CAP_S, RETRY_AFTER_MAX_S, delay_s
from kmd.sync.plan import Suspect, narrow, plan_batch, render_batch, render_event, widen
from kmd.wire import Batch, Status, payload_bytes
from tests.daemon.rows import START, full_message, message, row

NOW_S = 1_800_000_000.0


# Waiting.


@given(st.integers(0, 10**6), st.floats(0, 1, exclude_max=True))
def test_the_wait_is_full_jitter_under_a_doubling_ceiling(attempt: int, chance: float) -> None:
    ceiling = min(CAP_S, 2.0 ** min(attempt, 30))
    assert delay_s(attempt, rand=lambda: chance) == pytest.approx(chance * ceiling)


def test_two_hundred_clients_that_come_back_at_once_spread_over_the_whole_ceiling() -> None:
    waits = [delay_s(6, rand=lambda n=n: zlib.crc32(b"%d" % n) / 2**32) for n in range(200)]  # type: ignore[misc]
    in_each_eighth = [sum(1 for wait in waits if at <= wait / 8 < at + 1) for at in range(8)]
    assert min(in_each_eighth) > 10


@pytest.mark.parametrize(
    ("asked_s", "wait_s"), [(0, 0.5), (0.2, 0.5), (7, 7), (899, 899), (10**9, RETRY_AFTER_MAX_S), (-5, 0.5)]
)
def test_what_the_server_asks_for_is_the_least_wait_up_to_a_bound(asked_s: float, wait_s: float) -> None:
    assert delay_s(0, rand=lambda: 0.5, retry_after_s=asked_s) == wait_s


# Splitting.


def deliver(poison: Iterable[int], rows: list[Row], batch_events: int) -> tuple[list[int], list[int], int]:
    """What the loop does against a server that refuses any batch with a poisoned event: settled, aside, requests."""
    bad, settled, aside, requests = set(poison), list[int](), list[int](), 0
    cursor, suspect = 0, None
    while waiting := [row for row in rows if row.seq > cursor]:
        batch = plan_batch(waiting[:batch_events], suspect)
        assert batch
        assert [row.seq for row in batch] == [row.seq for row in waiting[: len(batch)]]
        requests += 1
        if bad.isdisjoint(row.seq for row in batch):
            settled += [row.seq for row in batch]
        else:
            suspect = narrow(batch)
            if suspect is not None:
                continue
            aside += [batch[0].seq]
        cursor = batch[-1].seq
        suspect = widen(suspect, cursor)
    return settled, aside, requests


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64, 500, 1000])
def test_wherever_one_poisoned_event_stands_it_alone_is_put_aside_within_few_requests(count: int) -> None:
    rows = [row(seq) for seq in range(1, count + 1)]
    for poison in range(1, count + 1) if count <= 64 else [1, 2, 3, 250, 333, count // 2, count - 1, count]:
        settled, aside, requests = deliver([poison], rows, count)
        assert aside == [poison]
        assert settled == [seq for seq in range(1, count + 1) if seq != poison]
        assert requests <= 2 * log2(count) + 2


@given(st.sets(st.integers(1, 300), max_size=12), st.integers(1, 300), st.integers(1, 120))
def test_of_several_poisoned_events_each_alone_is_put_aside(bad: set[int], count: int, batch_events: int) -> None:
    bad = {seq for seq in bad if seq <= count}
    settled, aside, requests = deliver(bad, [row(seq) for seq in range(1, count + 1)], batch_events)
    assert aside == sorted(bad)
    assert settled == [seq for seq in range(1, count + 1) if seq not in bad]
    assert requests <= -(-count // batch_events) + len(bad) * (2 * log2(max(2, batch_events)) + 2)


@given(st.sets(st.integers(1, 400), min_size=1), st.integers(1, 500), st.integers(1, 500))
def test_a_plan_is_never_empty_and_never_skips_an_event(seqs: set[int], until_seq: int, max_events: int) -> None:
    rows = [row(seq) for seq in sorted(seqs)]
    batch = plan_batch(rows, Suspect(until_seq, max_events))
    assert batch
    assert list(batch) == rows[: len(batch)]


@pytest.mark.parametrize(
    ("suspect", "settled_seq", "rest"),
    [
        (None, 5, None),
        (Suspect(10, 5), 5, Suspect(10, 2)),
        (Suspect(10, 5), 9, Suspect(10, 1)),
        (Suspect(10, 5), 10, None),
        (Suspect(10, 5), 11, None),
    ],
)
def test_what_was_taken_is_no_longer_suspected(suspect: Suspect | None, settled_seq: int, rest: Suspect | None) -> None:
    assert widen(suspect, settled_seq) == rest


# The batch.


def test_a_batch_carries_each_event_and_each_session_once() -> None:
    other = msgspec.structs.replace(START, session="01890a5d-ac96-774b-bcce-b302099a8058", name="git")
    rows = [row(1, b"a"), row(2, b"\xff\xfe"), row(3, b"c", other), row(4, b"")]
    batch = msgspec.json.decode(render_batch(rows, "b1", "me/1", "host"), type=Batch)
    assert (batch.batch_id, batch.sent_by) == ("b1", "me/1")
    assert [(s.session, s.name, s.host) for s in batch.sessions] == [
        (START.session, "files", "host"),
        (other.session, "git", "host"),
    ]
    assert [payload_bytes(event) for event in batch.events] == [b"a", b"\xff\xfe", b"c", b""]
    assert [event.offset for event in batch.events] == [100, 200, 300, 400]


@given(st.binary(max_size=200))
def test_a_payload_reaches_the_server_as_the_bytes_that_crossed(payload: bytes) -> None:
    batch = msgspec.json.decode(render_batch([row(1, payload)], "b", "", ""), type=Batch)
    assert payload_bytes(batch.events[0]) == payload


def test_an_event_carries_every_field_of_its_message() -> None:
    stored = full_message(7)
    event = render_event(Row(seq=1, session=START, ended_at_ns=None, message=stored))
    for name in stored.__struct_fields__:
        if name != "payload":
            assert getattr(event, name) == getattr(stored, name)
    assert event.truncated
    kept_nothing = Row(seq=1, session=START, ended_at_ns=None, message=message(0, None))
    assert payload_bytes(render_event(kept_nothing)) is None


# Answers.


def reply(status: int, body: bytes = b"", retry_after: str = "") -> Reply:
    return Reply(status, retry_after, body)


def receipt(events: int = 2, batch_id: str = "b1", **more: Any) -> bytes:  # noqa: ANN401
    verdicts = [{"status": "accepted"}] * events
    return json.dumps({"schema": 1, "batch_id": batch_id, "verdicts": verdicts, **more}).encode()


def judge(answer: Reply, failures: int = 0) -> Answer:
    return judge_answer(answer, "b1", 2, failures, NOW_S)


EXPECTED = {
    **dict.fromkeys((401, 403, 404, 405, 501), Action.PAUSE),
    **dict.fromkeys((400, 413, 422), Action.SPLIT),
    **dict.fromkeys((408, 409, 425, 429), Action.RETRY),
    **dict.fromkeys((301, 302, 303, 307, 308), Action.PAUSE),
    **dict.fromkeys((500, 502, 503, 504, 507, 520, 599), Action.RETRY),
    **dict.fromkeys((200, 201, 202, 204, 206, 299), Action.RETRY),
    415: Action.RECODE,
}


@pytest.mark.parametrize(("status", "action"), EXPECTED.items())
def test_a_status_without_a_receipt_means(status: int, action: Action) -> None:
    assert judge(reply(status)).action is action


@pytest.mark.parametrize("status", range(100, 600))
def test_every_status_has_a_meaning_and_only_a_receipt_settles(status: int) -> None:
    for failures in range(SERVER_ERROR_SPLIT_AFTER + 1):
        answer = judge(reply(status, b"<html>", "5"), failures)
        assert answer.action is not Action.SETTLE
        assert answer.error
        assert not answer.verdicts
    with_receipt = judge(reply(status, receipt()))
    is_success = 200 <= status < 300 or status in (409, 422)
    assert (with_receipt.action is Action.SETTLE) == is_success
    assert (len(with_receipt.verdicts) == 2) == is_success


def test_only_the_fifth_500_in_a_row_for_the_same_batch_splits_it() -> None:
    actions = [judge(reply(500), failures).action for failures in range(6)]
    assert actions == [Action.RETRY] * 4 + [Action.SPLIT] * 2
    assert judge(reply(503), 50).action is Action.RETRY


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<!DOCTYPE html><title>Log in</title>",
        b"null",
        b"[]",
        b"{}",
        b'{"ok":true}',
        receipt()[:-1],
        receipt()[:30],
        receipt(batch_id="b2"),
        receipt(batch_id=""),
        receipt(events=0),
        receipt(events=1),
        receipt(events=3),
        receipt(batch_id=None),  # type: ignore[arg-type]
        receipt(verdicts=None),
        receipt(verdicts=[{"status": "accepted"}, {}]),
        receipt(verdicts=[{"status": "accepted"}, {"status": "maybe"}]),
        receipt(verdicts=[{"status": "accepted"}, {"status": 1}]),
        receipt(verdicts=[{"status": "accepted"}, "accepted"]),
        receipt(verdicts={"0": {"status": "accepted"}}),
        receipt(verdicts=[{"status": "rejected", "reason": 7}] * 2),
        b'{"batch_id":"b1","verdicts":' + b"[" * 100_000,
        b"\xff\xfe" + receipt(),
        receipt().replace(b"b1", b"b\xff"),
        receipt() + receipt(),
    ],
)
@pytest.mark.parametrize("status", [200, 201, 409])
def test_a_malformed_receipt_settles_nothing_and_is_tried_again(status: int, body: bytes) -> None:
    answer = judge(reply(status, body))
    assert (answer.action, answer.verdicts) == (Action.RETRY, ())
    assert answer.error


@given(st.binary(max_size=200))
def test_no_body_whatever_raises_or_settles(body: bytes) -> None:
    for status in (200, 409):
        assert judge(reply(status, body)).action is Action.RETRY


def test_a_receipt_from_a_newer_server_counts() -> None:
    answer = judge(reply(200, receipt(schema=9, served_by="x")))
    assert [verdict.status for verdict in answer.verdicts] == [Status.ACCEPTED] * 2


def test_verdicts_keep_their_order_and_reasons() -> None:
    verdicts = [{"status": "duplicate"}, {"status": "rejected", "reason": "clock"}]
    answer = judge(reply(200, receipt(verdicts=verdicts)))
    assert [(v.status, v.reason) for v in answer.verdicts] == [(Status.DUPLICATE, ""), (Status.REJECTED, "clock")]


DATE = format_datetime(datetime.fromtimestamp(NOW_S + 90, UTC), usegmt=True)
PAST = format_datetime(datetime.fromtimestamp(NOW_S - 90, UTC), usegmt=True)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("7", 7),
        (" 120 ", 120),
        (DATE, 90),
        (PAST, 0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 0),
        ("", 0),
        ("-5", 0),
        ("1.5", 0),
        ("1e3", 0),
        ("soon", 0),
        ("inf", 0),
        ("nan", 0),
        ("0x10", 0),
        ("\u0667", 0),
        ("\u00b2", 0),
        ("Wed, 99 Foo 2026 99:99:99 GMT", 0),
        ("Wed, 01 Jan 0000 00:00:00 GMT", 0),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_nonsense_is_none(text: str, seconds: float) -> None:
    assert parse_retry_after(text, NOW_S) == seconds


@pytest.mark.parametrize("text", ["9" * 400, "999999999999", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_a_huge_retry_after_is_cut_by_the_wait(text: str) -> None:
    answer = judge(reply(503, retry_after=text))
    assert delay_s(0, rand=lambda: 0.0, retry_after_s=answer.retry_after_s) == RETRY_AFTER_MAX_S


@given(st.text(max_size=40))
def test_no_retry_after_raises_or_is_negative(text: str) -> None:
    assert parse_retry_after(text, NOW_S) >= 0


@pytest.mark.parametrize("status", [429, 503, 500, 502])
def test_retry_after_counts_on_every_answer_that_is_tried_again(status: int) -> None:
    assert judge(reply(status, retry_after="44")).retry_after_s == 44
