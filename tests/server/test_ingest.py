"""Events in: identity, verdicts, sessions, bytes."""

import base64
import json
import threading
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from km_server.ingest import check
from km_server.ingest.check import AHEAD_MAX_NS, BatchBounds
from km_server.store.values import Arrival

from kmd.mcp.names import Kind, Stream
from kmd.wire import BATCH_MAX_EVENTS, OFFSET_MAX, Event, Receipt, Single, payload_fields
from tests.server.clients import NOW_NS, Api, ask_file, make_batch, make_event, make_session
from tests.server.conftest import Served

HOUR_NS = 3600 * 10**9


def test_events_are_accepted_once(api: Api) -> None:
    batch = make_batch([make_event(number) for number in range(5)])
    assert api.send(batch) == ["accepted"] * 5
    assert api.send(batch) == ["duplicate"] * 5
    assert api.stats()["totals"]["events"] == 5


def test_every_part_of_the_identity_counts(api: Api) -> None:
    events = [
        make_event(1),
        make_event(1, stream=Stream.TO_CLIENT),
        make_event(1, stream=Stream.STDERR),
        make_event(1, index=1),
        make_event(1, offset=101),
        make_event(1, session="s2"),
    ]
    assert api.send(make_batch(events)) == ["accepted"] * 6
    assert api.send(make_batch(events)) == ["duplicate"] * 6


def test_of_twins_in_one_batch_the_first_is_stored(api: Api) -> None:
    twins = [make_event(1, rpc_id="first"), make_event(2), make_event(1, rpc_id="second")]
    assert api.send(make_batch(twins)) == ["accepted", "accepted", "duplicate"]
    assert [item["rpc_id"] for item in api.feed()] == ["2", "first"]


def test_old_and_new_mixed(api: Api) -> None:
    api.send(make_batch([make_event(number) for number in range(0, 300, 2)]))
    verdicts = api.send(make_batch([make_event(number) for number in range(300)]))
    assert verdicts == ["duplicate", "accepted"] * 150
    assert api.stats()["totals"]["calls"] == 300


