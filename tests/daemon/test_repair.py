"""A damaged outbox never keeps kmd from running: it is set aside, what can be read goes on, the rest is counted."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmd.mcp.row import Row
from kmd.outbox.outbox import Outbox
from kmd.outbox.repair import LOST
from tests.daemon.test_bounds import fill
from tests.support.processes import quick_km, read_status, running_kmd, start_kmd, wait_for

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
    data = bytearray(pristine.read_bytes())
    leaves = [start for start in range(0, len(data), 4096) if data[start] == TABLE_LEAF]
    start = leaves[len(leaves) // 2]
    data[start : start + 4096] = bytes(4096)
    path = damage(pristine, tmp_path / "a", bytes(data))
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
