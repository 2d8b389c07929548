"""Spools: what a relay leaves behind is taken in whole, whatever happened to the file since."""

import fcntl
import os
import socket
from pathlib import Path

import pytest

from kmd.record import ACK, DATA, HELLO, NO_STREAM, RecordReader, render_fields, render_head, render_offsets
from kmd.shim.spool import Spool
from kmd.shim.tap import HELD_MAX_BYTES, SPILL_ABOVE_BYTES, Entry, Tap
from tests.support.processes import ask, read_status, running_kmd, wait_for

LINE = b'{"jsonrpc":"2.0","method":"n%03d"}\n'


def hello(session: str) -> bytes:
    fields = {"protocol": b"1", "session": session.encode(), "name": b"s", "command": b"c"}
    return render_fields({**fields, "pid": b"1", "relay_pid": b"2", "started_at_ns": b"5"})


def session_id(number: int) -> str:
    return f"01a20000-0000-7000-8000-{number:012d}"


def entries(count: int) -> list[Entry]:
    lines = [LINE % number for number in range(count)]
    return [Entry(DATA, 0, sum(map(len, lines[:n])), 10 + n, line) for n, line in enumerate(lines)]


def spool_bytes(number: int, count: int = 5) -> bytes:
    body = hello(session_id(number))
    records = [render_head(e.type, e.stream, e.offset, e.at_ns, e.body) + e.body for e in entries(count)]
    return render_head(HELLO, NO_STREAM, 0, 0, body) + body + b"".join(records)


def test_a_spool_cut_at_any_byte_gives_a_prefix_of_its_records() -> None:
    data = spool_bytes(1)
    whole = [(r.type, r.offset, r.body) for r in RecordReader().feed(data)]
    for cut in range(len(data)):
        reader = RecordReader(salvage=True)
        found = [*reader.feed(data[:cut]), *reader.finish()]
        got = [(r.type, r.offset, r.body) for r in found]
        assert got == whole[: len(got)]
        assert sum(len(r.body) for r in found) + 28 * len(found) + reader.lost_bytes == cut


def test_a_flipped_byte_costs_at_most_its_own_record() -> None:
    data = spool_bytes(1)
    whole = [(r.type, r.offset, r.body) for r in RecordReader().feed(data)]
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0x41
        reader = RecordReader(salvage=True)
        got = [(r.type, r.offset, r.body) for r in [*reader.feed(bytes(damaged)), *reader.finish()]]
        assert len(got) == len(whole) - 1
        assert all(record in whole for record in got)


def test_kmd_takes_in_good_torn_and_damaged_spools_and_leaves_a_living_relays_alone(tmp_path: Path) -> None:
    folder = tmp_path / "home" / "spool"
    folder.mkdir(parents=True)
    good, torn, flipped = spool_bytes(1), spool_bytes(2)[:-5], bytearray(spool_bytes(3))
    flipped[-100] ^= 1
    files = {1: good, 2: torn, 3: bytes(flipped), 4: b"", 5: b"nonsense" * 99, 6: spool_bytes(6)}
    for number, data in files.items():
        (folder / f"{session_id(number)}.1.spool").write_bytes(data)
    secret = tmp_path / "secret"
    secret.write_bytes(spool_bytes(7))
    (folder / f"{session_id(7)}.1.spool").symlink_to(secret)
    living = os.open(folder / f"{session_id(6)}.1.spool", os.O_RDONLY)
    fcntl.flock(living, fcntl.LOCK_EX)
    with running_kmd(tmp_path / "home"):
        wait_for(lambda: read_status(tmp_path / "home")["outbox"]["events"] == 5 + 4 + 4, "the adoption")
        names = {f"{session_id(5)}.1.unreadable", f"{session_id(6)}.1.spool", f"{session_id(7)}.1.spool"}
        wait_for(lambda: {path.name for path in folder.iterdir()} == names, "the files to go")
        status = read_status(tmp_path / "home")
        assert status["outbox"]["gap_bytes"] == len(LINE % 0)
        os.close(living)
        assert ask(tmp_path / "home", {"op": "flush"})[-1] == {"done": True}
        assert read_status(tmp_path / "home")["outbox"]["events"] == 5 + 4 + 4 + 5
    assert secret.exists()


def test_a_spool_that_cannot_be_written_keeps_what_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(str(tmp_path), session_id(1), hello(session_id(1)))
    assert spool.append(entries(3))
    size = spool.size_bytes
    monkeypatch.setattr("kmd.shim.spool.FILE_MAX_BYTES", size + 10)
    assert not spool.append(entries(3))
    (path,) = (tmp_path / "spool").iterdir()
    assert path.stat().st_size == spool.size_bytes == size
    assert spool.is_covered((spool.ends[0], 0, 0))
    assert not spool.is_covered((spool.ends[0] - 1, 0, 0))
    spool.discard()
    assert not list((tmp_path / "spool").iterdir())


def test_without_kmd_and_without_a_disk_the_tap_stays_in_its_bound_and_counts() -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    tap = Tap(write_end)
    chunk = b"x" * 65536
    crossed = 0
    while crossed < 3 * HELD_MAX_BYTES:
        tap.keep(1, chunk, 0)
        crossed += len(chunk)
    held = sum(len(entry.body) for entry in tap.take_all())
    assert SPILL_ABOVE_BYTES < held <= HELD_MAX_BYTES
    assert held + tap.skipped_bytes == crossed
    os.close(read_end)
    os.close(write_end)


def test_an_acknowledgement_lets_go_of_what_it_covers_and_of_nothing_else() -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    near, far = socket.socketpair()
    tap = Tap(write_end)
    tap.attach(near, (0, 0, 0))
    for chunk in (b"first\n", b"second\n", b"thi"):
        tap.keep(0, chunk, 0)
    tap.keep(1, b"answer\n", 0)
    tap.absorb()
    far.sendall(render_offsets(ACK, (len(b"first\nsecond\n"), 0, 0)))
    assert tap.read_acks()
    assert tap.durable == (13, 0, 0)
    assert [(entry.stream, entry.offset, entry.body) for entry in tap.take_all()] == [
        (0, 13, b"thi"),
        (1, 0, b"answer\n"),
    ]
    far.close()
    os.close(read_end)
    os.close(write_end)