def test_the_same_batch_many_times_at_once_is_stored_once(api: Api) -> None:
    batch = make_batch([make_event(number) for number in range(200)])
    answers: list[list[str]] = []
    threads = [threading.Thread(target=lambda: answers.append(api.send(batch))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    accepted = [sum(verdict == "accepted" for verdict in column) for column in zip(*answers, strict=True)]
    assert accepted == [1] * 200
    totals = api.stats()["totals"]
    assert (totals["events"], totals["calls"]) == (200, 200)
    assert len(api.feed(limit=1000)) == 200


@dataclass(frozen=True)
class Bad:
    changes: dict[str, Any]
    reason: str


BAD_EVENTS = [
    Bad({"offset": -1}, "offset"),
    Bad({"offset": 2**63}, "offset"),
    Bad({"offset": 10**400}, "offset"),
    Bad({"offset": 1.5}, "offset"),
    Bad({"offset": None}, "offset"),
    Bad({"index": -1}, "index"),
    Bad({"index": 2**63}, "index"),
    Bad({"at_ns": -1}, "at_ns"),
    Bad({"at_ns": NOW_NS + AHEAD_MAX_NS + HOUR_NS}, "24 h ahead"),
    Bad({"size_bytes": -1, "payload": None}, "size_bytes"),
    Bad({"size_bytes": 2**63, "payload": None}, "size_bytes"),
    Bad({"took_ns": -1}, "took_ns"),
    Bad({"took_ns": 2**64}, "took_ns"),
    Bad({"error_code": 2**63}, "error_code"),
    Bad({"error_code": -(2**63)}, "error_code"),
    Bad({"stream": "sideways"}, "stream"),
    Bad({"kind": "gossip"}, "kind"),
    Bad({"outcome": "fine"}, "outcome"),
    Bad({"session": ""}, "session"),
    Bad({"session": "x" * 129}, "session"),
    Bad({"session": "nobody"}, "not described"),
    Bad({"method": "x" * 1025}, "method"),
    Bad({"method": "a\0b"}, "method holds a NUL"),
    Bad({"method": 5}, "method"),
    Bad({"target": "x" * 8193}, "target"),
    Bad({"target": "\0"}, "target holds a NUL"),
    Bad({"rpc_id": "1" * 4097}, "rpc_id"),
    Bad({"sha256": "abc"}, "sha256"),
    Bad({"sha256": "g" * 64}, "hexadecimal"),
    Bad({"payload": "four"}, "size_bytes long"),
    Bad({"payload": None, "payload_base64": "AAAA"}, "size_bytes long"),
    Bad({"payload": None, "payload_base64": "!"}, "base64"),
    Bad({"payload": None, "payload_base64": "é"}, "base64"),
    Bad({"payload": "ab", "payload_base64": "YWI=", "size_bytes": 2}, "both"),
    Bad({"payload": "abc", "size_bytes": 2, "truncated": True}, "longer than size_bytes"),
    Bad({"payload": ["nested"]}, "payload"),
]


@pytest.mark.parametrize("bad", BAD_EVENTS, ids=lambda bad: json.dumps(bad.changes)[:40])
def test_a_bad_event_is_refused_alone(api: Api, bad: Bad) -> None:
    batch = msgspec.to_builtins(make_batch([make_event(1), make_event(2), make_event(3)]))
    batch["events"][1].update(bad.changes)
    answer = api.post(json.dumps(batch).encode())
    receipt = msgspec.json.decode(answer.content, type=Receipt)
    assert [verdict.status for verdict in receipt.verdicts] == ["accepted", "rejected", "accepted"]
    assert bad.reason in receipt.verdicts[1].reason
    assert "gossip" not in receipt.verdicts[1].reason
    assert len(api.feed()) == 2


def test_events_that_are_no_objects_are_refused_alone(api: Api) -> None:
    deep = "[" * 3000 + "]" * 3000
    good = msgspec.json.encode(make_event(1)).decode()
    events = f'[{good}, 5, "text", null, [], {{}}, {{"session": {deep}}}]'
    session = msgspec.json.encode(make_session()).decode()
    body = f'{{"batch_id": "b", "sessions": [{session}], "events": {events}}}'
    answer = api.post(body.encode())
    assert answer.status_code in (200, 400)
    if answer.status_code == 200:
        receipt = msgspec.json.decode(answer.content, type=Receipt)
        assert [verdict.status for verdict in receipt.verdicts] == ["accepted"] + ["rejected"] * 6


def test_the_largest_numbers_are_kept(api: Api) -> None:
    largest = make_event(
        1, offset=OFFSET_MAX, index=OFFSET_MAX, size_bytes=OFFSET_MAX, payload=None, took_ns=OFFSET_MAX,
        error_code=-OFFSET_MAX, at_ns=0,
    )  # fmt: skip
    assert api.send(make_batch([largest])) == ["accepted"]
    (item,) = api.feed()
    assert (item["offset"], item["index"], item["size_bytes"]) == (OFFSET_MAX,) * 3
    assert (item["took_ns"], item["error_code"], item["at_ns"]) == (OFFSET_MAX, -OFFSET_MAX, 0)
    assert item["at"] == "1970-01-01T00:00:00.000000000Z"


def test_sums_beyond_64_bits_stop_or_add_up_and_never_fail(api: Api) -> None:
    one_minute = [make_event(number, size_bytes=OFFSET_MAX, payload=None, at_ns=1) for number in range(3)]
    other_day = make_event(9, size_bytes=OFFSET_MAX, payload=None, at_ns=2 * 86_400 * 10**9)
    for event in [*one_minute, other_day]:
        assert api.send(make_batch([event])) == ["accepted"]
    assert api.stats()["totals"]["bytes_to_server"] == 2 * OFFSET_MAX


def test_a_session_may_be_described_earlier(api: Api) -> None:
    api.send(make_batch([make_event(1)]))
    assert api.send(make_batch([make_event(2)], sessions=[])) == ["accepted"]
    assert api.send(make_batch([make_event(1, "s9")], sessions=[]))[0].startswith("rejected")


def test_a_session_with_a_bad_description_costs_only_its_events(api: Api) -> None:
    batch = json.loads(msgspec.json.encode(make_batch([make_event(1), make_event(1, "s2")])))
    for changes in ({"name": "x" * 257}, {"name": ""}, {"started_at_ns": -1}, {"ended_at_ns": 2**63}, {"name": "\0"}):
        batch["sessions"][1] = {"session": "s2", "name": "files", **changes}
        answer = api.post(json.dumps(batch).encode())
        statuses = [verdict["status"] for verdict in answer.json()["verdicts"]]
        assert statuses[0] in ("accepted", "duplicate")
        assert statuses[1] == "rejected", changes


def test_the_end_of_a_session_is_filled_in_and_its_name_stays(file_api: Api, served_file: Served) -> None:
    file_api.send(make_batch([make_event(1, "ends")]))
    file_api.send(make_batch([], [make_session("ends", name="renamed", ended_at_ns=NOW_NS + 5)]))
    file_api.send(make_batch([], [make_session("ends")]))
    rows = ask_file(served_file.file, "SELECT name, ended_at_ns, events FROM sessions WHERE session = 'ends'")
    assert rows == [("files", NOW_NS + 5, 1)]


def test_an_empty_batch_checks_url_and_key(api: Api) -> None:
    answer = api.post(b'{"batch_id": "hello"}')
    assert (answer.status_code, answer.json()) == (200, {"schema": 1, "batch_id": "hello", "verdicts": []})


def test_a_single_event_is_a_batch_of_one(api: Api) -> None:
    body = msgspec.json.encode(Single(batch_id="one", session=make_session(), event=make_event(1)))
    for status in ("accepted", "duplicate"):
        answer = api.post(body, "/api/v1/events")
        assert answer.json() == {"schema": 1, "batch_id": "one", "verdicts": [{"status": status}]}


def test_unknown_fields_are_ignored(api: Api) -> None:
    batch = msgspec.to_builtins(make_batch([make_event(1)]))
    batch["mood"] = batch["events"][0]["mood"] = batch["sessions"][0]["mood"] = {"new": [1]}
    assert api.post(json.dumps(batch).encode()).json()["verdicts"] == [{"status": "accepted"}]


def test_a_batch_holds_at_most_its_thousand(api: Api) -> None:
    events = [make_event(number) for number in range(BATCH_MAX_EVENTS + 1)]
    answer = api.post(msgspec.json.encode(make_batch(events)))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_many_events")
    assert api.send(make_batch(events[:-1])) == ["accepted"] * BATCH_MAX_EVENTS


def test_a_large_payload_fits(api: Api) -> None:
    payload = '"' * (16 * 2**20)  # each character takes two in JSON
    event = make_event(1, payload=payload, size_bytes=len(payload))
    packed = zstandard.compress(msgspec.json.encode(make_batch([event])))
    assert api.post(packed, Content_Encoding="zstd").json()["verdicts"] == [{"status": "accepted"}]
    (item,) = api.feed(include="payload")
    assert item["payload"] == payload


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(payloads=st.lists(st.binary(max_size=60), min_size=1, max_size=8))
def test_payloads_come_back_as_the_bytes_that_crossed(other_api: Api, payloads: list[bytes]) -> None:
    session = f"s{len(other_api.feed(limit=1000))}-{base64.b32encode(b''.join(payloads)[:40]).decode()}"
    events = []
    for number, payload in enumerate(payloads):
        text, encoded = payload_fields(payload)
        events.append(
            make_event(
                number, session, payload=text, payload_base64=encoded, size_bytes=len(payload), kind=Kind.NOT_JSON
            )
        )
    other_api.send(make_batch(events))
    items = other_api.feed(session=session, include="payload")
    found = [
        base64.b64decode(item["payload_base64"]) if item["payload"] is None else item["payload"].encode()
        for item in reversed(items)
    ]
    assert found == payloads


@given(
    events=st.lists(
        st.builds(
            lambda number, payload, **fields: make_event(number, payload=payload, **fields),
            number=st.integers(0, 5),
            payload=st.none() | st.text(max_size=8),
            size_bytes=st.integers(0, 8),
            truncated=st.booleans(),
            sha256=st.sampled_from([None, "ab" * 32, "AB" * 32]),
            at_ns=st.sampled_from([0, NOW_NS, NOW_NS + 3 * 24 * 3600 * 10**9]),
        ),
        max_size=5,
    )
)
def test_the_short_way_judges_as_the_long_one(events: list[Event]) -> None:
    body = msgspec.json.encode(make_batch(events))
    bounds = BatchBounds(1000, 2**20)
    envelope = check.DECODE_BATCH.decode(body)
    long = check.check_envelope(envelope, body, NOW_NS, bounds)
    short = check.parse_plain(body, NOW_NS, bounds)
    if short is not None:
        assert msgspec.to_builtins(short.sessions) == msgspec.to_builtins(long.sessions)
        assert [as_told(one) for one in short.judged] == [as_told(one) for one in long.judged]
    assert (short is None) == (b"\\u0000" in body)


def as_told(judged: Arrival | str) -> object:
    return judged if isinstance(judged, str) else (msgspec.to_builtins(judged.event), judged.payload, judged.risk)


NEWER_SESSION = {"session": "s1", "name": "files", "new": 1}


@pytest.mark.parametrize(
    "change", [{"schema": 2}, {"new": 1}, {"sessions": [NEWER_SESSION]}, {"events": [{"session": 1}]}]
)
def test_what_is_unusual_goes_the_long_way(change: dict[str, object]) -> None:
    whole = {**json.loads(msgspec.json.encode(make_batch([make_event(1)]))), **change}
    assert check.parse_plain(json.dumps(whole).encode(), NOW_NS, BatchBounds(1000, 2**20)) is None
    assert check.parse_plain(msgspec.json.encode(make_batch([make_event(1)])), NOW_NS, BatchBounds(1000, 50)) is None
    assert check.parse_plain(msgspec.json.encode(make_batch([make_event(1)])), NOW_NS, BatchBounds(0, 2**20)) is None
