"""Keys, scopes, and that no tenant sees another."""

import itertools
from collections.abc import Callable

import httpx
import msgspec
import pytest
from km_server.api.routes import OPERATIONS
from km_server.store.values import Scope

from tests.server.clients import WAIT_S, Api, make_answer, make_batch, make_event, make_session, open_api
from tests.server.conftest import Served

ROUTES = [
    (one.method, one.path.replace("{session}", "s").replace("{id}", "1"), one.scope) for one in OPERATIONS if one.scope
]
NUMBERS = itertools.count(1)


@pytest.mark.parametrize(("method", "path", "scope"), ROUTES)
@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer km_",
        "Bearer km_unknown",
        "Bearer " + "km_" + "x" * 300,
        "Basic km_unknown",
        "km_unknown",
        "Bearer km_\x80\xff",
        "bearer nothing",
    ],
)
def test_without_a_live_key_nothing_is_told(
    served: Served, method: str, path: str, scope: Scope, header: str | None
) -> None:
    headers = {} if header is None else {b"Authorization": header.encode("latin-1")}
    answer = httpx.request(method, served.url + path, headers=headers, timeout=WAIT_S)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.json()["error"]["hint"]


@pytest.mark.parametrize(("method", "path", "scope"), ROUTES)
@pytest.mark.parametrize("held", list(Scope))
def test_a_key_may_do_what_its_scope_says(served: Served, method: str, path: str, scope: Scope, held: Scope) -> None:
    with open_api(served.url, served.database_url, f"scoped-{next(NUMBERS)}", held) as api:
        junk = {"after": "x"}  # the live feed would not end
        answer = api.http.request(
            method, path, params=junk, headers={"Content-Type": "application/json"}, content=b"{}"
        )
    if held is scope:
        assert answer.status_code in (200, 400, 404)
    else:
        assert answer.status_code == 403
        assert scope in answer.json()["error"]["message"]


def test_the_scheme_is_not_case_sensitive(api: Api) -> None:
    assert api.http.get("/api/v1/stats", headers={"Authorization": f"bEARER {api.key}"}).status_code == 200


def read_everything(api: Api) -> list[object]:
    questions: list[Callable[[], object]] = [
        lambda: api.feed(include="payload"),
        lambda: api.feed(session="shared"),
        lambda: api.feed(server="files"),
        api.stats,
        lambda: api.get("/api/v1/sessions"),
        lambda: api.get("/api/v1/sessions/shared", include="payload"),
        lambda: api.get("/api/v1/losses"),
        lambda: api.http.get("/api/v1/export", params={"include": "payload"}).text,
        lambda: api.http.get("/api/v1/export", params={"format": "har", "include": "payload"}).text,
    ]
    return [question() for question in questions]


def attack(other: Api, events: list[int]) -> list[tuple[str, httpx.Response]]:
    """Every way of another tenant to get at, or at least to touch, the session `shared` and its *events*."""
    tries = [
        ("GET", "/api/v1/sessions/shared"),
        ("DELETE", "/api/v1/sessions/shared"),
        ("DELETE", "/api/v1/events?from=0"),
        ("GET", "/api/v1/activity?session=shared&include=payload"),
        ("GET", "/api/v1/activity?text=tools"),
        ("GET", "/api/v1/export?include=payload"),
        ("GET", "/api/v1/stats?server=files"),
        ("GET", "/api/v1/sessions?server=files"),
        *(("GET", f"/api/v1/events/{number}") for number in events),
    ]
    return [(path, other.http.request(method, path)) for method, path in tries]


def test_no_endpoint_reaches_another_tenant(api: Api, served: Served) -> None:
    """A key with every scope, of another tenant, that knows every id and name of the first."""
    api.send(make_batch([make_event(1, "shared"), make_answer(1, 5_000_000, session="shared")]))
    api.post(b'{"batch_id": "b", "sent_by": "laptop", "lost_events": 3}')
    before = read_everything(api)
    ids = [item["id"] for item in api.feed()]
    with open_api(served.url, served.database_url, f"thief-{next(NUMBERS)}", *Scope) as thief:
        for path, answer in attack(thief, ids):
            assert answer.status_code in (200, 404), path
            assert "shared" not in answer.text.replace("no such", ""), path
            assert "tools/call" not in answer.text, path
        assert thief.get("/api/v1/losses")["senders"] == []
        assert thief.stats()["totals"]["events"] == 0
    assert read_everything(api) == before


def test_tenants_do_not_see_each_other(api: Api, other_api: Api) -> None:
    """The same session, identities and names on both sides: what one does changes nothing for the other."""
    events = [make_event(1, "shared"), make_answer(1, 5_000_000, session="shared")]
    assert api.send(make_batch(events)) == ["accepted"] * 2
    before = read_everything(api)
    assert other_api.feed() == []
    assert other_api.stats()["totals"]["events"] == 0
    assert other_api.stats()["totals"]["sessions"] == 0
    assert other_api.stats()["groups"] == []

    unknown = other_api.send(make_batch([make_event(1, "shared")], sessions=[]))
    assert unknown[0].startswith("rejected")
    theirs = [make_event(number, "shared", target="theirs") for number in (1, 2, 3)]
    described = [make_session("shared", name="other", ended_at_ns=1)]
    assert other_api.send(make_batch(theirs, described)) == ["accepted"] * 3
    assert read_everything(api) == before
    assert {item["server"] for item in other_api.feed()} == {"other"}
    assert {group["target"] for group in other_api.stats()["groups"]} == {"theirs"}


def test_a_cursor_of_one_tenant_shows_nothing_to_another(api: Api, other_api: Api) -> None:
    api.send(make_batch([make_event(number) for number in range(3)]))
    cursor = api.activity(limit=1)["next_cursor"]
    assert other_api.activity(cursor=cursor) == {"items": [], "next_cursor": None}


def test_answers_are_not_to_be_cached_or_guessed_at(api: Api, served: Served) -> None:
    for answer in (api.http.get("/api/v1/stats"), api.http.get("/api/v1/nowhere"), api.post(b"{")):
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "ython" not in answer.headers["Server"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/api/v1/nowhere", 404),
        ("GET", "/api/v1/events/batch", 405),
        ("POST", "/api/v1/stats", 405),
        ("DELETE", "/health/live", 405),
        ("GET", "/api/v1/stats/", 404),
        ("GET", "//etc/passwd", 404),
        ("GET", "/%ff%00", 404),
    ],
)
def test_other_paths_and_methods(api: Api, method: str, path: str, status: int) -> None:
    answer = api.http.request(method, path)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"code", "message", "hint"}
    assert (status == 405) == ("Allow" in answer.headers)


def test_nothing_secret_reaches_the_log(api: Api, served: Served) -> None:
    event = make_event(1, payload="SECRET-PAYLOAD", size_bytes=14, target="SECRET-TARGET")
    api.send(make_batch([event], batch_id="SECRET-BATCH"))
    api.post(b'{"batch_id": "SECRET-JUNK", "events": 5}')
    api.http.get("/api/v1/activity", params={"method": "SECRET-QUERY"})
    api.http.get("/SECRET-PATH")
    api.http.get("/api/v1/stats", headers={"Authorization": "Bearer km_SECRET-KEY"})
    api.http.get("/api/v1/stats", headers={"X-SECRET": "x" * 20_000})
    log = served.log.read_text()
    assert "SECRET" not in log
    assert api.key not in log
    assert msgspec.json.decode(log.splitlines()[-1])["event"]
