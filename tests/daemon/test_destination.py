"""A destination against real HTTP servers that misbehave: nothing is lost, and only a receipt settles anything."""

import json
import socket
from collections.abc import Callable
from math import log2
from pathlib import Path

import httpx
import pytest
import trio
import trio.testing

from kmd.mcp.names import Stream
from kmd.outbox.outbox import Intake
from kmd.sync.backoff import RETRY_AFTER_MAX_S
from kmd.sync.destination import State
from kmd.sync.transport import PATH, explain_connect_error
from kmd.trust import PROXY, PROXY_HINT
from tests.daemon.rig import KEY, check_all_settled, offsets, rig, settings
from tests.daemon.rows import START, message
from tests.support.misbehaving import Act, Request, Script, misbehaving, poison, render_answer, say


def alter_receipt(alter: Callable[[dict[str, object]], object]) -> Script:
    """A receipt for the batch, altered, and nothing stored."""

    def script(request: Request) -> Act:
        events = request.batch.get("events", [])
        receipt = {"batch_id": request.batch["batch_id"], "verdicts": [{"status": "accepted"}] * len(events)}
        return Act(render_answer(200, json.dumps(alter(receipt)).encode()))

    return script


def without_one(receipt: dict[str, object]) -> object:
    verdicts = receipt["verdicts"]
    assert isinstance(verdicts, list)
    return {**receipt, "verdicts": verdicts[1:]}


TROUBLE: dict[str, Script] = {
    "HTML with 200": say(200, b"<!DOCTYPE html><title>Log in</title>", content_type="text/html"),
    "an empty 200": say(200),
    "a 204": lambda request: Act(b"HTTP/1.1 204 X\r\n\r\n"),
    "a 202 with other JSON": say(202, b'{"ok":true}'),
    "a cut receipt": lambda request: Act(render_answer(200, b'{"batch_id":"' + request.batch["batch_id"].encode())),
    "a receipt for another batch": alter_receipt(lambda receipt: {**receipt, "batch_id": "other"}),
    "a receipt without one verdict": alter_receipt(without_one),
    "a receipt with an unknown verdict": alter_receipt(
        lambda receipt: {**receipt, "verdicts": [{"status": "ok"}] * 20}
    ),
    "a 409 without a receipt": say(409, b'{"error":"in flight"}'),
    "a 408": say(408),
    "a 425": say(425),
    "a 429": say(429),
    "a 500": say(500, b"Traceback"),
    "a 502": say(502, b"<html>", content_type="text/html"),
    "a 503": say(503),
    "a 504": say(504),
    "no answer, closed": lambda request: Act(b"", close=True),
    "half a head, closed": lambda request: Act(b"HTTP/1.1 20", close=True),
    "a body cut short": lambda request: Act(b"HTTP/1.1 200 X\r\nContent-Length: 500\r\n\r\n{", close=True),
    "no HTTP at all": lambda request: Act(b"SSH-2.0-OpenSSH_9.2\r\n" * 3, close=True),
    "an answer that is no gzip": say(200, b"plain", Content_Encoding="gzip"),
    "an endless header": lambda request: Act(b"HTTP/1.1 200 X\r\nA: " + b"x" * 300_000, close=True),
    "three megabytes": say(200, b" " * (3 << 20)),
}


@pytest.mark.trio
@pytest.mark.parametrize("name", TROUBLE)
async def test_trouble_settles_nothing_is_shown_and_passes(tmp_path: Path, name: str) -> None:
    with misbehaving(TROUBLE[name]) as server:
        async with rig(tmp_path, server.url) as running:
            await running.wait_trouble()
            loop = running.loop
            assert (loop.state, loop.cursor, loop.settled, loop.pending) == (State.RETRYING, 0, 0, 20)
            assert loop.last_error
            assert KEY not in loop.last_error + loop.hint
            assert loop.next_attempt_s is not None
            assert running.outbox.read_destination("team").cursor == 0
            server.script = server.behave
            await running.settle()
            check_all_settled(running, server)
    assert offsets(server) == list(range(20))
    assert server.duplicates == 0


@pytest.mark.trio
async def test_a_reply_lost_after_the_commit_stores_each_event_once_and_settles_it_as_a_duplicate(
    tmp_path: Path,
) -> None:
    with misbehaving() as server:

        def commit_and_close(request: Request) -> Act:
            server.commit(request)
            return Act(b"", close=True)

        server.first = [commit_and_close] * 3
        async with rig(tmp_path, server.url) as running:
            await running.settle()
            check_all_settled(running, server)
    assert server.duplicates == 60
    assert offsets(server) == list(range(20))


