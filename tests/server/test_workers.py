"""Several workers on one port: they share rates and numbers, one that dies is replaced, all end together."""

import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest

from tests.server.clients import WAIT_S, Api, make_batch, make_event, new_key
from tests.support.postgres import Cluster
from tests.support.processes import Running, start_server, wait_for

WORKERS = 2
pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are found in /proc")


@pytest.fixture
def crew(postgres: Cluster, tmp_path: Path) -> Iterator[tuple[Running, str]]:
    """A server with two workers on PostgreSQL, and the URL of its database."""
    url = postgres.new_database()
    extra = ("--workers", str(WORKERS), "--rate-requests-per-s", "0.001", "--rate-requests-burst", "40")
    running = start_server(tmp_path / "crew", extra=extra, database_url=url)
    try:
        yield running, url
    finally:
        assert running.stop() == 0


def workers_of(pid: int) -> set[int]:
    """The processes that *pid* started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(child) for child in children}


def ask_once(url: str) -> None:
    """On a connection of its own: any worker may take it."""
    assert httpx.get(url + "/health/live", timeout=WAIT_S).status_code == 200


def count_live(url: str) -> int:
    """How many requests to /health/live all workers have answered."""
    text = httpx.get(url + "/metrics", timeout=WAIT_S).text
    found = re.search(r'km_http_requests_total\{method="GET",route="/health/live",status="200"\} (\d+)', text)
    return int(found[1]) if found else 0


def test_workers_share_the_port_the_numbers_and_the_rates(crew: tuple[Running, str]) -> None:
    running, database = crew
    assert len(workers_of(running.process.pid)) == WORKERS
    before = count_live(running.url)
    threads = [threading.Thread(target=ask_once, args=(running.url,)) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert count_live(running.url) == before + 24
    pids = {json.loads(line).get("pid") for line in running.log.read_text().splitlines()}
    assert len(pids - {None}) == WORKERS
    key = new_key(database, "acme")
    statuses = []
    for _ in range(45):  # each on a connection of its own
        headers = {"Authorization": f"Bearer {key}"}
        statuses.append(httpx.get(running.url + "/api/v1/stats", headers=headers, timeout=WAIT_S).status_code)
    assert statuses == [200] * 40 + [429] * 5


def test_a_worker_that_dies_is_replaced_and_nothing_is_lost(crew: tuple[Running, str]) -> None:
    running, database = crew
    first = workers_of(running.process.pid)
    os.kill(min(first), signal.SIGKILL)
    wait_for(lambda: len(workers_of(running.process.pid) - first) == 1, "a new worker")
    wait_for(lambda: running.log.read_text().count('"started"') == WORKERS + 1, "it to serve")
    api = Api(running.url, new_key(database, "acme"))
    with api.http:
        assert api.send(make_batch([make_event(1), make_event(2)])) == ["accepted"] * 2
    assert "worker_ended" in running.log.read_text()


def test_the_same_batch_to_both_workers_at_once_counts_once(crew: tuple[Running, str]) -> None:
    running, database = crew
    key = new_key(database, "acme")
    body = msgspec.json.encode(make_batch([make_event(number) for number in range(50)]))
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    verdicts: list[str] = []

    def send() -> None:
        answer = httpx.post(running.url + "/api/v1/events/batch", content=body, headers=headers, timeout=WAIT_S)
        assert answer.status_code == 200, answer.text
        verdicts.extend(verdict["status"] for verdict in answer.json()["verdicts"])

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert sorted(verdicts) == ["accepted"] * 50 + ["duplicate"] * 350
    stats = httpx.get(running.url + "/api/v1/stats", headers=headers, timeout=WAIT_S).json()
    assert stats["totals"]["events"] == 50


def test_workers_end_when_their_parent_is_killed(postgres: Cluster, tmp_path: Path) -> None:
    running = start_server(tmp_path / "crew", extra=("--workers", "2"), database_url=postgres.new_database())
    workers = workers_of(running.process.pid)
    assert running.stop(signal.SIGKILL) == -signal.SIGKILL
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), "the workers to end")


def test_a_server_whose_workers_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="worker") as failure:
        start_server(tmp_path / "crew", extra=("--workers", "2"), database_url="postgresql://km@127.0.0.1:9/km")
    assert "hint: " in str(failure.value)
    assert "Traceback" not in str(failure.value)
