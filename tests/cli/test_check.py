"""Asking a server whether URL and key work: every answer and every failure has one line and a next step."""

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kmctl import check
from kmctl.check import Reply, check_server, judge_answer, judge_failure
from kmd.errors import DeliveryError, ServerUnreachable
from tests.cli.web import RECEIPT, WAIT_S, http_server

URL = "https://km.example.com"


def receipt(batch_id: str) -> bytes:
    return json.dumps({"schema": 1, "batch_id": batch_id, "verdicts": []}).encode()


def test_every_status_has_a_verdict() -> None:
    for status in range(100, 600):
        problem = judge_answer(Reply(status, "", receipt("b")), "b", URL)
        assert (problem is None) == (200 <= status < 300)
        if problem:
            assert str(problem).startswith(f"{URL}: ")
            assert problem.hint


@pytest.mark.parametrize("body", [b"", b"{}", b"<html>", b"\xff", receipt("other"), b"[]", b"[" * 100_000, b"null"])
def test_a_success_that_is_no_receipt_is_no_server(body: bytes) -> None:
    assert "no km-server" in str(judge_answer(Reply(200, "", body), "b", URL))


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "refused the key"),
        (403, "may not send"),
        (404, "no km-server"),
        (405, "no km-server"),
        (308, "redirects to https://x/"),
        (429, "not ready"),
        (503, "not ready"),
    ],
)
def test_what_a_status_means(status: int, words: str) -> None:
    assert words in str(judge_answer(Reply(status, "https://x/" if status == 308 else "", b""), "b", URL))


def raised(exc: BaseException, cause: BaseException) -> BaseException:
    exc.__cause__ = cause
    return exc


@pytest.mark.parametrize(
    ("exc", "words"),
    [
        (ConnectionRefusedError(111, "refused"), "connection refused"),
        (raised(RuntimeError(), ExceptionGroup("x", [ConnectionRefusedError(111, "refused")])), "connection refused"),
        (raised(OSError(), socket.gaierror(-2, "Name or service not known")), "no such host"),
        (raised(OSError(), ssl.SSLError(1, "WRONG_VERSION_NUMBER")), "TLS failed"),
        (UnicodeError("label too long"), "no such host"),
        (OSError("else"), "the connection failed (OSError)"),
    ],
)
def test_what_a_failure_means(exc: BaseException, words: str) -> None:
    problem = judge_failure(exc, URL)
    assert words in str(problem)
    assert problem.hint


def test_causes_that_go_in_a_circle_end() -> None:
    first, second = OSError("a"), OSError("b")
    first.__cause__, second.__cause__ = second, first
    assert "failed" in str(judge_failure(first, URL))


def test_a_server_that_takes_the_batch() -> None:
    with http_server(200, RECEIPT) as (url, keys):
        check_server(url, "km_x", "b1")
    assert keys == ["/api/v1/events/batch Bearer km_x"]


def test_without_a_key_no_header_is_sent() -> None:
    with http_server(200, RECEIPT) as (url, keys):
        check_server(url, "", "b1")
    assert keys == ["/api/v1/events/batch None"]


def test_a_redirect_is_not_followed() -> None:
    with http_server(200, RECEIPT) as (target, keys):
        headers = {"Location": f"{target}/api/v1/events/batch"}
        with http_server(307, "", headers=headers) as (url, _), pytest.raises(DeliveryError, match="redirects to"):
            check_server(url, "km_x", "b1")
    assert keys == []


def test_a_body_without_end_is_cut() -> None:
    with http_server(200, "x" * (check.BODY_MAX_BYTES * 4)) as (url, _), pytest.raises(DeliveryError, match="no km-"):
        check_server(url, "km_x", "b1")


def test_a_refused_connection() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(ServerUnreachable, match="connection refused"):
            check_server(f"http://127.0.0.1:{free.getsockname()[1]}", "km_x", "b1")


def test_a_name_that_does_not_resolve() -> None:
    with pytest.raises(ServerUnreachable, match="no such host"):
        check_server("http://km.invalid", "km_x", "b1")


def test_a_plain_server_where_tls_is_meant() -> None:
    with http_server(200, RECEIPT) as (url, _), pytest.raises(ServerUnreachable, match="TLS failed") as caught:
        check_server(url.replace("http:", "https:"), "km_x", "b1")
    assert "http://" in caught.value.hint


@contextmanager
def raw_server(head: bytes, piece: bytes, pause_s: float) -> Iterator[str]:
    """A server that answers its first connection with *head*, then with *piece* again and again: its URL."""
    over = threading.Event()

    def answer(listener: socket.socket) -> None:
        peer, _ = listener.accept()
        with peer:
            try:
                peer.sendall(head)
                while not over.wait(pause_s):
                    peer.sendall(piece)
            except OSError:
                return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, args=(listener,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            over.set()
            thread.join(WAIT_S)


def test_a_server_that_drips_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes well within httpx's own time-out; only a bound on the whole ends this."""
    monkeypatch.setattr(check, "CHECK_TIMEOUT_S", 0.5)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"
    with raw_server(head, b" ", 0.05) as url, pytest.raises(ServerUnreachable, match="no answer within"):
        check_server(url, "km_x", "b1")


def test_a_body_that_never_ends_is_read_no_further_than_needed() -> None:
    with raw_server(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65536, 0) as url, pytest.raises(DeliveryError, match="no km-"):
        check_server(url, "km_x", "b1")


def test_a_proxy_that_cannot_be_used_is_said_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://user:proxy-password@127.0.0.1:9")
    with pytest.raises(ServerUnreachable, match="ALL_PROXY") as caught:
        check_server("http://127.0.0.1:9", "km_x", "b1")
    assert "password" not in str(caught.value) + caught.value.hint
    assert caught.value.__cause__ is None
