"""A damaged outbox never keeps kmd from running: it is set aside, what can be read goes on, the rest is counted."""

import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pysqlite3
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmd.mcp.row import Row
from kmd.outbox.database import PAGE_BYTES
from kmd.outbox.outbox import Outbox
from kmd.outbox.repair import salvaged_of
from kmd.outbox.salvage import LOST
from tests.daemon.test_bounds import fill
from tests.support.misbehaving import misbehaving
from tests.support.processes import quick_km, read_status, running_kmd, start_kmd, wait_for, write_config

COUNT = 1500
TABLE_LEAF = 13
"""The first byte of a page of rows (SQLite's file format, section 1.6); what a large payload goes on in has none."""


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An outbox of COUNT events, a third of them settled, one refused."""
    path = tmp_path_factory.mktemp("pristine") / "outbox.db"
    with Outbox(path) as outbox:
        fill(outbox, COUNT - 500, 300)
        fill(outbox, 500, 9000)
        outbox.open_destination("team")
        outbox.settle("team", list(range(1, 501)), {17: "no"}, 5)
    return path


def wipe_leaf(data: bytes) -> bytes:
    """A file as *data*, but for zeros in the place of a page of events."""
    leaves = [start for start in range(0, len(data), PAGE_BYTES) if data[start] == TABLE_LEAF]
    start = leaves[len(leaves) // 2]
    return data[:start] + bytes(PAGE_BYTES) + data[start + PAGE_BYTES :]


def is_answering(home: Path) -> bool:
    """Whether kmd answers; while it repairs, it does not."""
    try:
        return bool(read_status(home))
    except OSError:
        return False


def damage(path: Path, into: Path, data: bytes) -> Path:
    into.mkdir(exist_ok=True)
    target = into / "outbox.db"
    for left in into.iterdir():
        left.unlink()
    target.write_bytes(data)
    return target


def is_intact(row: Row) -> bool:
    payload = b"%08d" % (row.message.at_ns - 1) + b"x" * (row.message.size_bytes - 8)
    return row.message.payload == payload


def examine(path: Path, *, altered: int = 0) -> int:
    """Open a damaged file as kmd does after a crash; returns how many events survived, all but *altered* intact."""
    with Outbox(path, check_first=True) as outbox:
        rows = outbox.read_events(0, COUNT + 1)
        assert [row.seq for row in rows] == list(range(1, len(rows) + 1))
        assert sum(not is_intact(row) for row in rows) <= altered
        assert len({(row.session.session, row.message.offset) for row in rows}) == len(rows)
        cursor = outbox.open_destination("team").cursor
        assert cursor <= 500
        fill(outbox, 3, 100)
        assert outbox.last_seq == len(rows) + 3
    assert path.stat().st_mode & 0o777 == 0o600
    return len(rows)


def test_one_bad_page_of_events_costs_its_own_and_is_counted(pristine: Path, tmp_path: Path) -> None:
    path = damage(pristine, tmp_path / "a", wipe_leaf(pristine.read_bytes()))
    kept = examine(path)
    assert COUNT - 200 <= kept <= COUNT
    (aside,) = path.parent.glob("outbox.db.damaged-*")
    assert aside.read_bytes() != b""
    with Outbox(path) as outbox:
        lost = outbox.read_totals(0).evicted.get(LOST, (0, 0))[0]
    assert lost + kept in (COUNT, kept)


@given(position=st.floats(0, 1), noise=st.binary(min_size=1, max_size=40))
def test_flipped_bytes_anywhere_never_stop_it(pristine: Path, position: float, noise: bytes) -> None:
    data = bytearray(pristine.read_bytes())
    start = int(position * (len(data) - len(noise)))
    data[start : start + len(noise)] = noise
    path = damage(pristine, pristine.parent / "flipped", bytes(data))
    examine(path, altered=20)  # a page holds no more events than that


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9])
def test_a_file_cut_short_goes_on_with_what_is_left(pristine: Path, tmp_path: Path, share: float) -> None:
    data = pristine.read_bytes()
    path = damage(pristine, tmp_path / "cut", data[: int(len(data) * share)])
    kept = examine(path)
    assert kept >= COUNT * (share - 0.5)


def test_nonsense_instead_of_a_database_is_set_aside_and_at_most_two_copies_stay(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    for number in range(4):
        for left in tmp_path.glob("outbox.db*"):
            if "damaged" not in left.name:
                left.unlink()
        path.write_bytes(b"nonsense %d " % number * 1000)
        with Outbox(path) as outbox:
            assert outbox.last_seq == 0
    assert len(list(tmp_path.glob("outbox.db.damaged-*"))) == 2


def test_kmd_checks_the_file_after_a_crash_and_serves_what_is_left(tmp_path: Path) -> None:
    home = tmp_path / "home"
    kmd = start_kmd(home)
    lines = b"".join(b"%06d\n" % number for number in range(2000))
    subprocess.run(quick_km(home, "cat", "cat"), input=lines, stdout=subprocess.DEVNULL, check=True, timeout=30)
    wait_for(lambda: read_status(home)["outbox"]["events"] == 4000, "the commits")
    kmd.stop()  # a clean stop folds the log into the file
    (home / "kmd.lock").write_text("123\n")  # as a kill would have left it
    data = bytearray((home / "outbox.db").read_bytes())
    page = len(data) // 4096 * 2 // 3
    data[page * 4096 : page * 4096 + 4096] = bytes(4096)
    (home / "outbox.db").write_bytes(data)
    with running_kmd(home):
        outbox = read_status(home)["outbox"]
        lost = outbox["evicted"].get(LOST, {"events": 0})["events"]
        assert lost + outbox["events"] == 4000
        assert lost < 1000
        assert list(home.glob("outbox.db.damaged-*"))
    assert (home / "kmd.lock").read_bytes() == b""


@pytest.mark.parametrize("size", [100, PAGE_BYTES])
def test_a_damaged_header_costs_no_event(pristine: Path, tmp_path: Path, size: int) -> None:
    data = pristine.read_bytes()
    path = damage(pristine, tmp_path / "header", bytes(size) + data[size:])
    assert examine(path) == COUNT
    with Outbox(path) as outbox:
        assert outbox.quarantine.counts == {"team": 1}
        assert LOST not in outbox.read_totals(0).evicted
    assert {part.name.partition(".damaged-")[0] for part in path.parent.iterdir()} == {"outbox.db"}


def test_what_cannot_be_read_at_all_is_counted_in_bytes(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    path.write_bytes(b"nonsense" * 5000)
    with Outbox(path) as outbox:
        assert outbox.read_totals(0).evicted == {LOST: (0, 40000)}


def test_a_last_number_that_no_file_could_hold_is_not_believed(pristine: Path, tmp_path: Path) -> None:
    path = damage(pristine, tmp_path / "number", wipe_leaf(pristine.read_bytes()))
    with closing(pysqlite3.connect(str(path))) as database:
        database.execute("UPDATE sqlite_sequence SET seq = 4611686018427387904")
        database.commit()
    kept = examine(path)
    assert COUNT - 200 <= kept < COUNT
    with Outbox(path) as outbox:
        assert outbox.read_totals(0).evicted[LOST][0] == COUNT - kept


@pytest.mark.parametrize("moved", [(), ("-wal",), ("-wal", "")])
def test_a_repair_that_was_killed_is_finished_or_begins_anew(
    pristine: Path, tmp_path: Path, moved: tuple[str, ...]
) -> None:
    path = damage(pristine, tmp_path / "killed", pristine.read_bytes()[:-PAGE_BYTES])
    whole = salvaged_of(path)
    whole.write_bytes(pristine.read_bytes())
    for suffix in ("-wal", ".salvaging", ".salvaging-wal", ".mended"):
        path.with_name(path.name + suffix).write_bytes(b"what a killed one leaves")
    for suffix in moved:
        part = path.with_name(path.name + suffix)
        part.rename(part.with_name(f"outbox.db.damaged-{1:020d}{suffix}"))
    assert examine(path) == COUNT
    assert not whole.exists()


def test_what_a_killed_repair_has_left_does_not_get_into_the_next(pristine: Path, tmp_path: Path) -> None:
    path = damage(pristine, tmp_path / "left", wipe_leaf(pristine.read_bytes()))
    for suffix in (".salvaging", ".mended"):
        for own in ("", "-journal", "-wal", "-shm"):
            path.with_name(path.name + suffix + own).write_bytes(pristine.read_bytes()[:50_000])
    assert COUNT - 200 <= examine(path) < COUNT
    assert {part.name.partition(".damaged-")[0] for part in path.parent.iterdir()} == {"outbox.db"}


def test_a_repair_that_has_no_room_leaves_the_damaged_outbox_where_it_is(pristine: Path, tmp_path: Path) -> None:
    data = wipe_leaf(pristine.read_bytes())
    path = damage(pristine, tmp_path / "full", data)
    program = (
        "import resource, sys; from pathlib import Path; from kmd.errors import OutboxError, OutboxCorrupt\n"
        "from kmd.outbox.outbox import Outbox\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "try: Outbox(Path(sys.argv[1]), check_first=True)\n"
        "except OutboxCorrupt: sys.exit(4)\n"
        "except OutboxError: sys.exit(3)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(path)], timeout=60, check=False).returncode == 3
    assert [part.name for part in path.parent.iterdir()] == ["outbox.db"]
    assert path.read_bytes()[PAGE_BYTES:] == data[PAGE_BYTES:]
    assert examine(path) >= COUNT - 200


def test_damage_that_is_met_while_kmd_runs_is_repaired_and_everything_else_is_delivered(tmp_path: Path) -> None:
    home = tmp_path / "home"
    write_config(home, ("team", "http://127.0.0.1:9", "key"))
    kmd = start_kmd(home)
    lines = b"".join(b"%06d %s\n" % (number, b"x" * 500) for number in range(2000))
    subprocess.run(quick_km(home, "cat", "cat"), input=lines, stdout=subprocess.DEVNULL, check=True, timeout=30)
    wait_for(lambda: read_status(home)["outbox"]["events"] == 4000, "the commits")
    kmd.stop()  # after a clean stop nobody reads through the file
    (home / "outbox.db").write_bytes(wipe_leaf((home / "outbox.db").read_bytes()))
    with misbehaving() as server:
        write_config(home, ("team", server.url, "key"))
        with running_kmd(home) as kmd:
            pid = kmd.process.pid

            def lost() -> int:
                evicted = read_status(home)["outbox"]["evicted"]
                return int(evicted.get(LOST, {"events": 0})["events"])

            wait_for(lambda: is_answering(home) and lost() + len(server.stored) == 4000, "what is left")
            assert 0 < lost() < 200
            assert read_status(home)["daemon"]["pid"] == pid
            assert list(home.glob("outbox.db.damaged-*"))
