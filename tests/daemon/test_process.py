"""kmd as a process: one per home, quick to end, not to be hurt by what comes to its sockets."""

import os
import signal
import socket
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from tests.support.misbehaving import Act, Misbehaving, Request, misbehaving, render_answer
from tests.support.processes import (
    WAIT_S,
    Running,
    ask,
    command,
    quick_km,
    read_status,
    running_kmd,
    start_kmd,
    wait_for,
    write_config,
)
from tests.support.raw_relay import RawRelay, connected, session_name

LINE = b'{"jsonrpc":"2.0","method":"notifications/message"}\n'


def run_kmd(home: Path) -> subprocess.CompletedProcess[str]:
    """A kmd that is expected to end by itself."""
    return subprocess.run([command("kmd"), "--home", str(home)], capture_output=True, text=True, timeout=WAIT_S)


def is_refused(done: subprocess.CompletedProcess[str]) -> bool:
    """One line that says what is wrong and one with the next thing to do."""
    first, second = done.stderr.splitlines()
    return (done.returncode, first[:7], second[:6]) == (1, "error: ", "hint: ")


def test_a_second_kmd_is_refused_in_one_line_and_the_first_goes_on(tmp_path: Path) -> None:
    with running_kmd(tmp_path) as first:
        done = run_kmd(tmp_path)
        assert is_refused(done)
        assert "already running" in done.stderr
        assert f"pid {first.process.pid}" in done.stderr
        assert read_status(tmp_path)["daemon"]["pid"] == first.process.pid


@pytest.mark.parametrize("text", ["[sync\nbatch_events = 5\n", '[log]\nlevel = "loud"\n', "[sync]\nbatch_event = 5\n"])
def test_a_broken_config_is_one_line_with_the_file_and_a_hint(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    done = run_kmd(tmp_path)
    assert is_refused(done)
    assert str(tmp_path / "config.toml") in done.stderr
    assert "Traceback" not in done.stderr


def test_broken_toml_is_shown_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[sync]\nbatch_events = 5\nthis is no toml\n")
    assert "line 3" in run_kmd(tmp_path).stderr.splitlines()[0]


def test_a_home_that_is_a_file_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("in the way")
    done = subprocess.run([command("kmd")], env={**os.environ, "KM_HOME": str(tmp_path / "home")}, capture_output=True)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr


def test_of_ten_started_at_once_exactly_one_stays(tmp_path: Path) -> None:
    words = [command("kmd"), "--home", str(tmp_path)]
    started = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for _ in range(10)]
    try:
        wait_for(lambda: sum(process.poll() is None for process in started) == 1, "nine to end", 40)
        (left,) = [process for process in started if process.poll() is None]
        assert {process.returncode for process in started if process is not left} == {1}
        assert wait_for(lambda: answering_pid(tmp_path), "an answer") == left.pid
    finally:
        for process in started:
            process.terminate()
            process.communicate(timeout=WAIT_S)


def answering_pid(home: Path) -> int:
    try:
        pid: int = read_status(home)["daemon"]["pid"]
    except OSError:
        return 0
    return pid


def test_a_kmd_that_was_killed_leaves_nothing_in_the_way_of_the_next(tmp_path: Path) -> None:
    killed = start_kmd(tmp_path)
    killed.stop(signal.SIGKILL)
    assert (tmp_path / "kmd.sock").exists()
    with running_kmd(tmp_path) as kmd:
        assert read_status(tmp_path)["daemon"]["pid"] == kmd.process.pid
        with connected(tmp_path, session_name(1)) as relay:
            relay.data(0, 0, LINE)
            relay.wait_acked(len(LINE))


def test_files_that_are_no_sockets_do_not_stop_it(tmp_path: Path) -> None:
    (tmp_path / "kmd.sock").write_text("")
    (tmp_path / "control.sock").symlink_to("/nonexistent")
    with running_kmd(tmp_path), RawRelay(tmp_path) as relay:
        assert relay.hello(session_name(1)) == (0, 0, 0)


