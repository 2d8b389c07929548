"""PostgreSQL goes away and comes back under a running server: 503 with a time to come back, then all is well."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest

from tests.server.clients import WAIT_S, make_batch, make_event, open_api
from tests.support.postgres import Cluster, running_postgres
from tests.support.processes import running_server, wait_for


@pytest.fixture
def own_cluster() -> Iterator[Cluster]:
    """A cluster that may be stopped."""
    with running_postgres() as cluster:
        if cluster.process is None:
            pytest.skip("the server that KM_TEST_POSTGRES names is not ours to stop")
        yield cluster


def test_the_store_goes_and_comes_back(own_cluster: Cluster, tmp_path: Path) -> None:
    url = own_cluster.new_database()
    with running_server(tmp_path / "away", database_url=url) as running, open_api(running.url, url, "acme") as api:
        assert api.send(make_batch([make_event(1)])) == ["accepted"]
        payload = "x" * 2**20
        for first in range(10, 60, 10):
            large = [make_event(first + n, payload=payload, size_bytes=len(payload)) for n in range(10)]
            api.send(make_batch(large))
        with api.http.stream("GET", "/api/v1/export", params={"include": "payload"}) as export:
            pieces = export.iter_raw(1024)
            assert next(pieces)
            own_cluster.stop()
            with pytest.raises(httpx.RemoteProtocolError):  # cut off in a way that nobody can take for the end
                for _ in pieces:
                    pass
        body = msgspec.json.encode(make_batch([make_event(2)]))
        for answer in (api.post(body), api.http.get("/api/v1/stats"), api.http.get("/api/v1/export")):
            assert answer.status_code == 503, answer.text
            assert int(answer.headers["Retry-After"]) > 0
            assert answer.json()["error"]["hint"] is not None
        ready = httpx.get(running.url + "/health/ready", timeout=WAIT_S)
        assert (ready.status_code, ready.json()["error"]["code"]) == (503, "not_ready")
        assert httpx.get(running.url + "/health/live", timeout=WAIT_S).status_code == 200
        own_cluster.start()
        wait_for(lambda: api.post(body).status_code == 200, "the store to be back", WAIT_S)
        assert httpx.get(running.url + "/health/ready", timeout=WAIT_S).status_code == 200
        assert api.stats()["totals"]["events"] == 52
    assert "Traceback" not in running.log.read_text()
