"""The live feed: what is committed comes, filtered, resumable; it ends with its key and with the server."""

import json
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from km_server.api import live
from km_server.config import ServerConfig
from km_server.store.values import News, StoredEvent

from tests.server.clients import WAIT_S, Api, app_in_thread, database_url, make_batch, make_event, open_api
from tests.server.test_commands import run
from tests.support.processes import create_key, start_server, wait_for


@dataclass
class Follower:
    """Reads a feed in a thread. `items` gets the data of each event, None at the end; `mark` the last id."""

    items: "queue.Queue[dict[str, object] | None]" = field(default_factory=queue.Queue)
    mark: str = ""
    started: threading.Event = field(default_factory=threading.Event)

    def read(self, response: httpx.Response) -> None:
        try:
            for line in response.iter_lines():
                name, _, value = line.partition(": ")
                if name == "id":
                    self.mark = value
                    self.started.set()
                elif name == "data":
                    self.items.put(json.loads(value))
        except httpx.TransportError:
            pass
        self.items.put(None)

    def next(self) -> dict[str, object] | None:
        return self.items.get(timeout=WAIT_S)


@contextmanager
def following(api: Api, last: str = "", **parameters: str | int) -> Iterator[Follower]:
    headers = {"Last-Event-ID": last} if last else {}
    follower = Follower()
    with api.http.stream("GET", "/api/v1/live", params=parameters, headers=headers) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["Content-Type"].startswith("text/event-stream")
        thread = threading.Thread(target=follower.read, args=(response,), daemon=True)
        thread.start()
        yield follower


def test_what_is_committed_comes(api: Api, other_api: Api) -> None:
    api.send(make_batch([make_event(0)]))
    with following(api) as follower:
        assert follower.started.wait(WAIT_S)
        other_api.send(make_batch([make_event(7)]))
        api.send(make_batch([make_event(1), make_event(2, target="write")]))
        api.send(make_batch([make_event(1), make_event(3)]))
        items = [follower.next() for _ in range(3)]
        assert [item and item["offset"] for item in items] == [100, 200, 300]
        assert items[0] == api.feed(order="oldest_first")[1]


def test_only_what_was_asked_for_comes(api: Api) -> None:
    with following(api, target="write") as follower:
        assert follower.started.wait(WAIT_S)
        api.send(make_batch([make_event(1), make_event(2, target="write"), make_event(3)]))
        item = follower.next()
        assert item
        assert item["offset"] == 200


def test_a_follower_goes_on_where_it_was(api: Api) -> None:
    with following(api) as follower:
        assert follower.started.wait(WAIT_S)
        api.send(make_batch([make_event(1)]))
        follower.next()
        mark = wait_for(lambda: follower.mark, "a mark")
    api.send(make_batch([make_event(number) for number in range(2, 1200)][:900]))
    with following(api, last=mark) as follower:
        seen: set[object] = set()
        while 90_100 not in seen:
            item = follower.next()
            assert item
            seen.add(item["offset"])
        assert seen >= {number * 100 for number in range(2, 902)}


def test_the_mark_comes_with_the_last_event_of_a_portion() -> None:
    """Earlier, a reader that is cut off would miss the rest; later, it would get all of it again."""
    events = [StoredEvent(number, "files", make_event(number), None) for number in range(3)]
    blocks = live.render_news(News(events, 77), 0.001).decode().split("\n\n")[:-1]
    assert [block.startswith("id: 77\n") for block in blocks] == [False, False, True]
    assert [json.loads(block.rpartition("data: ")[2])["id"] for block in blocks] == [0, 1, 2]
    assert live.render_news(News((), 78), 0.001) == b": alive\nid: 78\n\n"


@pytest.mark.parametrize("query", ["after=x", "after=-1", "after=9" + "0" * 30, "kind=x", "limit=5"])
def test_junk_is_refused(api: Api, query: str) -> None:
    assert api.http.get(f"/api/v1/live?{query}").status_code == 400
    assert api.http.get("/api/v1/live", headers={"Last-Event-ID": "x"}).status_code == 400


def test_a_feed_ends_with_the_server(tmp_path: Path) -> None:
    database = tmp_path / "server.db"
    running = start_server(database)
    api = Api(running.url, create_key(database))
    with api.http, following(api) as follower:
        assert follower.started.wait(WAIT_S)
        assert running.stop() == 0
        assert follower.next() is None
    log = running.log.read_text()
    assert "Traceback" not in log
    assert "cut_off" not in log


def test_a_feed_ends_with_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the store wakes its followers more often than the key is looked at."""
    monkeypatch.setattr(live, "HEARTBEAT_S", 0.5)
    monkeypatch.setattr("km_server.store.sqlite.store.NEWS_POLLED_S", 0.05)
    database = tmp_path / "server.db"
    with (
        app_in_thread(ServerConfig(database_url(database), port=0)) as url,
        open_api(url, database, "acme") as api,
        following(api) as follower,
    ):
        assert follower.started.wait(WAIT_S)
        assert run("keys", "revoke", "1", "--database-url", database_url(database)).returncode == 0
        assert follower.next() is None


def test_what_nobody_asked_for_does_not_hold_up_what_is_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A portion in which nothing matches is no reason to wait for the next commit."""
    monkeypatch.setattr(live, "PORTION", 5)
    monkeypatch.setattr(live, "HEARTBEAT_S", 4 * WAIT_S)
    monkeypatch.setattr("km_server.store.sqlite.store.NEWS_POLLED_S", 4 * WAIT_S)
    database = tmp_path / "server.db"
    with (
        app_in_thread(ServerConfig(database_url(database), port=0)) as url,
        open_api(url, database, "acme") as api,
    ):
        events = [*(make_event(number) for number in range(30)), make_event(30, target="needle")]
        api.send(make_batch(events))
        with following(api, last="0", text="needle") as follower:
            item = follower.next()
            assert item
            assert item["target"] == "needle"


def test_feeds_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("km_server.app.LIVE_MAX", 1)
    database = tmp_path / "server.db"
    with (
        app_in_thread(ServerConfig(database_url(database), port=0)) as url,
        open_api(url, database, "acme") as api,
        following(api) as follower,
    ):
        assert follower.started.wait(WAIT_S)
        refused = api.http.get("/api/v1/live")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_busy")
        assert refused.headers["Retry-After"]