def plant(place: Path, kind: str) -> None:
    match kind:
        case "folder":
            place.mkdir()
        case "link":
            place.symlink_to(place.with_name("elsewhere"))
        case "fifo":
            os.mkfifo(place)
        case "file":
            place.write_text("in the way")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, kind) for name in ("kmd.lock", "config.toml", "outbox.db") for kind in ("folder", "fifo")),
        *((name, "link") for name in ("kmd.lock", "outbox.db")),
    ],
)
def test_what_is_no_file_is_refused_at_once_and_in_words(tmp_path: Path, name: str, kind: str) -> None:
    plant(tmp_path / name, kind)
    done = run_kmd(tmp_path)
    assert (done.returncode, done.stderr[:7]) == (1, "error: ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("kind", ["file", "link", "fifo"])
def test_a_spool_folder_that_is_none_does_not_stop_it(tmp_path: Path, kind: str) -> None:
    plant(tmp_path / "spool", kind)
    with running_kmd(tmp_path) as kmd, connected(tmp_path, session_name(1)) as relay:
        relay.data(0, 0, LINE)
        relay.wait_acked(len(LINE))
        assert kmd.process.poll() is None


def test_everything_is_for_this_user_only(tmp_path: Path) -> None:
    home = tmp_path / "home"
    old = os.umask(0)
    try:
        with running_kmd(home):
            modes = {path.name: stat.S_IMODE(path.lstat().st_mode) for path in home.iterdir()}
            assert {"kmd.sock", "control.sock", "outbox.db", "kmd.lock"} <= modes.keys()
            assert {name: mode for name, mode in modes.items() if mode not in (0o600, 0o700)} == {}
            assert {modes[name] for name in ("kmd.sock", "control.sock", "outbox.db", "kmd.lock")} == {0o600}
            assert stat.S_IMODE(home.stat().st_mode) == 0o700
    finally:
        os.umask(old)


@contextmanager
def traffic(home: Path) -> Iterator[list[int]]:
    """Relays that send as fast as kmd acknowledges; yields how far each was acknowledged."""
    acked, stopping = [0] * 3, threading.Event()

    def send(number: int) -> None:
        try:
            with connected(home, session_name(100 + number)) as relay:
                while not stopping.is_set():
                    relay.data(0, acked[number], LINE * 200)
                    acked[number] = relay.wait_acked(acked[number] + len(LINE) * 200)[0]
        except (OSError, AssertionError):
            return

    threads = [threading.Thread(target=send, args=(number,)) for number in range(len(acked))]
    for thread in threads:
        thread.start()
    try:
        yield acked
    finally:
        stopping.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_within_two_seconds_under_traffic_and_keeps_what_it_acknowledged(tmp_path: Path, signum: int) -> None:
    kmd = start_kmd(tmp_path)
    try:
        with traffic(tmp_path) as acked:
            wait_for(lambda: min(acked) > len(LINE) * 400, "traffic")
            kmd.process.send_signal(signum)
            assert kmd.process.wait(2.0) == 0
    finally:
        kmd.stop(signal.SIGKILL)
    assert not (tmp_path / "kmd.sock").exists()
    with running_kmd(tmp_path):
        for number, least in enumerate(acked):
            with RawRelay(tmp_path) as relay:
                assert relay.hello(session_name(100 + number))[0] >= least
        assert read_status(tmp_path)["outbox"]["events"] * len(LINE) >= sum(acked)


def requires(key: str, server: Misbehaving) -> None:
    def script(request: Request) -> Act:
        if request.headers.get("authorization") != f"Bearer {key}":
            return Act(render_answer(401))
        return server.behave(request)

    server.script = script


def commit_line(home: Path, number: int) -> None:
    with connected(home, session_name(number)) as relay:
        relay.data(0, 0, LINE)
        relay.wait_acked(len(LINE))


def destination(home: Path) -> dict[str, object]:
    (row,) = read_status(home)["destinations"]
    return dict(row)


def wait_state(home: Path, state: str) -> None:
    wait_for(lambda: destination(home)["state"] == state, state)


@pytest.mark.parametrize("waits", [True, False])
def test_it_ends_when_it_is_asked_to_over_the_control_socket(tmp_path: Path, waits: bool) -> None:  # noqa: FBT001
    kmd = start_kmd(tmp_path)
    try:
        if waits:
            assert ask(tmp_path, {"op": "stop"}) == [{"done": True}]
        else:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as hasty:
                hasty.connect(str(tmp_path / "control.sock"))
                hasty.sendall(b'{"op":"stop"}\n')
        assert kmd.process.wait(WAIT_S) == 0
        assert [path.name for path in tmp_path.glob("*.sock")] == []
        assert (tmp_path / "kmd.lock").read_bytes() == b""
    finally:
        kmd.process.kill()
        kmd.process.wait()


def test_a_refused_key_pauses_until_the_new_one_is_read_on_sighup(tmp_path: Path) -> None:
    with misbehaving() as server:
        requires("km_new", server)
        write_config(tmp_path, ("team", server.url, "km_old"))
        with running_kmd(tmp_path) as kmd:
            commit_line(tmp_path, 1)
            wait_state(tmp_path, "paused")
            row = destination(tmp_path)
            assert (row["pending"], row["settled"], row["quarantined"]) == (1, 0, 0)
            assert row["hint"]
            tries = len(server.requests)
            commit_line(tmp_path, 2)
            write_config(tmp_path, ("team", server.url, "km_new"))
            kmd.process.send_signal(signal.SIGHUP)
            wait_for(lambda: destination(tmp_path)["settled"] == 2, "both events")
            assert destination(tmp_path)["last_error"] is None
            assert tries == 1
        assert "km_old" not in kmd.log.read_text() + str(row)


def test_a_paused_destination_tries_again_on_flush_and_says_why_it_cannot(tmp_path: Path) -> None:
    with misbehaving() as server:
        requires("km_new", server)
        write_config(tmp_path, ("team", server.url, "km_old"))
        with running_kmd(tmp_path):
            commit_line(tmp_path, 1)
            wait_state(tmp_path, "paused")
            done = ask(tmp_path, {"op": "flush", "timeout_s": 10})[-1]
            assert (done["done"], done["reasons"][0]["state"]) == (False, "paused")
            server.script = server.behave
            assert ask(tmp_path, {"op": "flush", "timeout_s": 10})[-1] == {"done": True}


def test_sighup_with_a_broken_file_changes_nothing_and_is_logged(tmp_path: Path) -> None:
    with misbehaving() as server:
        write_config(tmp_path, ("team", server.url, "km_x"))
        with running_kmd(tmp_path) as kmd:
            (tmp_path / "config.toml").write_text("[[[")
            kmd.process.send_signal(signal.SIGHUP)
            wait_for(lambda: "not read again" in kmd.log.read_text(), "the log line")
            assert ask(tmp_path, {"op": "reload"})[0]["error"]["hint"]
            commit_line(tmp_path, 1)
            wait_for(lambda: destination(tmp_path)["settled"] == 1, "the event")


def test_destinations_come_and_go_with_the_file(tmp_path: Path) -> None:
    with misbehaving() as first, misbehaving() as second:
        with running_kmd(tmp_path):
            commit_line(tmp_path, 1)
            assert read_status(tmp_path)["destinations"] == []
            write_config(tmp_path, ("a", first.url, ""), ("b", second.url, ""))
            assert ask(tmp_path, {"op": "reload"}) == [{"done": True}]
            wait_for(lambda: len(first.stored) == len(second.stored) == 1, "both")
            write_config(tmp_path, ("b", second.url, ""))
            assert ask(tmp_path, {"op": "reload"}) == [{"done": True}]
            assert [row["name"] for row in read_status(tmp_path)["destinations"]] == ["b"]
        assert (first.duplicates, second.duplicates) == (0, 0)


def test_a_home_longer_than_a_socket_address_works_for_kmd_and_km(tmp_path: Path) -> None:
    home, short = tmp_path / ("x" * 60) / ("y" * 60) / "home", tmp_path / "short"
    home.mkdir(parents=True, mode=0o700)
    short.symlink_to(home)
    assert len(str(home)) > 108
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen([command("kmd"), "--home", str(home)], stderr=stderr)
    kmd = Running(process, log)
    try:
        assert wait_for(lambda: answering_pid(short), "kmd") == process.pid
        echoed = subprocess.run(quick_km(home, "cat", "cat"), input=LINE, capture_output=True, timeout=WAIT_S)
        assert (echoed.stdout, echoed.returncode) == (LINE, 0)
        wait_for(lambda: read_status(short)["outbox"]["events"] == 2, "both lines")
    finally:
        assert kmd.stop() == 0


def pieces_of_garbage(random: Random) -> Iterator[bytes]:
    yield from (b"", b"\n", b"\x00", b"\xff" * 70_000, b"[" * 70_000, b"{" * 5000 + b"\n", b"null\n", b"[]\n", b"7\n")
    yield from (b'{"op":7}\n', b'{"op":"status","limit":"x"}\n', b'{"op":"\xff"}\n', b'{"op":"status"', b'"status"\n')
    yield from (b'{"op":"flush","timeout_s":-1e308}\n', b'{"op":"tail","limit":-5}\n', b'{"op":"tail","limit":1e400}\n')
    for size in (1, 10, 24, 28, 100, 5000):
        yield random.randbytes(size)
        yield random.randbytes(size) + b"\n"


def test_garbage_on_either_socket_never_ends_it(tmp_path: Path) -> None:
    random = Random(7)  # noqa: S311 - to be the same each time
    with running_kmd(tmp_path) as kmd:
        for name in ("kmd.sock", "control.sock"):
            for garbage in pieces_of_garbage(random):
                throw(tmp_path / name, garbage, wait=b"\n" in garbage and name == "control.sock")
            for _ in range(50):
                throw(tmp_path / name, b"", wait=False)
        assert read_status(tmp_path)["daemon"]["pid"] == kmd.process.pid
        commit_line(tmp_path, 1)
        assert "Traceback" not in kmd.log.read_text()
        assert "a connection failed" not in kmd.log.read_text()


def throw(path: Path, garbage: bytes, *, wait: bool) -> None:
    """Send *garbage*; a control request gets an answer, whatever it is."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(WAIT_S)
        sock.connect(str(path))
        try:
            sock.sendall(garbage)
            if wait:
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(65536):
                    pass
        except (BrokenPipeError, ConnectionResetError):
            return


def test_a_relay_that_says_nothing_does_not_keep_the_others_waiting(tmp_path: Path) -> None:
    with running_kmd(tmp_path), RawRelay(tmp_path), RawRelay(tmp_path) as half:
        half.send(b"\x01\xff")
        commit_line(tmp_path, 1)
        commit_line(tmp_path, 2)
