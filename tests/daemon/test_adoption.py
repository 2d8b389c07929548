"""Adoption happens soon after there is something to adopt, not only at the next look."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from kmd.intake import adoption
from kmd.intake.adoption import Adopter
from kmd.intake.capacity import Capacity
from kmd.intake.sessions import Sessions
from kmd.outbox.outbox import Outbox
from kmd.outbox.writer import Writer
from tests.daemon.test_spool import session_id, spool_bytes

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
