"""Statistics: always what a recount of the stored events says, and percentiles within their bound."""

import asyncio
import math
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from km_server.store.histogram import bucket_of, bucket_value_ns, quantile_ns
from km_server.store.rollup import MINUTE_NS
from km_server.store.values import Span, Stats, StatsQuery

from kmd.insight.cost import cost_usd
from kmd.mcp.names import Kind, Outcome, Stream
from kmd.wire import Event
from tests.server.clients import NOW_NS, Api, arrive, make_answer, make_batch, make_event, make_session, open_tenant

ERROR_BOUND = 0.025
Key = tuple[str, str, str]


def test_figures_of_a_conversation(api: Api) -> None:
    events = [
        *[make_event(n, size_bytes=1024, payload=None) for n in range(4)],
        make_answer(0, 1_000_000),
        make_answer(1, 2_000_000, Outcome.TOOL_ERROR),
        make_answer(2, 3_000_000, Outcome.RPC_ERROR),
        make_answer(3, 4_000_000, Outcome.PROBE),
        make_event(9, kind=Kind.NOTIFICATION, method="log", target=None, size_bytes=100, payload=None),
        make_event(9, stream=Stream.STDERR, kind=Kind.NOT_JSON, method=None, target=None, size_bytes=7, payload=None),
    ]
    api.send(make_batch(events))
    found = api.stats()
    answered = make_answer(0, 1).size_bytes * 4
    totals = found["totals"]
    assert (totals["sessions"], totals["events"], totals["messages"]) == (1, 10, 9)
    assert (totals["calls"], totals["errors"], totals["tool_errors"]) == (4, 1, 1)
    assert (totals["bytes_to_server"], totals["bytes_to_client"]) == (4 * 1024 + 100, answered)
    assert totals["cost_usd"] == pytest.approx((4 * 1024 + 100 + answered) / 1024 * 0.001)
    assert totals["p50_ms"] == pytest.approx(2, rel=ERROR_BOUND)
    assert totals["p99_ms"] == pytest.approx(4, rel=ERROR_BOUND)
    assert [(group["server"], group["method"], group["target"]) for group in found["groups"]] == [
        ("files", "tools/call", "read"),
        ("files", "log", None),
        ("files", None, None),
    ]
    assert (found["groups"][0]["calls"], found["groups"][1]["calls"]) == (4, 0)
    assert found["groups"][1]["p50_ms"] is None
    assert (found["from"], found["to"], found["groups_omitted"]) == (None, None, 0)


def test_the_line_of_a_batch_has_the_bytes_and_its_members_the_calls(api: Api) -> None:
    line = make_event(1, kind=Kind.BATCH, method=None, target=None, rpc_id=None, size_bytes=2048, payload=None)
    members = [make_event(1, index=index, size_bytes=1000, payload=None) for index in (1, 2)]
    api.send(make_batch([line, *members]))
    totals = api.stats()["totals"]
    assert (totals["events"], totals["messages"], totals["calls"], totals["bytes_to_server"]) == (3, 2, 2, 2048)
    costs = sum(item["cost_usd"] for item in api.feed())
    assert costs == pytest.approx(totals["cost_usd"]) == pytest.approx(0.002)


def test_input_required_is_no_error(api: Api) -> None:
    api.send(make_batch([make_answer(1, 5, Outcome.INPUT_REQUIRED)]))
    totals = api.stats()["totals"]
    assert (totals["errors"], totals["tool_errors"]) == (0, 0)


def test_nothing_yet(api: Api) -> None:
    found = api.stats()
    assert set(found["totals"].values()) == {0, None}
    assert found["groups"] == []


def test_spans_are_whole_minutes(api: Api) -> None:
    api.send(make_batch([make_event(minute, at_ns=minute * MINUTE_NS) for minute in range(10)]))
    found = api.stats(**{"from": "1970-01-01T00:03:59Z", "to": "361"})
    assert found["totals"]["events"] == 4
    assert found["from"] == "1970-01-01T00:03:00.000000000Z"
    assert found["to"] == "1970-01-01T00:07:00.000000000Z"
    assert api.stats(**{"from": 600})["totals"]["sessions"] == 0
    assert api.stats(to=0)["totals"]["events"] == 0


@pytest.mark.parametrize(
    "query",
    ["from=5&to=4", "from=x", "limit=5", "to=1&to=2", "servr=files", "group_by=mood", "bucket=5m", "bucket=0m&from=1"],
)
def test_junk_in_the_query_is_refused(api: Api, query: str) -> None:
    answer = api.http.get(f"/api/v1/stats?{query}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_parameter")


EVENTS = st.builds(
    lambda **fields: make_event(0, payload=None, **fields),
    session=st.sampled_from(["s1", "s2", "s3"]),
    stream=st.sampled_from(list(Stream)),
    offset=st.integers(0, 3),
    index=st.integers(0, 2),
    at_ns=st.integers(0, 5 * MINUTE_NS),
    kind=st.sampled_from(list(Kind)),
    method=st.sampled_from([None, "", "tools/call", "ping"]),
    target=st.sampled_from([None, "read"]),
    size_bytes=st.integers(0, 10**6),
    took_ns=st.none() | st.integers(0, 10**12),
    outcome=st.none() | st.sampled_from(list(Outcome)),
)
NAMES = {"s1": "files", "s2": "git", "s3": "git"}


