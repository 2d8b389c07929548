"""How much a key may send, how much all of them together, and that every answer says so."""

import socket
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from km_server.config import ServerConfig
from km_server.errors import ApiError
from km_server.limits import SLOTS, BodyBudget, Rate, RateLimiter

from tests.server.clients import WAIT_S, Api, app_in_thread, database_url, make_batch, make_event, open_api
from tests.support.processes import wait_for

RATE_HEADERS = {"RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset", "RateLimit-Policy"}
BOUND_HEADERS = {"Km-Limit-Body-Bytes", "Km-Limit-Inflated-Bytes", "Km-Limit-Batch-Events", "Km-Limit-Event-Bytes"}
IN_FLIGHT = "km_ingest_bodies_in_flight_bytes"


def test_a_burst_then_the_rate() -> None:
    limiter = RateLimiter(Rate(per_s=2.0, burst=3))
    grants = [limiter.ask(1, 100.0) for _ in range(4)]
    assert [grant and (grant.wait_s > 0, grant.remaining) for grant in grants] == [
        (False, 2),
        (False, 1),
        (False, 0),
        (True, 0),
    ]
    refused = grants[3]
    assert refused
    assert refused.headers["RateLimit-Policy"] == "3;w=2"
    later = limiter.ask(1, 100.0 + refused.wait_s)
    assert later
    assert later.wait_s == 0


def test_keys_do_not_share_a_rate() -> None:
    limiter = RateLimiter(Rate(per_s=1.0, burst=1))
    grants = [limiter.ask(key, 5.0) for key in (1, 2, 1)]
    assert [bool(grant and grant.wait_s) for grant in grants] == [False, False, True]


def test_no_limit() -> None:
    assert RateLimiter(Rate(per_s=0.0, burst=1)).ask(1, 0.0, 10**9) is None


@given(
    steps=st.lists(st.tuples(st.floats(0, 3), st.integers(1, 30)), max_size=60),
    per_s=st.sampled_from([0.5, 1.0, 7.0]),
    burst=st.integers(1, 20),
)
def test_never_more_than_the_burst_and_the_rate_since(steps: list[tuple[float, int]], per_s: float, burst: int) -> None:
    limiter = RateLimiter(Rate(per_s, burst))
    now_s, granted = 1000.0, 0
    for pause_s, cost in steps:
        now_s += pause_s
        grant = limiter.ask(SLOTS + 5, now_s, cost)
        assert grant
        if grant.wait_s == 0:
            granted += min(cost, burst)
        else:
            again = RateLimiter(Rate(per_s, burst))
            again._served_until[5] = limiter._served_until[5]
            retried = again.ask(5, now_s + grant.wait_s, cost)
            assert retried
            assert retried.wait_s == 0  # whoever comes when told is served
        assert granted <= burst + (now_s - 1000.0) * per_s + 1e-3
        assert 0 <= grant.remaining <= burst


def test_bodies_together_are_bounded_and_given_back() -> None:
    budget = BodyBudget(100)
    with budget.lease() as first:
        first.take(60)
        with budget.lease() as second:
            second.take(40)
            with pytest.raises(ApiError) as refusal:
                second.take(1)
        assert (refusal.value.status, refusal.value.headers) == (503, {"Retry-After": "1"})
        assert budget.used_bytes == 60
    assert budget.used_bytes == 0


def test_every_answer_says_the_limits(api: Api) -> None:
    answers = [
        api.post(b'{"batch_id": "b"}'),
        api.post(b"{"),
        api.post(b"{", Content_Type="text/plain"),
        api.http.get("/api/v1/stats"),
        api.http.get("/api/v1/activity", params={"limit": "x"}),
    ]
    for answer in answers:
        assert {name.title() for name in answer.headers} >= {name.title() for name in RATE_HEADERS | BOUND_HEADERS}
    remaining = [int(answer.headers["RateLimit-Remaining"]) for answer in answers]
    assert max(remaining) <= int(answers[0].headers["RateLimit-Limit"])


STATIC_HEADERS = BOUND_HEADERS | {"RateLimit-Limit", "RateLimit-Policy"}
"""What can be said to somebody without a key."""


def test_an_answer_to_nobody_says_what_holds_for_everybody(api: Api) -> None:
    url = str(api.http.base_url).rstrip("/")
    answers = {
        "no key": httpx.get(f"{url}/api/v1/stats"),
        "no such key": httpx.get(f"{url}/api/v1/stats", headers={"Authorization": "Bearer km_none"}),
        "no such path": api.http.get("/api/v1/nothing"),
        "not with this method": api.http.put("/api/v1/stats"),
        "an odd expectation": api.http.get("/api/v1/stats", headers={"Expect": "miracles"}),
        "a long header": api.http.get("/api/v1/stats", headers={"X-Long": "x" * 20_000}),
        "many headers": api.http.get("/api/v1/stats", headers={f"X-{n}": "x" for n in range(300)}),
        "the document": httpx.get(f"{url}/api/openapi.json"),
        "a probe": httpx.get(f"{url}/health/live"),
    }
    statuses = [answer.status_code for answer in answers.values()]
    assert statuses == [401, 401, 404, 405, 417, 431, 400, 200, 200]
    for name, answer in answers.items():
        assert {header.title() for header in answer.headers} >= {header.title() for header in STATIC_HEADERS}, name