@pytest.mark.trio
async def test_a_duplicate_answered_with_409_and_a_receipt_settles(tmp_path: Path) -> None:
    with misbehaving() as server:
        server.script = lambda request: Act(render_answer(409, server.commit(request)))
        async with rig(tmp_path, server.url) as running:
            await running.settle()
            check_all_settled(running, server)


@pytest.mark.trio
async def test_an_answer_that_drips_for_ever_ends_with_the_total_time(tmp_path: Path) -> None:
    slow = Act(render_answer(200, b" " * 100_000), drip_s=0.05)
    with misbehaving(lambda request: slow) as server:
        async with rig(tmp_path, server.url, config=settings(timeout_s=1)) as running:
            await running.wait_trouble()
            assert running.loop.last_error == "no answer within 1 s"
            server.script = server.behave
            await running.settle()
            check_all_settled(running, server)


@pytest.mark.trio
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed_and_the_key_goes_nowhere_else(tmp_path: Path, status: int) -> None:
    with misbehaving() as thief, misbehaving() as server:
        server.script = say(status, Location=thief.url + PATH)
        async with rig(tmp_path, server.url) as running:
            await running.wait_trouble()
            assert running.loop.state is State.PAUSED
            assert "redirect" in running.loop.last_error
            assert running.loop.hint
            tries = len(server.requests)
            await running.wait(lambda: len(server.requests) > tries + 2, nudge=True)
            assert running.loop.cursor == 0
        assert thief.requests == []


@pytest.mark.trio
async def test_the_key_is_sent_as_a_bearer_token_to_the_batch_path_only(tmp_path: Path) -> None:
    with misbehaving() as server:
        async with rig(tmp_path, server.url) as running:
            await running.settle()
    assert {request.path for request in server.requests} == {PATH}
    assert {request.headers["authorization"] for request in server.requests} == {f"Bearer {KEY}"}
    assert not any(KEY.encode() in json.dumps(request.batch).encode() for request in server.requests)


@pytest.mark.trio
async def test_without_a_key_no_authorization_is_sent(tmp_path: Path) -> None:
    with misbehaving() as server:
        async with rig(tmp_path, server.url, key="") as running:
            await running.settle()
    assert "authorization" not in server.requests[0].headers


@pytest.mark.trio
@pytest.mark.parametrize("status", [401, 403, 404, 405, 501])
async def test_what_only_a_person_can_mend_pauses_keeps_all_and_goes_on_when_nudged(
    tmp_path: Path, status: int
) -> None:
    with misbehaving(say(status)) as server:
        async with rig(tmp_path, server.url) as running:
            await running.wait_trouble()
            loop = running.loop
            assert (loop.state, loop.cursor, loop.quarantined) == (State.PAUSED, 0, 0)
            assert str(status) in loop.last_error
            assert loop.hint
            assert loop.next_attempt_s is not None
            assert 290 < loop.next_attempt_s <= 300
            assert len(server.requests) == 1
            server.script = server.behave
            await running.settle()
            check_all_settled(running, server)


@pytest.mark.trio
async def test_415_falls_back_to_gzip_and_then_to_no_encoding_and_stays_there(tmp_path: Path) -> None:
    with misbehaving() as server:

        def identity_only(request: Request) -> Act:
            return Act(render_answer(415)) if "content-encoding" in request.headers else server.behave(request)

        server.script = identity_only
        async with rig(tmp_path, server.url, config=settings(batch_events=10)) as running:
            await running.settle()
            check_all_settled(running, server)
    encodings = [request.headers.get("content-encoding", "identity") for request in server.requests]
    assert encodings == ["zstd", "gzip", "identity", "identity"]


@pytest.mark.trio
async def test_415_to_everything_pauses_and_loses_nothing(tmp_path: Path) -> None:
    with misbehaving(say(415)) as server:
        async with rig(tmp_path, server.url) as running:
            await running.wait_trouble()
            assert (running.loop.state, running.loop.cursor) == (State.PAUSED, 0)
            server.script = server.behave
            await running.settle()
            check_all_settled(running, server)


@pytest.mark.trio
@pytest.mark.parametrize(("status", "place"), [(400, 0), (400, 999), (422, 500), (413, 333)])
async def test_one_poisoned_event_among_a_thousand_costs_that_event_only(
    tmp_path: Path, status: int, place: int
) -> None:
    with misbehaving() as server:
        server.script = poison(server, {place}, status)
        async with rig(tmp_path, server.url, 1000, settings(batch_events=1000)) as running:
            await running.settle()
            check_all_settled(running, server, 1000, quarantined=1)
    assert offsets(server) == [offset for offset in range(1000) if offset != place]
    assert server.duplicates == 0
    assert len(server.requests) <= 2 * log2(1000) + 2