def recount(events: Sequence[Event], span: Span) -> dict[Key, Counter[str]]:
    """The figures per server, method and target, counted one by one from what was stored."""
    groups: dict[Key, Counter[str]] = {}
    for event in events:
        minute = event.at_ns // MINUTE_NS
        if minute < (span.first_minute or 0) or (span.end_minute is not None and minute >= span.end_minute):
            continue
        key = (NAMES[event.session], event.method or "", event.target or "")
        counted = groups.setdefault(key, Counter())
        counted["events"] += 1
        counted["messages"] += event.kind != "batch" and event.stream != "stderr"
        counted["calls"] += event.kind == "request"
        counted["errors"] += event.outcome == "rpc_error"
        counted["tool_errors"] += event.outcome == "tool_error"
        if event.index == 0 and event.stream != "stderr":
            counted[f"bytes_{event.stream}"] += event.size_bytes
        counted["answers"] += event.took_ns is not None
    return groups


def as_counts(stats: Stats) -> dict[Key, Counter[str]]:
    return {
        (group.series.server or "", group.series.method or "", group.series.target or ""): Counter(
            events=group.figures.events,
            messages=group.figures.messages,
            calls=group.figures.calls,
            errors=group.figures.errors,
            tool_errors=group.figures.tool_errors,
            bytes_to_server=group.figures.bytes_to_server,
            bytes_to_client=group.figures.bytes_to_client,
            answers=sum(group.latencies.values()),
        )
        for group in stats.groups
    }


@settings(max_examples=40, deadline=None)
@given(batches=st.lists(st.lists(EVENTS, max_size=12), max_size=5), first=st.integers(0, 5), end=st.integers(1, 6))
def test_statistics_are_what_a_recount_says(batches: list[list[Event]], first: int, end: int) -> None:
    """Batches with duplicates inside and between them, all sent at once and again; another tenant sends them too."""
    stored: dict[tuple[str, str, int, int], Event] = {}
    for batch in batches:
        for event in batch:
            stored.setdefault((event.session, event.stream, event.offset, event.index), event)

    async def scenario(database: Path) -> None:
        sessions = [make_session(session, name) for session, name in NAMES.items()]
        async with open_tenant(database) as store, open_tenant(database, "other") as other:
            for batch in batches:  # in order: which of two different twins wins must be known
                await store.ingest(sessions, arrive(batch))
            await asyncio.gather(*(one.ingest(sessions, arrive(b)) for b in batches for one in (store, other)))
            for span in (Span(), Span(first, end), Span(None, first), Span(end, None)):
                stats = await store.read_stats(StatsQuery(span))
                expected = recount(list(stored.values()), span)
                assert as_counts(stats) == expected
                assert stats.totals.events == sum(counted["events"] for counted in expected.values())
                assert sum(stats.latencies.values()) == sum(counted["answers"] for counted in expected.values())
            everything = await store.read_stats(StatsQuery())
            assert everything.sessions == len({event.session for event in stored.values()})

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(scenario(Path(folder) / "server.db"))


@given(took_ns=st.integers(0, 2**63 - 1))
def test_a_bucket_is_close_to_what_it_holds(took_ns: int) -> None:
    value = bucket_value_ns(bucket_of(took_ns))
    assert abs(value - took_ns) <= ERROR_BOUND * took_ns


@given(took=st.lists(st.integers(0, 2**63 - 1), min_size=1), quantile=st.sampled_from([0.01, 0.5, 0.95, 0.99, 1.0]))
def test_percentiles_are_close_to_the_sample_at_their_rank(took: list[int], quantile: float) -> None:
    counts = Counter(map(bucket_of, took))
    exact = sorted(took)[max(1, math.ceil(quantile * len(took))) - 1]
    found = quantile_ns(counts, quantile)
    assert found is not None
    assert abs(found - exact) <= ERROR_BOUND * exact


def test_buckets_do_not_go_back() -> None:
    edges = [int(1.01**power) for power in range(4000)]
    buckets = [bucket_of(edge) for edge in edges]
    assert buckets == sorted(buckets)
    assert quantile_ns({}, 0.5) is None


def test_cost() -> None:
    assert cost_usd(1024) == 0.001
    assert cost_usd(512, 2.0) == 1.0
    assert cost_usd(0) == 0
    for size, rate in ((-1, 0.001), (1, -0.1)):
        with pytest.raises(ValueError):
            cost_usd(size, rate)


def test_one_minute_from_many_batches(api: Api) -> None:
    for number in range(30):
        api.send(make_batch([make_event(number, at_ns=NOW_NS), make_answer(number, (number + 1) * 10**6)]))
    totals = api.stats()["totals"]
    assert (totals["calls"], totals["events"]) == (30, 60)
    assert totals["p50_ms"] == pytest.approx(15, rel=ERROR_BOUND)
    assert totals["p95_ms"] == pytest.approx(29, rel=ERROR_BOUND)
