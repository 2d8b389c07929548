"""A running server removes by itself what a tenant no longer keeps."""

import asyncio
import time
from pathlib import Path

import httpx
import pytest
from km_server.config import ServerConfig
from km_server.store.opening import open_store
from km_server.store.sqlite import connection

from tests.server.clients import WAIT_S, app_in_thread, database_url, make_batch, make_event, open_api, open_file
from tests.support.processes import wait_for

DAY_NS = 24 * 3600 * 10**9


def set_retention(database: Path, tenant: str, days: int) -> None:
    async def change() -> None:
        async with open_store(database_url(database)) as store:
            assert await store.set_tenant(tenant, 0.001, days)

    asyncio.run(change())


def test_what_is_too_old_goes_by_itself(tmp_path: Path) -> None:
    database = tmp_path / "server.db"
    now_ns = time.time_ns()
    config = ServerConfig(database_url(database), port=0, retention_check_s=0.1)
    with (
        app_in_thread(config) as url,
        open_api(url, database, "acme") as api,
        open_api(url, database, "other") as other,
    ):
        events = [make_event(number, at_ns=now_ns - number * DAY_NS) for number in range(1, 6)]
        api.send(make_batch(events))
        other.send(make_batch(events))

        set_retention(database, "acme", 3)
        wait_for(lambda: len(api.feed()) == 3, "the oldest to go")
        assert api.stats()["totals"]["events"] == 3
        assert len(other.feed()) == 5
        wait_for(lambda: "km_retention_events_total 2.0" in httpx.get(url + "/metrics", timeout=WAIT_S).text, "a count")
        refused = api.send(make_batch([make_event(9, at_ns=now_ns - 9 * DAY_NS)]))
        assert refused[0].startswith("rejected: it is older")
        assert api.get("/api/v1/losses")["refused"] == {"expired": 1}


def test_a_round_that_fails_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Somebody else holds the file's write lock for a while."""
    monkeypatch.setattr(connection, "BUSY_TIMEOUT_MS", 50)
    database = tmp_path / "server.db"
    config = ServerConfig(database_url(database), port=0, retention_check_s=0.1)
    said: list[str] = []

    def has_failed() -> bool:
        said.append(capfd.readouterr().out)
        return "upkeep_failed" in "".join(said)

    with app_in_thread(config) as url, open_api(url, database, "acme") as api:
        api.send(make_batch([make_event(1, at_ns=time.time_ns() - 5 * DAY_NS)]))
        set_retention(database, "acme", 3)
        holder = open_file(database)
        holder.execute("BEGIN IMMEDIATE")
        wait_for(has_failed, "a round to fail")
        holder.execute("ROLLBACK")
        holder.close()
        wait_for(lambda: api.feed() == [], "another round")
