"""Everything as a stream: exact as JSON lines, safe as CSV, readable as HAR, in constant memory."""

import csv
import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from km_server.api import exports
from km_server.api.exports import Format, Har, make_cell, make_exporter
from km_server.store.values import StoredEvent

from kmd.mcp.names import Kind, Outcome, Stream
from tests.server.clients import NOW_NS, Api, make_answer, make_batch, make_event, open_api
from tests.support.processes import running_server, wait_for

COUNT = 1_203
"""More than two portions."""


def fill(api: Api, count: int = COUNT) -> None:
    events = [make_event(number, f"s{number % 3}", at_ns=NOW_NS - number) for number in range(count)]
    for first in range(0, count, 500):
        api.send(make_batch(events[first : first + 500]))


def export(api: Api, **parameters: str) -> str:
    answer = api.http.get("/api/v1/export", params=parameters)
    assert answer.status_code == 200, answer.text
    assert "attachment" in answer.headers["Content-Disposition"]
    return answer.text


def test_json_lines_are_the_feed_oldest_first(api: Api) -> None:
    fill(api)
    items = [json.loads(line) for line in export(api).splitlines()]
    assert items == api.feed(order="oldest_first", limit=1000)
    assert len(items) == COUNT
    with_payloads = [json.loads(line) for line in export(api, include="payload", session="s1").splitlines()]
    assert with_payloads == api.feed(order="oldest_first", include="payload", session="s1", limit=1000)


def test_an_export_of_nothing(api: Api) -> None:
    assert export(api) == ""
    assert json.loads(export(api, format="har"))["log"]["entries"] == []
    assert len(export(api, format="csv").splitlines()) == 1


def test_csv_has_the_same_values(api: Api) -> None:
    fill(api, 20)
    rows = list(csv.DictReader(io.StringIO(export(api, format="csv", include="payload"))))
    items = api.feed(order="oldest_first", include="payload")
    assert len(rows) == 20
    for row, item in zip(rows, items, strict=True):
        assert set(row) == set(item)
        assert (row["id"], row["target"], row["payload"]) == (str(item["id"]), item["target"], item["payload"])
        assert row["took_ns"] == ""


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@a", "\tx", "\rx"])
def test_a_cell_is_never_a_formula(text: str) -> None:
    assert make_cell(text) == "'" + text


@pytest.mark.parametrize(
    ("value", "cell"), [("a=b", "a=b"), ("", ""), (None, ""), (-5, -5), (True, "true"), (1.5, 1.5)]
)
def test_other_cells_are_as_they_are(value: object, cell: object) -> None:
    assert make_cell(value) == cell


def test_har_pairs_requests_with_answers(api: Api) -> None:
    api.send(
        make_batch(
            [
                make_event(1),
                make_event(2, at_ns=NOW_NS + 2_000_000, target="läuft noch/"),
                make_answer(1, 1_500_000, Outcome.RPC_ERROR),
                make_event(3, kind=Kind.NOTIFICATION, method="notifications/x", rpc_id=None, target=None),
                make_event(4, stream=Stream.STDERR, kind=Kind.NOT_JSON, method=None, rpc_id=None),
                make_event(5, stream=Stream.TO_CLIENT, method="sampling", target=None, rpc_id="2"),
            ]
        )
    )
    log = json.loads(export(api, format="har", include="payload"))["log"]
    assert log["version"] == "1.2"
    found = {(entry["request"]["url"], entry["response"]["status"], entry["time"]) for entry in log["entries"]}
    assert found == {
        ("mcp://files/tools%2Fcall/read", 500, 1.5),
        ("mcp://files/tools%2Fcall/l%C3%A4uft%20noch%2F", 0, 0),
        ("mcp://files/notifications%2Fx", 0, 0),
        ("mcp://files/sampling", 0, 0),
    }
    (answered,) = [entry for entry in log["entries"] if entry["response"]["status"]]
    assert json.loads(answered["request"]["postData"]["text"])["id"] == 1
    assert json.loads(answered["response"]["content"]["text"])["id"] == 1
    assert answered["_session"] == "s1"


def test_an_id_that_is_used_again_is_another_exchange(api: Api) -> None:
    """Request, answer, request, no answer; and an answer whose request is not in the export."""
    later = NOW_NS + 5 * 10**9
    again = make_event(7, rpc_id="1", at_ns=later)
    stray = make_event(8, stream=Stream.TO_CLIENT, kind=Kind.RESPONSE, outcome=Outcome.OK, rpc_id="9", at_ns=NOW_NS)
    unrelated = make_event(9, rpc_id="9", at_ns=later)
    api.send(make_batch([make_event(1), make_answer(1, 10), again, stray, unrelated]))
    entries = json.loads(export(api, format="har"))["log"]["entries"]
    assert sorted((entry["_rpcId"], entry["response"]["status"]) for entry in entries) == [
        ("1", 0),
        ("1", 200),
        ("9", 0),
        ("9", 200),
    ]


def stored(number: int, **changes: Any) -> StoredEvent:  # noqa: ANN401 - any field
    return StoredEvent(number, "files", make_event(number, **changes), b"x" * 100)


@pytest.mark.parametrize(("bound", "value"), [("OPEN_MAX", 10), ("OPEN_MAX_BYTES", 1_000)])
def test_a_har_waits_for_few_answers_at_a_time(monkeypatch: pytest.MonkeyPatch, bound: str, value: int) -> None:
    monkeypatch.setattr(exports, bound, value)
    har = Har("1", payloads=True)
    text = har.begin()
    for number in range(100):
        text += har.add([stored(number)])
        assert len(har._open) <= 10
    entries = json.loads(text + har.end())["log"]["entries"]
    assert [json.loads(entry["_rpcId"]) for entry in entries] == list(range(100))


@pytest.mark.parametrize("kind", list(Format))
def test_the_memory_does_not_grow_with_the_export(kind: Format) -> None:
    """Ten and a hundred portions of 400 kB each: the same peak."""

    def peak_bytes(portions: int) -> int:
        exporter = make_exporter(kind, 0.001, "1", payloads=True)
        tracemalloc.start()
        try:
            exporter.begin()
            for first in range(portions):
                exporter.add([stored(first * 400 + n, payload="x" * 1000, size_bytes=1000) for n in range(400)])
            exporter.end()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak_bytes(10)
    if kind is not Format.HAR:
        assert peak_bytes(40) < peak_bytes(10) * 1.5


@pytest.mark.parametrize("path", ["/api/v1/export?include=payload", "/api/v1/live?after=0"])
def test_a_reader_that_goes_is_no_fault_of_the_server(tmp_path: Path, path: str) -> None:
    database = tmp_path / "server.db"
    route = path.partition("?")[0]
    with running_server(database) as running, open_api(running.url, database, "acme") as api:
        payload = "x" * 2**20
        for number in range(24):
            api.send(make_batch([make_event(number, payload=payload, size_bytes=len(payload))]))
        with api.http.stream("GET", path) as response:
            next(response.iter_raw())

        def answered() -> str:
            lines = api.http.get("/metrics").text.splitlines()
            return next((line for line in lines if "km_http_requests_total" in line and f'route="{route}"' in line), "")

        assert 'status="200"' in wait_for(answered, "the end of the request")
        assert api.http.get("/metrics").text.count('code="internal"') == 0
    log = running.log.read_text()
    assert "reader_gone" in log
    assert "unforeseen" not in log


def test_an_export_is_refused_before_it_begins_or_not_at_all(api: Api) -> None:
    for query in ("format=xml", "from=x", "limit=5", "text=", "include=all"):
        assert api.http.get(f"/api/v1/export?{query}").status_code == 400
