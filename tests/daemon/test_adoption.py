"""Adoption happens soon after there is something to adopt, not only at the next look."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog.testing
import trio

from kmd.intake import adoption
from kmd.intake.adoption import Adopter, count_aside
from kmd.intake.capacity import Capacity
from kmd.intake.sessions import Sessions
from kmd.mcp.row import SessionStart
from kmd.outbox.outbox import Outbox
from kmd.outbox.writer import Writer
from kmd.record import (
    BODY_MAX_BYTES,
    DATA,
    HEADER_BYTES,
    HELLO,
    NO_STREAM,
    RUN,
    WELCOME,
    render_head,
    render_light_head,
)
from kmd.shim.hello import boot_id
from tests.daemon.test_spool import LINE, hello, session_id, spool_bytes
from tests.support.processes import read_status, running_kmd, wait_for

WAIT_S = 15.0


@asynccontextmanager
async def adopting(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Adopter]:
    """An adopter that has looked once and would look again in an hour."""
    monkeypatch.setattr(adoption, "LOOK_EARLY_S", ())
    monkeypatch.setattr(adoption, "LOOK_EVERY_S", 3600.0)
    with Outbox(folder / "outbox.db") as outbox:
        writer = Writer(outbox, lambda: None)
        adopter = Adopter(folder / "spool", Sessions(writer, Capacity(100), 1 << 20, keep_payloads=True))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.run)
            nursery.start_soon(adopter.run)
            await trio.testing.wait_all_tasks_blocked()
            yield adopter
            nursery.cancel_scope.cancel()


async def wait(probe: Callable[[], bool]) -> None:
    with trio.fail_after(WAIT_S):
        while not probe():  # noqa: ASYNC110 - files have no events
            await trio.sleep(0.01)


@pytest.mark.trio
@pytest.mark.parametrize("sign", [Adopter.look, Adopter.glance])
async def test_a_spool_that_is_left_later_is_taken_in_at_the_first_sign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sign: Callable[[Adopter], None]
) -> None:
    (tmp_path / "spool").mkdir()
    async with adopting(tmp_path, monkeypatch) as adopter:
        for number in range(2):
            path = tmp_path / "spool" / f"{session_id(number)}.1.spool"
            path.write_bytes(spool_bytes(number))
            sign(adopter)
            await wait(lambda path=path: not path.exists())  # type: ignore[misc]


@pytest.mark.trio
async def test_commits_alone_make_nobody_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "spool").mkdir()
    looks = list[Path]()

    def count_look(folder: Path) -> list[Path]:
        looks.append(folder)
        return []

    monkeypatch.setattr(adoption, "list_spools", count_look)
    monkeypatch.setattr(adoption, "GATHER_S", 0.0)
    async with adopting(tmp_path, monkeypatch) as adopter:
        for _ in range(5):
            adopter.glance()
            await trio.testing.wait_all_tasks_blocked()
        assert len(looks) == 1
        adopter.look()
        await wait(lambda: len(looks) == 2)


@asynccontextmanager
async def taking_in(folder: Path) -> AsyncIterator[tuple[Adopter, Sessions, Outbox]]:
    """An adopter that looks when it is told to."""
    (folder / "spool").mkdir()
    with Outbox(folder / "outbox.db") as outbox:
        writer = Writer(outbox, lambda: None)
        sessions = Sessions(writer, Capacity(100), 1 << 20, keep_payloads=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.run)
            yield Adopter(folder / "spool", sessions), sessions, outbox
            nursery.cancel_scope.cancel()


def spool_of(folder: Path, number: int) -> Path:
    return folder / "spool" / f"{session_id(number)}.1.spool"


HELLO_BYTES = len(spool_bytes(1, 0))


@pytest.mark.trio
@pytest.mark.parametrize("at", [0, 1, 2, 4, 6, 7, 8, 20, HEADER_BYTES, HELLO_BYTES - 1])
async def test_a_hello_that_is_damaged_costs_no_message(tmp_path: Path, at: int) -> None:
    data = bytearray(spool_bytes(1))
    data[at] ^= 0x0C
    async with taking_in(tmp_path) as (adopter, _, outbox):
        spool_of(tmp_path, 1).write_bytes(data)
        assert await adopter.take_in() == 1
        rows = outbox.read_events(0, 100)
        assert [row.message.offset for row in rows] == [n * len(LINE % 0) for n in range(5)]
        (start,) = {row.session for row in rows}
        assert (start.session, start.name) == (session_id(1), "unnamed")
        assert start.started_at_ns == int(session_id(1).replace("-", "")[:12], 16) * 10**6
    assert not list((tmp_path / "spool").iterdir())


@pytest.mark.trio
async def test_a_spool_in_which_nothing_can_be_read_is_kept_under_another_name(tmp_path: Path) -> None:
    async with taking_in(tmp_path) as (adopter, _, outbox):
        spool_of(tmp_path, 1).write_bytes(spool_bytes(1)[: HELLO_BYTES - 1])
        (tmp_path / "spool" / "mine.spool").write_bytes(spool_bytes(1)[1:])
        assert await adopter.take_in() == 0
        assert outbox.last_seq == 0
    assert count_aside(tmp_path / "spool") == len(list((tmp_path / "spool").iterdir())) == 2


@pytest.mark.trio
@pytest.mark.parametrize(
    "nonsense",
    [
        render_light_head(RUN, NO_STREAM, 0, 7, 8) + b"\xff" * 8,
        render_head(WELCOME, NO_STREAM, 0, 7, b""),
        render_head(DATA, 9, 0, 7, b"x") + b"x",
    ],
    ids=["a table that was altered", "what only kmd says", "no such stream"],
)
async def test_a_record_that_makes_no_sense_costs_at_most_itself(tmp_path: Path, nonsense: bytes) -> None:
    body = hello(session_id(1), boot_id())
    start = render_head(HELLO, NO_STREAM, 0, 0, body) + body
    async with taking_in(tmp_path) as (adopter, _, outbox):
        spool_of(tmp_path, 1).write_bytes(start + nonsense + spool_bytes(1)[HELLO_BYTES:])
        assert await adopter.take_in() == 1
        assert len(outbox.read_events(0, 100)) == 5


@pytest.mark.trio
async def test_a_spool_that_looks_like_header_after_header_does_not_take_for_ever(tmp_path: Path) -> None:
    header = render_light_head(DATA, 0, 0, 7, BODY_MAX_BYTES)[: HEADER_BYTES - 4]
    async with taking_in(tmp_path) as (adopter, _, outbox):
        spool_of(tmp_path, 1).write_bytes(spool_bytes(1) + header * ((4 << 20) // len(header)))
        spool_of(tmp_path, 2).write_bytes(spool_bytes(2))
        assert await adopter.take_in() == 1
        assert len(outbox.read_events(0, 100)) == 10
        assert not outbox.read_open_sessions()
    assert [path.suffix for path in (tmp_path / "spool").iterdir()] == [".unreadable"]


@pytest.mark.trio
async def test_a_spool_of_another_protocol_is_kept_shown_and_tried_less_and_less_often(tmp_path: Path) -> None:
    body = hello(session_id(1)).replace(b"protocol=2", b"protocol=9")
    async with taking_in(tmp_path) as (adopter, _, outbox):
        spool_of(tmp_path, 1).write_bytes(render_head(HELLO, NO_STREAM, 0, 0, body) + body)
        spool_of(tmp_path, 2).write_bytes(spool_bytes(2))
        with structlog.testing.capture_logs() as logs:
            assert await adopter.take_in() == 1
            pauses = []
            for _ in range(7):
                assert await adopter.take_in(anew=True) == 0
                (refusal,) = adopter.refused.values()
                pauses.append(refusal.pause_s)
            assert await adopter.take_in() == 0
        assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == ["a spool was not taken in"]
        assert "protocol 9" in refusal.reason
        assert pauses == [40, 80, 160, 320, 600, 600, 600]
        spool_of(tmp_path, 1).write_bytes(spool_bytes(1))
        assert await adopter.take_in() == 0
        assert await adopter.take_in(anew=True) == 1
        assert not adopter.refused
        assert len(outbox.read_events(0, 100)) == 10


@pytest.mark.trio
async def test_a_spool_of_a_session_that_is_connected_keeps_nobody_waiting(tmp_path: Path) -> None:
    async with taking_in(tmp_path) as (adopter, sessions, outbox):
        for number in (1, 2):
            spool_of(tmp_path, number).write_bytes(spool_bytes(number))
        with trio.fail_after(WAIT_S):
            async with sessions.enter(SessionStart(session_id(1), "s", "c", 1, 5)):
                assert await adopter.take_in() == 1
            assert await adopter.take_in() == 1
        assert len(outbox.read_events(0, 100)) == 10


def test_status_shows_spools_that_wait_and_that_nobody_can_read(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "spool").mkdir(parents=True)
    os.mkfifo(spool_of(home, 1))
    spool_of(home, 2).write_bytes(b"nonsense" * 99)
    with running_kmd(home):
        wait_for(lambda: len(read_status(home)["warnings"]) == 2, "the warnings")
        messages = [warning["message"] for warning in read_status(home)["warnings"]]
    assert messages[0] == f"the spool {spool_of(home, 1).name} cannot be taken in: no regular file of this user"
    assert messages[1].startswith("a spool could not be read")
