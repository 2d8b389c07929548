"""Spools: what a relay leaves behind is taken in whole, whatever happened to the file since."""

import fcntl
import os
from pathlib import Path

import pytest

from kmd.record import (
    BYE,
    DATA,
    HEADER_BYTES,
    HELLO,
    NO_STREAM,
    RUN,
    RecordReader,
    parse_run,
    render_fields,
    render_head,
    render_run,
)
from kmd.shim.held import Entry
from kmd.shim.hello import boot_id
from kmd.shim.spool import Spool
from tests.support.processes import ask, read_status, running_kmd, wait_for

LINE = b'{"jsonrpc":"2.0","method":"n%03d"}\n'


def hello(session: str, boot: bytes = b"") -> bytes:
    fields = {"protocol": b"2", "session": session.encode(), "name": b"s", "command": b"c"}
    return render_fields({**fields, "pid": b"1", "relay_pid": b"2", "started_at_ns": b"5", "boot": boot})


def session_id(number: int) -> str:
    return f"01a20000-0000-7000-8000-{number:012d}"


def entries(count: int) -> list[Entry]:
    lines = [LINE % number for number in range(count)]
    starts = [sum(map(len, lines[:n])) for n in range(count + 1)]
    return [
        Entry(DATA, 0, starts[n], 10 + n, (line,), (starts[n + 1], 0, 0), len(line)) for n, line in enumerate(lines)
    ]


def spool_bytes(number: int, count: int = 5) -> bytes:
    body = hello(session_id(number))
    records = [part for entry in entries(count) for part in entry.for_file()]
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


def unsealed_spool(home: Path, number: int, boot: bytes) -> Spool:
    """A spool as a relay has it that was killed with a bulk in it."""
    spool = Spool(str(home), session_id(number), hello(session_id(number), boot))
    assert spool.append(entries(2))
    body = b"".join(LINE % n for n in (2, 3))
    read_end, write_end = os.pipe()
    os.write(write_end, body)
    table = render_run((spool.ends[0], 0, 0), b"\0", [len(body)], [7])
    assert spool.append_pipe(RUN, 7, table, read_end, len(body), (spool.ends[0] + len(body), 0, 0)) is None
    os.close(read_end)
    os.close(write_end)
    return spool


def read_spool(path: Path, *, trusts_bodies: bool) -> list[int]:
    reader = RecordReader(salvage=True)
    reader.trusts_bodies = trusts_bodies
    return [record.type for record in [*reader.feed(path.read_bytes()), *reader.finish()]]


def test_a_bulk_in_the_spool_is_sealed_when_the_relay_leaves(tmp_path: Path) -> None:
    spool = unsealed_spool(tmp_path, 1, b"")
    (path,) = (tmp_path / "spool").iterdir()
    assert read_spool(path, trusts_bodies=False) == [HELLO, DATA, DATA]
    before = path.read_bytes()
    spool.seal()
    assert read_spool(path, trusts_bodies=False) == [HELLO, DATA, DATA, RUN]
    after = path.read_bytes()
    assert len(after) == len(before) == spool.size_bytes
    for at in range(len(after) - len(LINE % 3), len(after)):
        damaged = bytearray(after)
        damaged[at] ^= 1
        path.write_bytes(damaged)
        assert read_spool(path, trusts_bodies=True) == [HELLO, DATA, DATA]


@pytest.mark.parametrize(("boot", "events"), [(boot_id(), 4), (b"another", 2), (b"", 2)])
def test_kmd_believes_an_unsealed_bulk_only_if_the_machine_has_not_been_down(
    boot: bytes, events: int, tmp_path: Path
) -> None:
    spool = unsealed_spool(tmp_path / "home", 1, boot)
    end = render_fields({"closed_first": b"client", "length.0": b"%d" % spool.ends[0]})
    assert spool.append([Entry(BYE, NO_STREAM, 0, 9, (end,), (1 << 62,) * 3, 0)])
    os.close(spool._fd)
    with running_kmd(tmp_path / "home"):
        wait_for(lambda: not list((tmp_path / "home" / "spool").iterdir()), "the adoption")
        outbox = read_status(tmp_path / "home")["outbox"]
    assert outbox["events"] == events
    assert outbox["gap_bytes"] == (4 - events) * len(LINE % 0)


def test_a_line_that_a_killed_relay_cut_off_is_a_gap_and_no_message(tmp_path: Path) -> None:
    folder = tmp_path / "home" / "spool"
    folder.mkdir(parents=True)
    lines = (LINE % 0) + (LINE % 1)[:9]
    body = hello(session_id(1))
    data = render_head(HELLO, NO_STREAM, 0, 0, body) + body + render_head(DATA, 0, 0, 3, lines) + lines
    (folder / f"{session_id(1)}.1.spool").write_bytes(data)
    with running_kmd(tmp_path / "home"):
        wait_for(lambda: not list(folder.iterdir()), "the adoption")
        outbox = read_status(tmp_path / "home")["outbox"]
    assert (outbox["events"], outbox["gap_bytes"]) == (1, 9)


def test_a_bulk_that_the_disk_does_not_take_comes_back_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(str(tmp_path), session_id(1), hello(session_id(1)))
    assert spool.append(entries(2))
    (path,) = (tmp_path / "spool").iterdir()
    before = path.read_bytes()
    read_end, write_end = os.pipe()
    body = bytes(range(256)) * 100
    os.write(write_end, body)

    def full_after_a_page(source: int, target: int, count: int, *, offset_dst: int) -> int:
        if offset_dst > len(before) + HEADER_BYTES + 4096:
            raise OSError("no space")
        return splice(source, target, 4096, offset_dst=offset_dst)

    splice = os.splice
    monkeypatch.setattr("os.splice", full_after_a_page)
    assert spool.append_pipe(RUN, 7, b"table", read_end, len(body), (len(body), 0, 0)) == body
    assert path.read_bytes() == before
    assert spool.size_bytes == len(before)
    os.close(read_end)
    os.close(write_end)


def test_runs_come_back_as_they_went() -> None:
    chunks = [(0, 5, b"abc", 1), (1, 9, b"x", 2), (0, 8, b"", 3), (0, 8, b"de", 4)]
    table = render_run((5, 9, 0), bytes(c[0] for c in chunks), [len(c[2]) for c in chunks], [c[3] for c in chunks])
    assert parse_run(table + b"abcxde") == chunks
