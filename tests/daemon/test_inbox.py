"""The inbox: when the link is called, and that tiny messages cannot outgrow it."""

from pathlib import Path

import pytest

from kmd.shim import slabs
from kmd.shim.inbox import CALL_ABOVE_BYTES, CALL_ABOVE_CHUNKS, FULL_CHUNKS, Inbox
from kmd.shim.slabs import CHUNK_BYTES, READY_SLABS, Slabs, copy_of
from tests.daemon.test_tap import tap_in


def test_the_link_is_called_for_many_chunks_and_for_many_bytes() -> None:
    few, many, large = Inbox(), Inbox(), Inbox()
    few.add(copy_of(0, memoryview(b"x"), 1))
    for _ in range(CALL_ABOVE_CHUNKS + 1):
        assert not many.calls
        many.add(copy_of(0, memoryview(b"x"), 1))
    for _ in range(CALL_ABOVE_BYTES // CHUNK_BYTES + 1):
        large.add(copy_of(1, memoryview(bytes(CHUNK_BYTES)), 1))
    assert [few.calls, many.calls, large.calls] == [False, True, True]
    while any(large.take()):
        pass
    assert not large.calls
    assert large.size_bytes == 0


def test_a_pump_takes_tiny_chunks_in_itself_when_the_link_does_not(tmp_path: Path) -> None:
    with tap_in(tmp_path) as (tap, _):
        chunk = copy_of(0, memoryview(b"x"), 1)
        for _ in range(FULL_CHUNKS + 3_000):
            tap.take(chunk)
        assert len(tap.inbox) <= FULL_CHUNKS


@pytest.mark.parametrize("why", [OSError("none"), MemoryError()])
def test_a_link_without_memory_goes_on(monkeypatch: pytest.MonkeyPatch, why: Exception) -> None:
    def no_memory() -> memoryview:
        raise why

    monkeypatch.setattr(slabs, "new_memory", no_memory)
    found = Slabs()
    found.prepare()
    assert len(found._slabs) < 1 + READY_SLABS  # noqa: SLF001 - nothing else shows it
