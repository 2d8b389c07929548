"""The feed: order, pages, filters."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from km_server.api.cursor import parse_cursor, render_cursor
from km_server.api.times import parse_time, render_time
from km_server.store import feed
from km_server.store.protocol import TenantStore
from km_server.store.values import ActivityQuery, Filter, Position, StoredEvent

from kmd.mcp.names import Kind, Outcome, Stream
from kmd.wire import Event
from tests.server.clients import (
    NOW_NS,
    Api,
    arrive,
    ask_file,
    make_answer,
    make_batch,
    make_event,
    make_session,
    open_tenant,
)
from tests.server.conftest import Served


def test_an_item_says_everything(api: Api) -> None:
    request = make_event(1, payload="hello", size_bytes=5, sha256="a" * 64)
    answer = make_answer(1, 1_500_000, Outcome.RPC_ERROR)
    api.send(make_batch([request, replace_event(answer, error_code=-32601, at_ns=NOW_NS + 2000)]))
    second, first = api.activity(include="payload")["items"]
    assert first == {
        "id": first["id"],
        "session": "s1",
        "server": "files",
        "stream": "to_server",
        "offset": 100,
        "index": 0,
        "at": first["at"],
        "at_ns": NOW_NS + 1000,
        "kind": "request",
        "method": "tools/call",
        "target": "read",
        "rpc_id": "1",
        "size_bytes": 5,
        "duration_ms": None,
        "took_ns": None,
        "outcome": None,
        "error_code": None,
        "risk": None,
        "cost_usd": 5 / 1024 * 0.001,
        "truncated": False,
        "sha256": "a" * 64,
        "payload": "hello",
        "payload_base64": None,
    }
    assert first["at"].endswith("Z")
    assert parse_time(first["at"]) == first["at_ns"]
    assert (second["duration_ms"], second["outcome"], second["error_code"]) == (1.5, "rpc_error", -32601)
    assert "payload" not in api.activity()["items"][0]


def replace_event(event: Event, **changes: Any) -> Event:  # noqa: ANN401 - any field
    return make_event(0, **{**{name: getattr(event, name) for name in event.__struct_fields__}, **changes})


def test_payloads_that_were_not_kept_are_null(api: Api) -> None:
    api.send(make_batch([make_event(1, payload=None)]))
    (item,) = api.feed(include="payload")
    assert (item["payload"], item["payload_base64"]) == (None, None)


def test_newest_first_and_ties_by_id(api: Api) -> None:
    times = [5, 1, 3, 3, 3, 9, 0]
    api.send(make_batch([make_event(n, at_ns=NOW_NS + time) for n, time in enumerate(times)]))
    items = api.feed(limit=2)
    assert [item["at_ns"] - NOW_NS for item in items] == sorted(times, reverse=True)
    assert [item["offset"] for item in items if item["at_ns"] == NOW_NS + 3] == [400, 300, 200]


def test_pages_stay_as_they_are_while_events_come_in(api: Api) -> None:
    """Later events, and earlier ones on pages already read, neither repeat nor hide one that was there."""
    old = [make_event(number) for number in range(0, 100, 2)]
    api.send(make_batch(old))
    seen: list[dict[str, Any]] = []
    page = api.activity(limit=7)
    for step in range(100):
        seen += page["items"]
        if page["next_cursor"] is None:
            break
        api.send(make_batch([make_event(200 + step), make_event(99 - 2 * (step % 50))]))
        page = api.activity(limit=7, cursor=page["next_cursor"])
    ids = [item["id"] for item in seen]
    assert len(ids) == len(set(ids))
    assert {item["offset"] for item in seen} >= {event.offset for event in old}


def test_limits(api: Api) -> None:
    api.send(make_batch([make_event(number) for number in range(60)]))
    assert len(api.activity()["items"]) == 50
    assert len(api.activity(limit=1)["items"]) == 1
    page = api.activity(limit=60)
    assert (len(page["items"]), page["next_cursor"]) == (60, None)


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=1001",
        "limit=-1",
        "limit=1.0",
        "limit=",
        "limit=%C2%B2",
        "limit=" + "9" * 5000,
        "limit=1&limit=2",
        "cursor=",
        "cursor=x",
        "cursor=%00",
        "cursor=MTIzLjQ1%3D",
        "cursor=MTIz",
        "cursor=MS4yLjM",
        "cursor=LTEuMg",
        "cursor=" + "A" * 500,
        "include=everything",
        "from=yesterday",
        "from=2026-01-01",
        "from=2026-01-01T00:00:00",
        "from=-1",
        "from=1e400",
        "from=nan",
        "from=inf",
        "to=9999-12-31T00:00:00Z",
        "to=1969-12-31T00:00:00Z",
        "to=" + "9" * 30,
        "kind=gossip",
        "outcome=fine",
        "method=%00",
        "server=" + "x" * 1025,
        "sesion=s1",
        "order=asc",
    ],
)
def test_junk_in_the_query_is_refused(api: Api, query: str) -> None:
    answer = api.http.get(f"/api/v1/activity?{query}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_parameter"), answer.text


Match = Callable[[dict[str, Any]], bool]


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"session": "s2"}, lambda item: item["session"] == "s2"),
        ({"server": "git"}, lambda item: item["server"] == "git"),
        ({"method": "tools/call"}, lambda item: item["method"] == "tools/call"),
        ({"method": "no/such"}, lambda item: False),
        ({"kind": "response"}, lambda item: item["kind"] == "response"),
        ({"outcome": "ok"}, lambda item: item["outcome"] == "ok"),
        ({"session": "s2", "kind": "request"}, lambda item: item["session"] == "s2" and item["kind"] == "request"),
        ({"session": "unknown"}, lambda item: False),
        ({"session": "empty"}, lambda item: False),
    ],
)
def test_filters(api: Api, parameters: dict[str, str], match: Match) -> None:
    events = [make_event(number, f"s{number % 3}") for number in range(20)]
    events += [make_answer(number, 10, session=f"s{number % 3}") for number in range(20)]
    events += [make_event(50, "s1", kind=Kind.NOTIFICATION, method="log", stream=Stream.STDERR)]
    names = {"s0": "files", "s1": "git", "s2": "git", "empty": "git"}
    api.send(make_batch(events, [make_session(session, name) for session, name in names.items()]))
    wanted = [item for item in api.feed() if match(item)]
    assert api.feed(**parameters, limit=3) == wanted


def test_a_span_includes_its_start_and_not_its_end(api: Api) -> None:
    api.send(make_batch([make_event(n, at_ns=n * 10**9) for n in range(10)]))
    items = api.feed(**{"from": "1970-01-01T00:00:03Z", "to": "6.000"})
    assert [item["at_ns"] // 10**9 for item in items] == [5, 4, 3]
    assert api.feed(**{"from": 7, "to": 7}) == []
    assert len(api.feed(**{"from": "2", "session": "s1", "to": "5"})) == 3


async def read_pages(store: TenantStore, query: ActivityQuery) -> list[list[StoredEvent]]:
    pages = []
    while True:
        page = await store.read_activity(query)
        pages.append(list(page.events))
        if page.next is None:
            return pages
        query = replace(query, after=page.next)


@pytest.mark.parametrize("scan_max", [5, 7])
def test_a_rare_match_is_found_in_bounded_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scan_max: int) -> None:
    """Matches at the very end of a step, and in its middle."""
    monkeypatch.setattr(feed, "SCAN_MAX", scan_max)

    async def scenario() -> None:
        async with open_tenant(tmp_path / "server.db") as store:
            events = [
                make_event(n, at_ns=NOW_NS + n // 3, method="rare" if n % 25 == 0 else "usual") for n in range(100)
            ]
            await store.ingest([make_session()], arrive(events))
            for limit in (1, 2, 50):
                pages = await read_pages(store, ActivityQuery(limit=limit, where=Filter(method="rare")))
                found = [stored.event.offset for page in pages for stored in page]
                assert found == [7500, 5000, 2500, 0]
                assert len(pages) >= 100 // scan_max

    asyncio.run(scenario())


def test_a_page_is_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "PAGE_PAYLOAD_BYTES", 100)

    async def scenario() -> None:
        async with open_tenant(tmp_path / "server.db") as store:
            sizes = [10, 500, 40, 60, 1, 90]
            events = [make_event(n, payload="x" * size, size_bytes=size) for n, size in enumerate(sizes)]
            await store.ingest([make_session()], arrive(events))
            pages = await read_pages(store, ActivityQuery(limit=50, payloads=True))
            assert [[stored.event.size_bytes for stored in page] for page in pages] == [[90, 1], [60, 40], [500], [10]]
            assert len(await read_pages(store, ActivityQuery(limit=50))) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("extra", ["", " AND e.at_ns >= 5 AND e.at_ns < 9", " AND (e.at_ns, e.id) < (5, 5)"])
def test_the_feed_walks_an_index(served_file: Served, extra: str) -> None:
    question = f"SELECT {feed.FEED_COLUMNS} FROM events e JOIN sessions s ON s.id = e.session_id"  # noqa: S608
    plan = ask_file(
        served_file.file,
        f"EXPLAIN QUERY PLAN {question} WHERE e.tenant_id = 1{extra} ORDER BY e.at_ns DESC, e.id DESC LIMIT 5",
    )
    steps = [step[3] for step in plan]
    assert all(step.startswith("SEARCH") for step in steps), steps
    assert "USING INDEX events_by_time" in steps[0]


@given(at_ns=st.integers(0, 2**63 - 1), row=st.integers(0, 2**63 - 1))
def test_a_cursor_reads_back(at_ns: int, row: int) -> None:
    assert parse_cursor(render_cursor(Position(at_ns, row))) == Position(at_ns, row)


@given(at_ns=st.integers(0, 2**63 - 1))
def test_a_time_reads_back(at_ns: int) -> None:
    """What an item says as `at` is a `from` that begins exactly there."""
    assert parse_time(render_time(at_ns)) == at_ns


@pytest.mark.parametrize(
    ("text", "at_ns"),
    [
        ("0", 0),
        ("1.5", 1_500_000_000),
        ("1.000000001", 1_000_000_001),
        ("1e3", 10**12),
        ("1970-01-01T00:00:01Z", 10**9),
        ("1970-01-01T01:00:01.25+01:00", 1_250_000_000),
        ("1970-01-01T00:00:00.123456789Z", 123_456_789),
        ("1970-01-01t01:00:00.0000000019+01:00", 1),
        ("1970-01-01 00:00:02.5z", 2_500_000_000),
        ("1970-01-01T00:00Z", 0),
    ],
)
def test_times(text: str, at_ns: int) -> None:
    assert parse_time(text) == at_ns