@pytest.mark.trio
async def test_several_poisoned_events_are_each_put_aside_alone(tmp_path: Path) -> None:
    bad = {0, 1, 77, 78, 199}
    with misbehaving() as server:
        server.script = poison(server, bad, 400)
        async with rig(tmp_path, server.url, 200, settings(batch_events=50)) as running:
            await running.settle()
            check_all_settled(running, server, 200, quarantined=5)
    assert set(offsets(server)) == set(range(200)) - bad


@pytest.mark.trio
async def test_an_event_that_makes_the_server_fail_is_found_after_five_tries_each(tmp_path: Path) -> None:
    with misbehaving() as server:
        server.script = poison(server, {5}, 500)
        async with rig(tmp_path, server.url, 8) as running:
            await running.settle()
            check_all_settled(running, server, 8, quarantined=1)
    tries: dict[tuple[int, ...], int] = {}
    for request in server.requests:
        tries[tuple(request.offsets)] = tries.get(tuple(request.offsets), 0) + 1
    assert {count for sent, count in tries.items() if 5 in sent} == {5}


@pytest.mark.trio
@pytest.mark.parametrize("status", [400, 413, 422])
async def test_a_server_that_refuses_even_a_batch_without_events_pauses_and_no_event_is_to_blame(
    tmp_path: Path, status: int
) -> None:
    with misbehaving(say(status)) as server:
        async with rig(tmp_path, server.url, 200) as running:
            await running.wait(lambda: running.loop.state is State.PAUSED)
            assert (running.loop.cursor, running.loop.quarantined) == (0, 0)
            assert len(server.requests) <= 2 + 8
            server.script = server.behave
            await running.settle()
            check_all_settled(running, server, 200)


@pytest.mark.trio
async def test_an_outage_that_answers_500_for_long_puts_no_event_aside(tmp_path: Path) -> None:
    with misbehaving(say(500)) as server:
        async with rig(tmp_path, server.url, 4) as running:
            await running.wait(lambda: len(server.requests) >= 40, nudge=True)
            assert (running.loop.cursor, running.loop.quarantined) == (0, 0)
            server.script = server.behave
            await running.settle()
            check_all_settled(running, server, 4)


@pytest.mark.trio
async def test_a_server_that_fails_four_times_loses_nothing(tmp_path: Path) -> None:
    with misbehaving(first=[say(500)] * 4) as server:
        async with rig(tmp_path, server.url, 8) as running:
            await running.settle()
            check_all_settled(running, server, 8)


@pytest.mark.trio
async def test_a_rejecting_verdict_puts_that_event_aside_and_settles_the_others(tmp_path: Path) -> None:
    def reject_seventh(request: Request) -> Act:
        verdicts = [
            {"status": "rejected", "reason": "clock"} if o == 7 else {"status": "accepted"} for o in request.offsets
        ]
        return Act(
            render_answer(200, json.dumps({"batch_id": request.batch["batch_id"], "verdicts": verdicts}).encode())
        )

    with misbehaving(reject_seventh) as server:
        async with rig(tmp_path, server.url) as running:
            await running.settle()
            known = running.outbox.read_destination("team")
            assert (known.cursor, known.settled, known.quarantined) == (20, 19, 1)
    assert len(server.requests) == 1


@pytest.mark.trio
@pytest.mark.parametrize(("retry_after", "least_s", "most_s"), [("60", 55, 60), ("99999999", 895, RETRY_AFTER_MAX_S)])
async def test_retry_after_is_waited_for_within_its_bound(
    tmp_path: Path, retry_after: str, least_s: float, most_s: float
) -> None:
    with misbehaving(say(503, Retry_After=retry_after)) as server:
        async with rig(tmp_path, server.url) as running:
            await running.wait_trouble()
            assert running.loop.next_attempt_s is not None
            assert least_s < running.loop.next_attempt_s <= most_s
            server.script = server.behave
            await running.settle()


@pytest.mark.trio
async def test_after_a_failure_the_next_try_is_a_small_probe(tmp_path: Path) -> None:
    with misbehaving(first=[say(503)]) as server:
        async with rig(tmp_path, server.url, 400) as running:
            await running.settle()
            check_all_settled(running, server, 400)
    assert [len(request.offsets) for request in server.requests] == [400, 50, 350]


@pytest.mark.trio
async def test_events_that_join_the_first_batch_do_not_cut_the_pause_after_its_failure_short(tmp_path: Path) -> None:
    with misbehaving(say(503, Retry_After="60")) as server:
        async with rig(tmp_path, server.url, 0) as running:
            await trio.testing.wait_all_tasks_blocked()
            session_id = running.outbox.open_session(START).session_id
            for offset in range(10):
                running.outbox.commit([Intake(session_id, [message(offset)], {Stream.TO_SERVER: offset})])
                running.loop.notice()
                await trio.sleep(0.01)
            await running.wait_trouble()
            running.loop.notice()
            await trio.sleep(0.1)
            assert [len(request.offsets) for request in server.requests] == [10]


