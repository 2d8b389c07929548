"""Sessions, timelines, single events, filters, what is lost, and taking away."""

import base64
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from km_server.store.values import Scope

from kmd.mcp.names import Kind, Outcome, Stream
from kmd.wire import Batch
from tests.server.clients import NOW_NS, Api, make_answer, make_batch, make_event, make_session, open_api
from tests.server.conftest import NUMBERS, Served

Match = Callable[[dict[str, Any]], bool]


def test_sessions_newest_start_first_with_what_they_come_to(api: Api) -> None:
    sessions = [
        make_session(name, "files" if number % 2 else "git", NOW_NS + 9) for number, name in enumerate(["a", "b", "c"])
    ]
    starts = {"a": 5, "b": 7, "c": 6}
    described = [
        msgspec.structs.replace(one, started_at_ns=NOW_NS + starts[one.session], closed_first="relay" * (i == 1))
        for i, one in enumerate(sessions)
    ]
    events = [make_event(1, "a"), make_answer(1, 10, Outcome.TOOL_ERROR, session="a"), make_event(1, "b")]
    api.send(make_batch(events, described))
    first = api.get("/api/v1/sessions", limit=2)
    rest = api.get("/api/v1/sessions", limit=2, cursor=first["next_cursor"])
    items = first["items"] + rest["items"]
    assert [item["session"] for item in items] == ["b", "c", "a"]
    assert rest["next_cursor"] is None
    assert items[0]["ended_at_ns"] == NOW_NS + 9
    assert [item["closed_first"] for item in items] == ["relay", "", ""]
    assert {name: items[2][name] for name in ("events", "calls", "errors", "tool_errors")} == {
        "events": 2,
        "calls": 1,
        "errors": 0,
        "tool_errors": 1,
    }
    assert (items[1]["events"], items[1]["first_at"]) == (0, None)
    files = api.get("/api/v1/sessions", server="files")["items"]
    assert [item["session"] for item in files] == ["b"]


def test_a_timeline_is_oldest_first_page_by_page(api: Api) -> None:
    api.send(make_batch([make_event(n, at_ns=NOW_NS + (n * 7) % 10) for n in range(10)] + [make_event(1, "other")]))
    seen: list[dict[str, Any]] = []
    page = api.get("/api/v1/sessions/s1", limit=3, include="payload")
    while True:
        assert page["session"]["session"] == "s1"
        assert page["session"]["events"] == 10
        seen += page["items"]
        if page["next_cursor"] is None:
            break
        page = api.get("/api/v1/sessions/s1", limit=3, include="payload", cursor=page["next_cursor"])
    assert [item["at_ns"] - NOW_NS for item in seen] == list(range(10))
    assert all(item["payload"] for item in seen)


@pytest.mark.parametrize("name", ["with/slash", "ünï", "?a=b&c#d", "%2F", "{x}", "..", "a'; DROP TABLE events; --"])
def test_a_session_of_any_name_is_found_and_removed(served: Served, name: str) -> None:
    with open_api(served.url, served.database_url, f"named-{next(NUMBERS)}", *Scope) as api:
        api.send(make_batch([make_event(1, name), make_event(1, "stays")]))
        path = "/api/v1/sessions/" + quote(name, safe="").replace(".", "%2E")
        found = api.http.request("GET", path)
        if name == "..":
            assert found.status_code in (200, 404)  # clients and proxies fold dots before anybody is asked
            return
        assert found.json()["session"]["session"] == name
        assert api.http.request("DELETE", path).json() == {"events": 1, "sessions": 1}
        assert [item["session"] for item in api.feed()] == ["stays"]


def test_one_event_with_its_payload(api: Api) -> None:
    raw = b"\xff\x00binary"
    event = make_event(1, payload=None, payload_base64=base64.b64encode(raw).decode(), size_bytes=len(raw))
    api.send(make_batch([event, make_event(2)]))
    newer, older = api.feed()
    assert base64.b64decode(api.get(f"/api/v1/events/{older['id']}")["payload_base64"]) == raw
    assert json.loads(api.get(f"/api/v1/events/{newer['id']}")["payload"])["id"] == 2


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/v1/events/0", 400),
        ("/api/v1/events/1" + "0" * 400, 400),
        ("/api/v1/events/9223372036854775807", 404),
        ("/api/v1/events/x", 404),
        ("/api/v1/events/-1", 404),
        ("/api/v1/events/%D9%A7", 404),
        ("/api/v1/sessions/none", 404),
        ("/api/v1/sessions/%00", 404),
        ("/api/v1/sessions/%FF", 404),
        ("/api/v1/sessions/" + "x" * 5000, 404),
    ],
)
def test_what_is_not_there(api: Api, path: str, status: int) -> None:
    answer = api.http.get(path)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["code"] == {400: "bad_parameter", 404: "not_found"}[status]


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"target": "write"}, lambda item: item["target"] == "write"),
        ({"stream": "stderr"}, lambda item: item["stream"] == "stderr"),
        ({"risk_at_least": 50}, lambda item: (item["risk"] or 0) >= 50),
        ({"text": "NEEDLE"}, lambda item: item["offset"] == 700),
        ({"text": "writ"}, lambda item: item["target"] == "write"),
        ({"text": "100%_"}, lambda item: item["offset"] == 800),
        ({"order": "oldest_first"}, lambda item: True),
        ({"target": "write", "risk_at_least": 1, "order": "oldest_first"}, lambda item: item["offset"] == 500),
    ],
)
def test_filters(api: Api, parameters: dict[str, str | int], match: Match) -> None:
    payload = "some needle here"
    events = [
        msgspec.to_builtins(one)
        for one in (
            *(make_event(number) for number in range(5)),
            make_event(5, target="write"),
            make_event(6, target="write"),
            make_event(7, payload=payload, size_bytes=len(payload)),
            make_event(8, method="100%_sure"),
            make_event(9, stream=Stream.STDERR, kind=Kind.NOT_JSON, method=None),
        )
    ]
    events[5]["risk"], events[4]["risk"] = 100, 49
    batch = {"batch_id": "b", "sessions": [msgspec.to_builtins(make_session())], "events": events}
    assert api.post(json.dumps(batch).encode()).status_code == 200
    wanted = [item for item in api.feed() if match(item)]
    if "order" in parameters:
        wanted.reverse()
    assert wanted
    assert api.feed(**parameters, limit=2) == wanted


