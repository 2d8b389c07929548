"""More relays than fit, undelivered events that fill the outbox, a database that another holds, a suspended machine."""

import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pysqlite3
import pytest

from kmd.intake.capacity import RESERVED
from tests.support.misbehaving import Act, Request, misbehaving, render_answer
from tests.support.processes import WAIT_S, command, read_status, running_kmd, wait_for, write_config
from tests.support.raw_relay import RawRelay, connected, session_name

LINE = b'{"jsonrpc":"2.0","method":"notifications/message"}\n'


@contextmanager
def kmd_with_descriptors(home: Path, most: int) -> Iterator[int]:
    """kmd that may open so many files; yields its pid."""
    script = f'ulimit -n {most} && exec "$0" --home "$1"'
    process = subprocess.Popen(["/bin/sh", "-c", script, command("kmd"), str(home)], stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: is_up(home), "kmd")
        yield process.pid
    finally:
        process.terminate()
        assert process.wait(WAIT_S) == 0


def is_up(home: Path) -> bool:
    try:
        return bool(read_status(home))
    except OSError:
        return False


def test_more_relays_than_descriptors_are_sent_away_and_kmd_says_so_and_goes_on(tmp_path: Path) -> None:
    fitting = 20
    with kmd_with_descriptors(tmp_path, RESERVED + fitting), ExitStack() as stack:
        relays = [stack.enter_context(connected(tmp_path, session_name(n))) for n in range(fitting)]
        for number in range(fitting, fitting + 50):
            with RawRelay(tmp_path) as relay:
                assert relay.receive() is None, f"relay {number} was let in"
        status = read_status(tmp_path)
        assert status["daemon"]["relays_refused"] == 50
        assert "no more fit" in status["warnings"][0]["message"]
        relays[0].data(0, 0, LINE)
        relays[0].wait_acked(len(LINE))
        relays[1].bye()
        relays[1].wait_bye()
        wait_for(lambda: len(read_status(tmp_path)["sessions"]) == fitting - 1, "a place")
        with connected(tmp_path, session_name(999)) as late:
            late.data(0, 0, LINE)
            late.wait_acked(len(LINE))
        wait_for(lambda: not read_status(tmp_path)["warnings"], "the warning to go")


def test_five_hundred_relays_at_once_are_all_served(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 2048)), hard))
    with running_kmd(tmp_path) as kmd, ExitStack() as stack:
        relays = [stack.enter_context(connected(tmp_path, session_name(n))) for n in range(500)]
        for relay in relays:
            relay.data(0, 0, LINE * 20 + LINE[:-1])
        for relay in relays:
            relay.wait_acked(len(LINE) * 20)
        status = read_status(tmp_path)
        assert len(status["sessions"]) == 500
        assert status["outbox"]["events"] == 500 * 20
        assert (status["daemon"]["relays_refused"], status["warnings"]) == (0, [])
        rss = next(line for line in Path(f"/proc/{kmd.process.pid}/status").read_text().splitlines() if "VmHWM" in line)
        assert int(rss.split()[1]) < 120 << 10


def test_undelivered_events_that_fill_the_outbox_are_warned_of_before_they_go(tmp_path: Path) -> None:
    with misbehaving(lambda request: Act(render_answer(503))) as server:
        write_config(tmp_path, ("team", server.url, "k"), extra="[outbox]\nmax_bytes = 1048576\n")
        with running_kmd(tmp_path), connected(tmp_path, session_name(1)) as relay:
            line = b"x" * 9_999 + b"\n"
            relay.data(0, 0, line * 75)
            relay.wait_acked(75 * len(line))
            wait_for(lambda: read_status(tmp_path)["warnings"], "the warning")
            status = read_status(tmp_path)
            assert status["warnings"][0]["message"].startswith("undelivered events take ")
            assert status["outbox"]["evicted"] == {}
            server.script = server.behave
            wait_for(lambda: read_status(tmp_path)["destinations"][0]["pending"] == 0, "the delivery")
            relay.data(0, 75 * len(line), b"\n")
            wait_for(lambda: not read_status(tmp_path)["warnings"], "the warning to go")


def test_a_database_that_another_program_holds_is_shown_and_waited_for(tmp_path: Path) -> None:
    with running_kmd(tmp_path), connected(tmp_path, session_name(1)) as relay:
        relay.data(0, 0, LINE)
        relay.wait_acked(len(LINE))
        other = pysqlite3.connect(str(tmp_path / "outbox.db"), isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        relay.data(0, len(LINE), LINE)
        error = wait_for(lambda: read_status(tmp_path)["outbox"]["last_error"], "the error in status")
        assert error == "the outbox cannot be used: database is locked"
        other.execute("ROLLBACK")
        other.close()
        relay.wait_acked(2 * len(LINE))
        wait_for(lambda: read_status(tmp_path)["outbox"]["last_error"] is None, "the error to go")


def test_after_a_suspension_one_try_is_made_and_no_burst_of_them(tmp_path: Path) -> None:
    """The machine sleeps while kmd waits to try again: what the server asked for still lies between two tries."""
    came: list[float] = []

    def refuse(request: Request) -> Act:
        came.append(time.monotonic())
        return Act(render_answer(503, Retry_After="1"))

    with misbehaving(refuse) as server:
        write_config(tmp_path, ("team", server.url, "k"))
        with running_kmd(tmp_path) as kmd, connected(tmp_path, session_name(1)) as relay:
            relay.data(0, 0, LINE)
            wait_for(lambda: len(came) >= 2, "the first tries")
            kmd.process.send_signal(signal.SIGSTOP)
            before = len(came)
            time.sleep(3)
            assert len(came) <= before + 1
            kmd.process.send_signal(signal.SIGCONT)
            wait_for(lambda: len(came) >= before + 2, "tries after it", 60)
    assert min(after - earlier for earlier, after in pairwise(came)) >= 1.0


@pytest.mark.parametrize("offset_s", [-365 * 86_400, 365 * 86_400])
def test_a_clock_that_is_a_year_off_stops_nothing(tmp_path: Path, offset_s: int) -> None:
    """What a relay says of the time is stored as it is; nothing in kmd waits for it."""
    with misbehaving() as server:
        write_config(tmp_path, ("team", server.url, "k"))
        with running_kmd(tmp_path), connected(tmp_path, session_name(1)) as relay:
            at_ns = int((time.time() + offset_s) * 1e9)
            relay.data(0, 0, LINE, at_ns)
            relay.data(0, len(LINE), LINE, at_ns - 10**9)
            relay.wait_acked(2 * len(LINE))
            wait_for(lambda: len(server.stored) == 2, "the delivery")
            stored: list[dict[str, Any]] = list(server.stored.values())
    assert [event["at_ns"] for event in stored] == [at_ns, at_ns - 10**9]
