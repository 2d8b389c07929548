"""What only an attacker sends: it gets a 4xx, in every place where it fits, and leaves no row."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
import zstandard
from km_server.api.routes import OPERATIONS
from km_server.store.values import Scope

from kmd.wire import Event, Session
from tests.server.clients import Api, ask_file, make_batch, make_event, make_session, open_api
from tests.server.conftest import NUMBERS, Served

MIB = 2**20
TABLES = ("events", "sessions", "rollups", "latencies", "series", "senders")
INJECTIONS = [
    "' OR '1'='1",
    "'; DROP TABLE events; --",
    '" OR ""="',
    "1) UNION SELECT digest FROM api_keys --",
    "\\'; SELECT pg_sleep(30); --",
    "$1",
    "%' OR name LIKE '%",
    "{tenant_id}",
]
SURROGATE = "\\ud800"


def count_rows(database: Path) -> dict[str, int]:
    return {table: ask_file(database, f"SELECT count(*) FROM {table}")[0][0] for table in TABLES}  # noqa: S608


def deep(levels: int) -> str:
    return "[" * levels + "]" * levels


def body(event: str = "", session: str = "", top: str = "") -> bytes:
    """A batch of one event as text; each part is laid over the sound fields (a later member wins)."""
    parts = {
        "event": json.dumps(msgspec.to_builtins(make_event(1, "attack")))[:-1] + event + "}",
        "session": json.dumps(msgspec.to_builtins(make_session("attack")))[:-1] + session + "}",
    }
    text = f'{{"batch_id": "b", "sessions": [{parts["session"]}], "events": [{parts["event"]}]{top}}}'
    return text.encode("utf-8", "surrogatepass")


def list_texts(shape: type[msgspec.Struct]) -> list[str]:
    """The fields that hold text, `session` first; but a payload: that may hold anything."""
    fields = msgspec.structs.fields(shape)
    texts = [field.name for field in fields if field.type in (str, str | None)]
    return [name for name in texts if not name.startswith("payload")]


BODIES = {
    "deep beside": body(top=f', "later": {deep(64)}'),
    "deep in the event": body(event=f', "later": {deep(64)}'),
    "deep in the session": body(session=f', "later": {deep(64)}'),
    "deep objects": body(event=', "later": ' + '{"a":' * 64 + "1" + "}" * 64),
    "very deep": body(event=f', "later": {deep(100_000)}'),
    "deep instead": deep(64).encode(),
    "deep instead of an event": f'{{"batch_id": "b", "events": [{deep(64)}]}}'.encode(),
    "NUL in an unknown field": body(event=', "later": {"a\\u0000": 1}'),
    **{f"NUL in an event's {name}": body(event=f', "{name}": "a\\u0000b"') for name in list_texts(Event)},
    **{f"NUL in a session's {name}": body(session=f', "{name}": "a\\u0000b"') for name in list_texts(Session)[1:]},
    "NUL in a session's own name": body(', "session": "a\\u0000b"', ', "session": "a\\u0000b"'),
    "NUL in the batch's name": b'{"batch_id": "\\u0000", "sent_by": "x", "lost_events": 9}',
    "NUL in the sender": b'{"batch_id": "b", "sent_by": "a\\u0000", "lost_events": 9}',
    "a raw NUL": body(event=', "method": "a\x00b"'),
    "a lone surrogate in a method": body(event=f', "method": "{SURROGATE}"'),
    "a lone surrogate in a payload": body(event=f', "payload": "{SURROGATE}"'),
    "a lone surrogate in an unknown field": body(event=f', "later": "{SURROGATE}"'),
    "a lone surrogate as bytes": body(event=', "target": "\ud800"'),
    "a lone surrogate in the batch's name": f'{{"batch_id": "{SURROGATE}", "lost_events": 9}}'.encode(),
    "a huge offset": body(event=', "offset": 1' + "0" * 400),
    "a huge time": body(event=', "at_ns": 1e400'),
    "a huge number in an unknown field": body(event=', "later": 1e400'),
    "a huge whole number in an unknown field": body(event=', "later": [{"a": 1' + "0" * 400 + "}]"),
    "a negative one": body(event=', "later": -9223372036854775809'),
    "a huge loss": b'{"batch_id": "b", "lost_events": 1' + b"0" * 400 + b"}",
    "a negative offset": body(event=', "offset": -1'),
    "a payload that is not its size": body(event=', "size_bytes": 7'),
    "an enormous unknown field": body(event=', "later": "' + "x" * 100_000 + '"'),
    "NaN": body(event=', "at_ns": NaN'),
    "two events in one": body() + body(),
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies(api: Api, served: Served, name: str) -> None:
    before = count_rows(served.file)
    answer = api.post(BODIES[name])
    assert 400 <= answer.status_code < 500, answer.text
    assert set(answer.json()["error"]) == {"code", "message", "hint"}
    assert count_rows(served.file) == before


def test_a_single_event_too(api: Api, served: Served) -> None:
    before = count_rows(served.file)
    for event in (', "method": "\\u0000"', f', "later": {deep(64)}', ', "offset": 1' + "0" * 400):
        parts = json.loads(body())
        text = json.dumps(parts["events"][0])[:-1] + event + "}"
        answer = api.post(
            f'{{"session": {json.dumps(parts["sessions"][0])}, "event": {text}}}'.encode(), "/api/v1/events"
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "rejected")
    assert count_rows(served.file) == before


def test_a_good_event_beside_is_taken_all_the_same(api: Api) -> None:
    batch = json.loads(body())
    good = msgspec.to_builtins(make_event(2, "attack"))
    bad = {**batch["events"][0], "later": json.loads(deep(64))}
    batch["events"] = [bad, good]
    answer = api.post(json.dumps(batch).encode())
    assert answer.status_code == 200
    assert [verdict["status"] for verdict in answer.json()["verdicts"]] == ["rejected", "accepted"]


BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "gzip of blanks": ("gzip", lambda: gzip.compress(b" " * (100 * MIB), 6)),
    "zstd of blanks": ("zstd", lambda: zstandard.compress(b" " * (200 * MIB), 3)),
    "gzip in gzip": ("gzip", lambda: gzip.compress(gzip.compress(b" " * (50 * MIB)))),
    "a JSON string": ("gzip", lambda: gzip.compress(b'{"batch_id":"' + b"a" * (70 * MIB) + b'"}')),
    "many members": ("gzip", lambda: gzip.compress(b"") * 100_000),
    "a million lists": ("zstd", lambda: zstandard.compress(b'{"batch_id":"b","later":[' + b"[]," * 10 * MIB + b"[]]}")),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(api: Api, served: Served, name: str) -> None:
    before = count_rows(served.file)
    encoding, make = BOMBS[name]
    answer = api.post(make(), Content_Encoding=encoding)
    assert answer.status_code in (400, 413), answer.text
    assert count_rows(served.file) == before


def questions() -> list[tuple[str, str, str]]:
    """Every parameter of every operation behind a key, in the query and in the path."""
    found = []
    for one in OPERATIONS:
        if one.scope is None or one.method == "POST":
            continue
        path = one.path.replace("{session}", "s1").replace("{id}", "1")
        found += [(one.method, path, field.encode_name) for field in msgspec.structs.fields(one.parameters)]
        found += [(one.method, one.path, part.name) for part in one.in_path]
    return found


@pytest.mark.parametrize(("method", "path", "name"), questions())
def test_sql_in_every_parameter(served: Served, method: str, path: str, name: str) -> None:
    """It finds nothing or is refused, and everything is still there."""
    with open_api(served.url, served.database_url, f"attacked-{next(NUMBERS)}", *Scope) as api:
        api.send(make_batch([make_event(1), make_event(2)]))
        before: dict[str, Any] = api.stats()
        rows = count_rows(served.file)
        for text in INJECTIONS:
            if f"{{{name}}}" in path:
                answer = api.http.request(method, path.replace(f"{{{name}}}", quote(text, safe="")))
                assert answer.status_code == 404, answer.text
                continue
            if path == "/api/v1/live" and name in ("session", "server", "method", "target", "text"):
                continue  # any text is a fine filter there, and the feed would not end
            answer = api.http.request(method, path, params={name: text})
            assert answer.status_code in (200, 400), answer.text
            if answer.status_code == 200 and path == "/api/v1/activity":
                assert answer.json()["items"] == []
        assert api.stats() == before
        assert count_rows(served.file) == rows


JUNK = ("%00", "a%00b", "%ED%A0%80", "%FF", "1" + "0" * 400, "%F0%28%8C%28")


@pytest.mark.parametrize(("method", "path", "name"), [one for one in questions() if one[0] == "GET"])
def test_junk_in_every_parameter(api: Api, method: str, path: str, name: str) -> None:
    for value in JUNK:
        is_text = name in ("session", "server", "method", "target", "text") and value.isdecimal()
        if is_text and path == "/api/v1/live":
            continue  # a fine filter, and the feed would not end
        asked = path.replace(f"{{{name}}}", value) if f"{{{name}}}" in path else f"{path}?{name}={value}"
        answer = api.http.get(asked)
        assert answer.status_code in ((200, 400, 404) if is_text else (400, 404)), answer.text