def test_asking_for_what_the_key_may_not_do_costs_the_same(api: Api) -> None:
    answers = [api.http.delete("/api/v1/sessions/s1") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [403, 403]
    limit, remaining = (int(answers[1].headers[f"RateLimit-{name}"]) for name in ("Limit", "Remaining"))
    assert remaining < limit


def test_without_a_rate_nothing_is_said_of_it(tmp_path: Path) -> None:
    database = tmp_path / "server.db"
    config = ServerConfig(database_url(database), port=0, rate_requests_per_s=0.0)
    with app_in_thread(config) as url, open_api(url, database, "acme") as api:
        headers = api.http.get("/api/v1/stats").headers
        assert "Km-Limit-Body-Bytes" in headers
        assert not [name for name in headers if name.startswith("ratelimit")]


def test_a_key_that_asks_too_often_is_told_when_to_come_again(tmp_path: Path) -> None:
    database = tmp_path / "server.db"
    config = ServerConfig(database_url(database), port=0, rate_requests_per_s=0.001, rate_requests_burst=2)
    with (
        app_in_thread(config) as url,
        open_api(url, database, "acme") as api,
        open_api(url, database, "acme") as other,
    ):
        assert [api.http.get("/api/v1/stats").status_code for _ in range(2)] == [200, 200]
        answer = api.post(msgspec.json.encode(make_batch([make_event(1)])))
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limited")
        assert 0 < int(answer.headers["Retry-After"]) <= 1000
        assert answer.headers["RateLimit-Remaining"] == "0"
        assert other.http.get("/api/v1/stats").json()["totals"]["events"] == 0


def test_events_are_counted_against_a_rate_before_any_is_stored(tmp_path: Path) -> None:
    database = tmp_path / "server.db"
    config = ServerConfig(database_url(database), port=0, rate_events_per_s=0.001, rate_events_burst=3)
    with app_in_thread(config) as url, open_api(url, database, "acme") as api:
        assert api.send(make_batch([make_event(1), make_event(2)])) == ["accepted"] * 2
        answer = api.post(msgspec.json.encode(make_batch([make_event(3), make_event(4)])))
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limited")
        assert int(answer.headers["Retry-After"]) > 0
        assert api.stats()["totals"]["events"] == 2


def test_the_bounds_of_body_batch_and_event(tmp_path: Path) -> None:
    database = tmp_path / "server.db"
    config = ServerConfig(
        database_url(database),
        port=0,
        max_body_bytes=20_000,
        max_inflated_bytes=30_000,
        max_batch_events=3,
        max_event_bytes=2_000,
    )
    with app_in_thread(config) as url, open_api(url, database, "acme") as api:
        assert api.post(b" " * 20_001).json()["error"]["code"] == "too_large"
        four = api.post(msgspec.json.encode(make_batch([make_event(number) for number in range(4)])))
        assert (four.status_code, four.json()["error"]["code"]) == (413, "too_many_events")
        long = make_event(1, payload="x" * 3_000, size_bytes=3_000)
        assert api.send(make_batch([long, make_event(2)])) == ["rejected: it is over 2,000 bytes", "accepted"]
        headers = api.http.get("/api/v1/stats").headers
        assert [headers[f"Km-Limit-{name}"] for name in ("Body-Bytes", "Batch-Events", "Event-Bytes")] == [
            "20000",
            "3",
            "2000",
        ]


def test_all_bodies_together_are_bounded(tmp_path: Path) -> None:
    """One that is half there takes the room; the next is told to come again, and later finds it free."""
    database = tmp_path / "server.db"
    config = ServerConfig(database_url(database), port=0, max_in_flight_bytes=100_000)
    with app_in_thread(config) as url, open_api(url, database, "acme") as api:
        head = (
            f"POST /api/v1/events/batch HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.key}\r\n"
            "Content-Type: application/json\r\nContent-Length: 99000\r\n\r\n"
        )
        body = msgspec.json.encode(make_batch([make_event(1)])).ljust(2_000)
        with socket.create_connection((urlsplit(url).hostname or "", urlsplit(url).port or 0), WAIT_S) as sock:
            sock.sendall(head.encode() + b" " * 98_000)
            wait_for(lambda: f"{IN_FLIGHT} 98000.0" in httpx.get(url + "/metrics", timeout=WAIT_S).text, "its bytes")
            answer = api.post(body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "server_busy")
            assert answer.headers["Retry-After"] == "1"
        wait_for(lambda: api.post(body).status_code == 200, "the room to be free again")