@pytest.mark.trio
async def test_no_connection_is_trouble_that_passes_when_the_server_comes(tmp_path: Path) -> None:
    with misbehaving() as gone:
        url = gone.url
    async with rig(tmp_path, url) as running:
        await running.wait_trouble()
        assert running.loop.state is State.RETRYING
        assert running.loop.last_error == "the connection is refused"
        assert "km-server" in running.loop.hint
        assert running.loop.pending == 20


@pytest.mark.trio
async def test_a_server_without_tls_behind_an_https_url_never_sees_the_key(tmp_path: Path) -> None:
    with misbehaving() as server:
        async with rig(tmp_path, server.url.replace("http:", "https:")) as running:
            await running.wait_trouble()
            assert running.loop.state is State.RETRYING
            assert "TLS" in running.loop.last_error
            assert "http://" in running.loop.hint
    assert not any(KEY in str(request) for request in server.requests)


@pytest.mark.trio
async def test_an_address_that_cannot_be_reached_is_said_in_words(tmp_path: Path) -> None:
    """The kernel refuses to connect to everybody at once; no packet leaves."""
    async with rig(tmp_path, "http://255.255.255.255:1") as running:
        await running.wait_trouble()
        assert running.loop.last_error.startswith("no connection: ")
        assert "attempts" not in running.loop.last_error
        assert "network" in running.loop.hint


def test_a_name_that_does_not_resolve_is_said_in_words() -> None:
    try:
        raise httpx.ConnectError("") from socket.gaierror(-2, "Name or service not known")
    except httpx.ConnectError as exc:
        told = explain_connect_error(exc)
    assert str(told) == "the server's name does not resolve"
    assert "check the name" in told.hint


@pytest.mark.trio
async def test_new_events_are_sent_by_themselves_in_order_and_once(tmp_path: Path) -> None:
    with misbehaving() as server:
        async with rig(tmp_path, server.url, 3) as running:
            await running.settle()
            session_id = running.outbox.open_session(START).session_id
            for offset in range(3, 9):
                running.outbox.commit([Intake(session_id, [message(offset)], {Stream.TO_SERVER: offset})])
                running.loop.notice()
            await running.wait(lambda: not running.loop.pending)
    assert [offset for request in server.requests for offset in request.offsets] == list(range(9))


@pytest.mark.trio
async def test_a_loop_that_starts_anew_goes_on_from_its_cursor(tmp_path: Path) -> None:
    with misbehaving() as server:
        async with rig(tmp_path, server.url, 10) as running:
            await running.settle()
        async with rig(tmp_path, server.url, 15) as running:
            assert running.loop.cursor == 10
            await running.settle()
            assert running.outbox.read_destination("team").settled == 15
    assert server.duplicates == 0


@pytest.mark.trio
@pytest.mark.parametrize(
    "environ",
    [
        {"ALL_PROXY": "socks5://user:proxy-password@127.0.0.1:9"},
        {"HTTP_PROXY": "gopher://user:proxy-password@127.0.0.1:9"},
        {"HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": "[::1,*bad:99999"},
    ],
    ids=["SOCKS", "an unknown scheme", "an impossible exception"],
)
async def test_a_proxy_that_cannot_be_used_is_trouble_in_words_that_do_not_quote_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]
) -> None:
    for name, text in environ.items():
        monkeypatch.setenv(name, text)
    with misbehaving() as server:
        async with rig(tmp_path, server.url) as running:
            await running.wait_trouble()
            assert (running.loop.last_error, running.loop.hint) == (PROXY, PROXY_HINT)
            for name in environ:
                monkeypatch.delenv(name)
            await running.settle()
            check_all_settled(running, server)


@pytest.mark.trio
async def test_numbers_that_no_event_has_are_passed_over(tmp_path: Path) -> None:
    with misbehaving() as server:
        async with rig(tmp_path, server.url) as running:
            await running.settle()
            running.outbox.last_seq = 1_000_000  # as a damaged sequence has it
            running.loop.notice()
            await running.wait(lambda: running.loop.cursor == 1_000_000)
            await running.settle()
        assert len(server.stored) == 20


@pytest.mark.trio
async def test_cookies_are_not_kept(tmp_path: Path) -> None:
    with misbehaving(first=[say(503, Set_Cookie="a=1; Path=/", Retry_After="0")]) as server:
        async with rig(tmp_path, server.url) as running:
            await running.settle()
    assert len(server.requests) > 1
    assert not any("cookie" in request.headers for request in server.requests)
