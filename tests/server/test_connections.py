"""Connections that are slow, stuck, too many or no HTTP at all; and those that are under way when the server ends."""

import json
import re
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import msgspec
import pytest
from km_server.config import ServerConfig

from tests.server.clients import WAIT_S, Api, app_in_thread, ask_file, database_url, make_batch, make_event, open_api
from tests.server.conftest import Served
from tests.support.processes import create_key, start_server, wait_for

HOST = "Host: x\r\n"


@contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=WAIT_S) as sock:
        yield sock


def read_all(sock: socket.socket) -> bytes:
    """Everything up to the end of the connection."""
    data = b""
    try:
        while piece := sock.recv(65536):
            data += piece
    except ConnectionResetError:
        pass  # it hung up while we still sent: what it said came before
    return data


def is_reset(sock: socket.socket) -> bool:
    """Whether the other side has hung up, found out without reading."""
    try:
        sock.sendall(b"\r\n")
    except OSError:
        return True
    return False


def read_error(raw: bytes) -> tuple[int, str]:
    """Status and code of an answer of our shape."""
    head, _, body = raw.partition(b"\r\n\r\n")
    assert b"application/json" in head
    assert b"nosniff" in head
    error = json.loads(body)["error"]
    assert set(error) == {"code", "message", "hint"}
    return int(head.split()[1]), error["code"]


@pytest.fixture
def impatient(tmp_path: Path) -> Iterator[str]:
    config = ServerConfig(database_url(tmp_path / "server.db"), port=0, head_timeout_s=0.5)
    with app_in_thread(config) as url:
        yield url


@pytest.mark.parametrize("begun", [b"", b"GET /hea", b"GET /health/live HTTP/1.1\r\nHost: x\r\nX-Long: "])
def test_a_head_that_does_not_come_is_cut_off(impatient: str, begun: bytes) -> None:
    with connected(impatient) as sock:
        sock.sendall(begun)
        assert read_error(read_all(sock)) == (408, "slow_head")


def test_dripping_does_not_extend_the_time_for_a_head(impatient: str) -> None:
    """A byte whenever one is wanted: the connection ends all the same."""
    with connected(impatient) as sock:
        sock.sendall(b"GET /health/live HTTP/1.1\r\nX-Long: ")
        ended = threading.Event()

        def drip() -> None:
            while not ended.wait(0.02):
                try:
                    sock.sendall(b"a")
                except OSError:
                    return

        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            assert b"408" in read_all(sock)[:20]
        finally:
            ended.set()
            dripping.join(WAIT_S)


def test_the_second_head_on_a_connection_is_bounded_too(impatient: str) -> None:
    with connected(impatient) as sock:
        sock.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")
        sock.sendall(b"GET /hea")
        assert read_error(read_all(sock)) == (408, "slow_head")


def test_an_idle_connection_is_closed_without_a_word(tmp_path: Path) -> None:
    config = ServerConfig(database_url(tmp_path / "server.db"), port=0, idle_timeout_s=0.3)
    with app_in_thread(config) as url, connected(url) as sock:
        sock.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        first = sock.recv(65536)
        assert first.endswith(b"}")
        assert read_all(sock) == b""


def test_a_head_that_has_begun_is_not_idle(tmp_path: Path) -> None:
    """The time for an idle connection is over while the next head comes: it has its own time."""
    config = ServerConfig(database_url(tmp_path / "server.db"), port=0, idle_timeout_s=0.1, head_timeout_s=WAIT_S)
    with app_in_thread(config) as url, connected(url) as sock:
        sock.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n")
        wait_for(
            lambda: "km_http_connections 2.0" in httpx.get(url + "/metrics", timeout=WAIT_S).text, "the connection"
        )
        with connected(url) as later:  # it outlives another one that begins, idles and is closed
            later.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            assert read_all(later).startswith(b"HTTP/1.1 200")
        sock.sendall(b"\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
        (b"junk\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\nHost: x\r\n\r\n", 400),
        (b"GE\x00T / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nNo colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX-SECRET: " + b"a" * 20_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: a\r\n" % n for n in range(300)) + b"\r\n", 400),
    ],
)
def test_what_is_no_http_gets_an_error_of_our_shape(served: Served, raw: bytes, status: int) -> None:
    with connected(served.url) as sock:
        sock.sendall(raw)
        assert read_error(read_all(sock))[0] == status


