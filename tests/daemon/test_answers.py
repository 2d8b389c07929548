"""Every status code and every malformed receipt from a real server: nothing is settled, nothing is lost, all passes."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kmd.sync.destination import State
from tests.daemon.rig import Rig, check_all_settled, rig
from tests.support.misbehaving import Act, Misbehaving, Request, Script, misbehaving, render_answer

PAUSED = {400, 401, 403, 404, 405, 413, 415, 422, 501, *range(300, 400), *range(400, 500)} - {408, 409, 425, 429}


async def provoke(running: Rig, server: Misbehaving, script: Script) -> None:
    """One try that is answered by *script*, whatever the loop would rather wait for."""
    tries = running.loop.tries
    server.script = script
    await running.wait(lambda: running.loop.tries > tries and running.loop.state is not State.SENDING, nudge=True)


def answer_with(status: int) -> Script:
    """That status and a page; the interim ones are followed by the end of the connection instead of an answer."""
    body = b"" if status < 200 or status in (204, 304) else b"<html>"
    return lambda request: Act(render_answer(status, body), close=status < 200)


@pytest.mark.trio
async def test_whatever_the_status_nothing_is_settled_without_a_receipt_and_all_is_delivered_later(
    tmp_path: Path,
) -> None:
    with misbehaving() as server:
        async with rig(tmp_path, server.url, 1) as running:
            for status in range(100, 600):
                await provoke(running, server, answer_with(status))
                expected = State.PAUSED if status in PAUSED else State.RETRYING
                assert (status, running.loop.state) == (status, expected)
                assert (running.loop.cursor, running.loop.quarantined) == (0, 0)
                assert running.loop.last_error
            server.script = server.behave
            await running.settle()
            check_all_settled(running, server, 1)
    assert server.duplicates == 0


Receipt = dict[str, Any]


def alter(change: "Change") -> Script:
    """A receipt for what was sent, changed; nothing is stored."""

    def script(request: Request) -> Act:
        batch = request.batch
        receipt = {"schema": 1, "batch_id": batch["batch_id"], "verdicts": [{"status": "accepted"}] * 3}
        changed = change(receipt)
        return Act(render_answer(200, changed if isinstance(changed, bytes) else json.dumps(changed).encode()))

    return script


Change = Callable[[Receipt], object]


def put(field: str, value: object) -> Change:
    return lambda receipt: {**receipt, field: value}


def drop(field: str) -> Change:
    return lambda receipt: {key: value for key, value in receipt.items() if key != field}


def end_with(verdict: object) -> Change:
    return lambda receipt: {**receipt, "verdicts": [*receipt["verdicts"][:2], verdict]}


def cut(length: int) -> Change:
    return lambda receipt: json.dumps(receipt).encode()[:length]


def malformed() -> Iterator[Change]:
    """Ways to spoil a receipt."""
    for field in ("batch_id", "verdicts"):
        yield drop(field)
        values: tuple[object, ...] = (None, 7, "", {}, [], [1], [[]], "x" * 32, True, [None] * 3)
        yield from (put(field, value) for value in values)
    for count in (0, 1, 2, 4, 1000):
        yield put("verdicts", [{"status": "accepted"}] * count)
    for verdict in ({}, {"status": None}, {"status": "ok"}, {"status": "ACCEPTED"}, {"status": 1}, "accepted"):
        yield end_with(verdict)
    yield lambda receipt: {**receipt, "batch_id": receipt["batch_id"].upper() + "0"}
    yield lambda receipt: {**receipt, "batch_id": receipt["batch_id"][:-1]}
    yield lambda receipt: [receipt]
    yield lambda receipt: {"receipt": receipt}
    yield lambda receipt: json.dumps(receipt).encode("utf-16")
    yield lambda receipt: b"\xff" + json.dumps(receipt).encode()
    yield lambda receipt: json.dumps(receipt).encode() * 2
    yield lambda receipt: b"[" * 100_000
    yield from map(cut, range(0, 130, 3))


@pytest.mark.trio
async def test_no_malformed_receipt_settles_anything(tmp_path: Path) -> None:
    with misbehaving() as server:
        async with rig(tmp_path, server.url, 3) as running:
            for change in malformed():
                await provoke(running, server, alter(change))
                assert (running.loop.state, running.loop.cursor) == (State.RETRYING, 0)
                assert "receipt" in running.loop.last_error
            server.script = server.behave
            await running.settle()
            check_all_settled(running, server, 3)
    assert server.duplicates == 0


@pytest.mark.trio
async def test_a_proxy_of_the_environment_is_used_and_no_proxy_is_heeded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with misbehaving() as proxy, misbehaving() as server:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        async with rig(tmp_path / "far", "http://km.invalid", 1) as running:
            await running.settle()
        async with rig(tmp_path / "near", server.url, 1) as running:
            await running.settle()
    assert [request.path for request in proxy.requests] == ["http://km.invalid/api/v1/events/batch"]
    assert len(server.requests) == 1
