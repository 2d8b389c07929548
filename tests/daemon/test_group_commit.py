"""Group commit: what waits shares a transaction, within a bound on the payloads that it holds in memory."""

from collections.abc import Iterable
from pathlib import Path

import pytest
import trio
import trio.testing

from kmd.mcp.names import Stream
from kmd.outbox.outbox import Intake, Outbox
from kmd.outbox.writer import GROUP_MAX_BYTES, Writer
from tests.daemon.rows import START, message

PAYLOAD_BYTES = GROUP_MAX_BYTES // 4
INTAKES = 14


class WatchedOutbox(Outbox):
    """An outbox that notes how large each of its commits is."""

    def __init__(self, path: Path) -> None:
        self.sizes = list[int]()
        super().__init__(path)

    def commit(self, intakes: Iterable[Intake]) -> None:
        group = list(intakes)
        self.sizes.append(sum(intake.size_bytes for intake in group))
        super().commit(group)


@pytest.mark.trio
async def test_what_waits_is_committed_together_but_not_all_at_once(tmp_path: Path) -> None:
    with WatchedOutbox(tmp_path / "outbox.db") as outbox:
        session_id = outbox.open_session(START).session_id
        writer = Writer(outbox, lambda: None)
        async with trio.open_nursery() as nursery:
            with trio.fail_after(60):
                async with trio.open_nursery() as waiting:
                    for place in range(INTAKES):
                        offset = place * (PAYLOAD_BYTES + 1)
                        intake = Intake(session_id, [message(offset, b"x" * PAYLOAD_BYTES)], {Stream.TO_SERVER: offset})
                        waiting.start_soon(writer.commit, intake)
                    await trio.testing.wait_all_tasks_blocked()
                    nursery.start_soon(writer.run)
            nursery.cancel_scope.cancel()
        assert outbox.last_seq == INTAKES
        assert sum(outbox.sizes) == INTAKES * PAYLOAD_BYTES
        assert max(outbox.sizes) == GROUP_MAX_BYTES
        assert len(outbox.sizes) == 4