def test_statistics_by_what_is_asked_for(api: Api) -> None:
    api.send(
        make_batch(
            [make_event(n, "a", target=f"t{n % 2}") for n in range(4)]
            + [make_event(9, "b", method="ping", target=None)],
            [make_session("a", "files"), make_session("b", "git")],
        )
    )
    by_server = api.stats(group_by="server")["groups"]
    assert [(group["server"], group["calls"]) for group in by_server] == [("files", 4), ("git", 1)]
    assert "method" not in by_server[0]
    assert api.stats(group_by="")["groups"] == []
    assert api.stats(group_by="target", server="files")["totals"]["calls"] == 4
    assert {group["target"] for group in api.stats(group_by="target")["groups"]} == {"t0", "t1", None}
    assert api.stats(method="ping")["totals"]["calls"] == 1
    assert "series" not in api.stats()


def test_a_time_series_has_a_point_for_each_stretch_with_events(api: Api) -> None:
    minute = 60 * 10**9
    start = NOW_NS // (60 * minute) * 60 * minute - 10 * 60 * minute
    times = [0, 1, 2, 60, 61, 179]
    api.send(make_batch([make_event(n, at_ns=start + m * minute) for n, m in enumerate(times)]))
    series = api.stats(bucket="1h", **{"from": f"{start / 1e9:.0f}"})["series"]
    assert [point["calls"] for point in series] == [3, 2, 1]
    assert sum(point["calls"] for point in api.stats(bucket="7m", **{"from": f"{start / 1e9:.0f}"})["series"]) == 6
    refused = api.http.get("/api/v1/stats", params={"bucket": "1m", "from": "0"})
    assert refused.status_code == 400
    assert "take" in refused.json()["error"]["message"]


def test_what_senders_gave_up_is_kept_and_shown(api: Api) -> None:
    def say(sender: str, lost: int) -> None:
        body = msgspec.json.encode(Batch(batch_id="b", sent_by=sender, lost_events=lost))
        assert api.post(body).status_code == 200

    assert api.get("/api/v1/losses") == {"lost_events": 0, "senders": [], "refused": {}}
    for lost in (5, 9, 7):
        say("laptop", lost)
    say("ci", 2)
    found = api.get("/api/v1/losses")
    assert found["lost_events"] == 11
    assert [(one["sender"], one["lost_events"]) for one in found["senders"]] == [("laptop", 9), ("ci", 2)]


def test_fields_of_a_later_version_are_kept_as_they_came(api: Api) -> None:
    event = msgspec.to_builtins(make_event(1))
    text = '"mood":{"deep":[1,2.50,null,"\\u00e9"]},"n":12345678901234567890'
    body = json.dumps({"batch_id": "b", "sessions": [msgspec.to_builtins(make_session())], "later": [1]})[:-1]
    body += ', "events": [' + json.dumps(event)[:-1] + ", " + text + "}]}"
    assert api.post(body.encode()).json()["verdicts"] == [{"status": "accepted"}]
    event_id = api.feed()[0]["id"]
    for path in ("/api/v1/activity?include=payload", f"/api/v1/events/{event_id}", "/api/v1/export?include=payload"):
        assert '"extra":{' + text + "}" in api.http.get(path).text


def test_taking_a_span_away(served: Served) -> None:
    with open_api(served.url, served.database_url, f"tenant-{next(NUMBERS)}", *Scope) as api:
        api.send(make_batch([make_event(n, at_ns=n * 10**9) for n in range(10)]))
        nothing = api.http.delete("/api/v1/events")
        assert nothing.status_code == 400
        assert "from=0" in nothing.json()["error"]["hint"]
        assert api.http.delete("/api/v1/events", params={"from": 3, "to": 6}).json()["events"] == 3
        assert api.stats()["totals"]["events"] == 7
        assert [item["at_ns"] // 10**9 for item in api.feed()] == [9, 8, 7, 6, 2, 1, 0]
        assert api.http.delete("/api/v1/events", params={"from": 0}).json() == {"events": 7, "sessions": 1}
        assert api.feed() == []
        assert api.stats()["totals"]["sessions"] == 0
        line = [json.loads(line) for line in served.log.read_text().splitlines() if '"removed"' in line][-1]
        assert line["events"] == 7
        assert line["key"]