def test_a_body_with_broken_chunks_is_refused(api: Api, served: Served) -> None:
    head = (
        f"POST /api/v1/events/batch HTTP/1.1\r\n{HOST}Authorization: Bearer {api.key}\r\n"
        "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    with connected(served.url) as sock:
        sock.sendall(head.encode() + b"zz\r\n{\r\n")
        status, _ = read_error(read_all(sock))
        assert status == 400


def test_an_expectation_that_nobody_knows(api: Api) -> None:
    answer = api.http.get("/api/v1/stats", headers={"Expect": "miracles"})
    assert answer.status_code == 417
    assert answer.json()["error"]["code"] == "expectation_failed"


def test_a_sender_may_ask_before_it_sends_its_body(api: Api, served: Served) -> None:
    body = msgspec.json.encode(make_batch([make_event(1)]))
    head = (
        f"POST /api/v1/events/batch HTTP/1.1\r\n{HOST}Authorization: Bearer {api.key}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with connected(served.url) as sock:
        sock.sendall(head.encode())
        assert sock.recv(100).startswith(b"HTTP/1.1 100")
        sock.sendall(body)
        assert b"accepted" in read_all(sock)


def test_pipelined_requests_are_answered_in_order(served: Served) -> None:
    one = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with connected(served.url) as sock:
        sock.sendall(one * 50 + last)
        answers = read_all(sock)
    assert answers.count(b"HTTP/1.1 200") == 50
    assert answers.rindex(b"HTTP/1.1 200") < answers.index(b"HTTP/1.1 404")


def test_connections_are_bounded(tmp_path: Path) -> None:
    config = ServerConfig(database_url(tmp_path / "server.db"), port=0, max_connections=2)
    with app_in_thread(config) as url:
        with connected(url) as first, connected(url) as second:
            for sock in (first, second):
                sock.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
                assert sock.recv(65536).startswith(b"HTTP/1.1 200")
            with connected(url) as third:
                refusal = read_all(third)
                assert read_error(refusal) == (503, "too_many_connections")
                assert b"Retry-After" in refusal
                assert b"Km-Limit-Batch-Events: 1000" in refusal
        wait_for(lambda: httpx.get(url + "/health/live", timeout=WAIT_S).status_code == 200, "a free place")


def test_a_reader_that_takes_nothing_is_cut_off(tmp_path: Path) -> None:
    database = tmp_path / "server.db"
    config = ServerConfig(database_url(database), port=0, send_timeout_s=0.3)
    payload = "x" * (4 * 2**20)
    with app_in_thread(config) as url, open_api(url, database, "acme") as api:
        events = [make_event(n, payload=payload, size_bytes=len(payload)) for n in range(4)]
        api.send(make_batch(events))
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.settimeout(WAIT_S)
            sock.connect((urlsplit(url).hostname, urlsplit(url).port))
            question = f"GET /api/v1/activity?include=payload HTTP/1.1\r\n{HOST}Authorization: Bearer {api.key}\r\n\r\n"
            sock.sendall(question.encode() * 8)
            wait_for(lambda: is_reset(sock), "the connection to be cut off")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_under_way_is_answered_before_the_end(tmp_path: Path, number: signal.Signals) -> None:
    """Its body comes only after the signal: it is still taken in, committed and answered."""
    database = tmp_path / "server.db"
    running = start_server(database)
    key = create_key(database)
    body = msgspec.json.encode(make_batch([make_event(1)]))
    head = (
        f"POST /api/v1/events/batch HTTP/1.1\r\n{HOST}Authorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with connected(running.url) as sock:
        sock.sendall(head.encode() + body[:10])
        wait_for(lambda: "km_http_requests_in_flight 2.0" in httpx.get(running.url + "/metrics").text, "the request")
        running.process.send_signal(number)
        wait_for(lambda: "draining" in running.log.read_text(), "the server to hear of it")
        with pytest.raises(httpx.ConnectError):
            httpx.get(running.url + "/health/live", timeout=WAIT_S)
        sock.sendall(body[10:])
        answer = read_all(sock)
    assert running.stop() == 0
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"Connection: close" in answer
    assert b'"accepted"' in answer
    assert ask_file(database, "SELECT count(*) FROM events") == [(1,)]
    assert "Traceback" not in running.log.read_text()


def test_signals_that_come_again_do_not_disturb_the_end(tmp_path: Path) -> None:
    """Sent until the process is gone, to every moment of its end."""
    running = start_server(tmp_path / "server.db")
    for _ in range(10_000):
        running.process.send_signal(signal.SIGTERM)
        running.process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            running.process.wait(0.003)
            break
    assert running.stop() == 0
    assert "Traceback" not in running.log.read_text()


def test_a_request_that_never_ends_does_not_keep_the_server(tmp_path: Path) -> None:
    database = tmp_path / "server.db"
    running = start_server(database, extra=("--shutdown-timeout-s", "0.2"))
    key = create_key(database)
    head = (
        f"POST /api/v1/events/batch HTTP/1.1\r\n{HOST}Authorization: Bearer {key}\r\n"
        "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    )
    with connected(running.url) as sock:
        sock.sendall(head.encode() + b"{")
        wait_for(lambda: "km_http_requests_in_flight 2.0" in httpx.get(running.url + "/metrics").text, "the request")
        assert running.stop() == 0
    log = running.log.read_text()
    assert "cut_off" in log
    assert "Traceback" not in log


@pytest.mark.parametrize("is_rude", [False, True], ids=["closed", "reset"])
def test_a_sender_that_goes_in_the_middle_of_a_body_is_no_fault_of_ours(file_api: Api, is_rude: bool) -> None:  # noqa: FBT001
    def count(code: str) -> float:
        found = re.search(rf'^km_http_refusals_total{{code="{code}"}} (.*)$', file_api.http.get("/metrics").text, re.M)
        return float(found[1]) if found else 0.0

    before = count("broken_body"), count("internal")
    url = urlsplit(str(file_api.http.base_url))
    head = f"POST /api/v1/events/batch HTTP/1.1\r\n{HOST}Authorization: Bearer {file_api.key}\r\n"
    with socket.create_connection((url.hostname or "", url.port or 0), timeout=WAIT_S) as sock:
        sock.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 5000\r\n\r\nhalf".encode())
        if is_rude:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_for(lambda: count("broken_body") > before[0], "the refusal")
    assert count("internal") == before[1]
