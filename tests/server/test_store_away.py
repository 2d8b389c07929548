"""PostgreSQL goes away and comes back under a running server: 503 with a time to come back, then all is well."""

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import httpx
import msgspec
import pytest
from km_server.errors import StoreBusy
from km_server.store.postgres import driver

from tests.server.clients import WAIT_S, arrive, make_batch, make_event, open_api
from tests.server.story import SESSIONS, conversation, opened, read_all
from tests.support.postgres import Cluster, running_postgres
from tests.support.processes import running_server, wait_for


@pytest.fixture
def own_cluster() -> Iterator[Cluster]:
    """A cluster that may be stopped."""
    with running_postgres() as cluster:
        if cluster.process is None:
            pytest.skip("the server that KM_TEST_POSTGRES names is not ours to stop")
        yield cluster


class Line:
    """A line to a server that can be cut without anybody being told: what is sent then is neither taken nor refused."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._flows: list[asyncio.Task[None]] = []
        self._writers: list[asyncio.StreamWriter] = []

    async def open(self) -> int:
        """Returns the port of this end."""
        self._server = await asyncio.start_server(self._join, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        self._writers += [writer, far_writer]
        self._flows += [
            asyncio.create_task(self._flow(reader, far_writer)),
            asyncio.create_task(self._flow(far_reader, writer)),
        ]

    async def _flow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
        writer.close()

    def cut(self) -> None:
        """From now on nothing passes on the connections that there are; new ones are as good as ever."""
        for flow in self._flows:
            flow.cancel()

    async def aclose(self) -> None:
        self._server.close()
        self.cut()
        for writer in self._writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def test_a_line_that_is_dead_in_silence_costs_a_bounded_time(
    postgres: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL's machine has vanished, another one takes its place: whoever waits is told, and the next try works."""
    parts = urlsplit(postgres.new_database())

    async def scenario() -> None:
        line = Line(str(parts.hostname), int(parts.port or 0))
        port = await line.open()
        login = parts.netloc.rpartition("@")[0]
        url = urlunsplit(parts._replace(netloc=f"{login}@127.0.0.1:{port}"))
        async with opened(url) as (_, tenant):
            await tenant.ingest(SESSIONS, arrive(conversation(1)))
            line.cut()
            monkeypatch.setattr(driver.Terms, "whole_s", 0.3)
            with pytest.raises(StoreBusy) as refusal:
                await tenant.ingest(SESSIONS, arrive(conversation(2)))
            assert isinstance(refusal.value.__cause__, TimeoutError)
            monkeypatch.setattr(driver.Terms, "whole_s", 10.0)
            for _ in range(driver.POOL_MAX):  # other connections of the pool may be as dead, and are found out in turn
                with contextlib.suppress(StoreBusy):
                    await tenant.ingest(SESSIONS, arrive(conversation(2)))
                    break
            assert len(await read_all(tenant)) == 4
        await line.aclose()

    asyncio.run(scenario())


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
