"""kmd under a service manager: sockets that were passed to it, and what it tells the manager."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from kmd.errors import KilometersError
from kmd.intake.activation import open_activated, plan_activation, take_activated
from kmd.intake.peer import Role
from tests.support.processes import WAIT_S, Running, command, read_status, running_kmd, start_kmd, wait_for
from tests.support.raw_relay import RawRelay, session_name

EXEC_AS_MANAGER = """
import fcntl, os, sys
given = [int(word) for word in sys.argv[1].split(",") if word]
passed = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 64) for descriptor in given]
for descriptor in given:
    os.close(descriptor)
for number, descriptor in enumerate(passed):
    os.dup2(descriptor, 3 + number)
    os.close(descriptor)
os.environ.setdefault("LISTEN_PID", str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Puts the descriptors where the protocol has them, and becomes kmd."""
NAMES = ("kmd.sock", "control.sock")


def listening(path: Path, kind: int = socket.SOCK_STREAM) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, kind)
    sock.bind(str(path))
    path.chmod(0o600)
    if kind == socket.SOCK_STREAM:
        sock.listen()
    return sock


def start_activated(
    home: Path, passed: Sequence[int], environ: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """kmd with *passed* from descriptor 3 on."""
    words = [sys.executable, "-c", EXEC_AS_MANAGER, ",".join(map(str, passed))]
    return subprocess.Popen(
        [*words, command("kmd"), "--home", str(home)],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=passed,
        env={**os.environ, "LISTEN_FDS": str(len(passed)), **(environ or {})},
    )


@contextmanager
def activated_kmd(
    home: Path, passed: Sequence[socket.socket], environ: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """kmd on the sockets *passed*, for as long as the block runs; it has to end well."""
    process = start_activated(home, [sock.fileno() for sock in passed], environ)
    try:
        wait_for(lambda: answering_pid(home) == process.pid, "kmd")
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0
    finally:
        process.kill()
        process.communicate()


def answering_pid(home: Path) -> int:
    try:
        return int(read_status(home)["daemon"]["pid"])
    except OSError:
        return 0


@pytest.mark.parametrize("count", [0, 1, 2])
def test_it_takes_the_sockets_in_order_and_leaves_their_files(tmp_path: Path, count: int) -> None:
    passed = [listening(tmp_path / name) for name in NAMES[:count]]
    inodes = [(tmp_path / name).stat().st_ino for name in NAMES[:count]]
    with activated_kmd(tmp_path, passed), RawRelay(tmp_path) as relay:
        assert relay.hello(session_name(1)) == (0, 0, 0)
    assert [name for name in NAMES if (tmp_path / name).exists()] == list(NAMES[:count])
    assert [(tmp_path / name).stat().st_ino for name in NAMES[:count]] == inodes
    for sock in passed:
        sock.close()


def test_names_say_which_is_which(tmp_path: Path) -> None:
    relays, control = (listening(tmp_path / name) for name in NAMES)
    with (
        relays,
        control,
        activated_kmd(tmp_path, [control, relays], {"LISTEN_FDNAMES": "control:kmd"}),
        RawRelay(tmp_path) as relay,
    ):
        assert relay.hello(session_name(1)) == (0, 0, 0)


def test_control_alone_may_be_passed(tmp_path: Path) -> None:
    with listening(tmp_path / "control.sock") as control:
        with activated_kmd(tmp_path, [control], {"LISTEN_FDNAMES": "control"}), RawRelay(tmp_path) as relay:
            assert relay.hello(session_name(1)) == (0, 0, 0)
        assert (tmp_path / "control.sock").exists()
        assert not (tmp_path / "kmd.sock").exists()


def test_who_has_connected_before_it_started_is_served(tmp_path: Path) -> None:
    with listening(tmp_path / "kmd.sock") as listener, RawRelay(tmp_path) as early, activated_kmd(tmp_path, [listener]):
        assert early.hello(session_name(1)) == (0, 0, 0)


def test_one_that_takes_over_goes_on_with_the_same_sockets(tmp_path: Path) -> None:
    with listening(tmp_path / "kmd.sock") as listener:
        for number in range(2):
            with activated_kmd(tmp_path, [listener]), RawRelay(tmp_path) as relay:
                assert relay.hello(session_name(number)) == (0, 0, 0)


@pytest.mark.skipif(not Path("/proc/self/fdinfo").exists(), reason="needs /proc")
def test_no_program_that_kmd_might_start_inherits_them(tmp_path: Path) -> None:
    with listening(tmp_path / "kmd.sock") as listener, activated_kmd(tmp_path, [listener]) as process:
        for entry in Path(f"/proc/{process.pid}/fdinfo").iterdir():
            if int(entry.name) >= 3:
                (flags,) = (line.split()[1] for line in entry.read_text().splitlines() if line.startswith("flags:"))
                assert int(flags, 8) & os.O_CLOEXEC, entry.name


def test_sockets_for_another_process_are_not_touched(tmp_path: Path) -> None:
    with (
        listening(tmp_path / "theirs") as theirs,
        activated_kmd(tmp_path, [theirs], {"LISTEN_PID": "1"}),
        RawRelay(tmp_path) as relay,
    ):
        assert relay.hello(session_name(1)) == (0, 0, 0)
    assert not (tmp_path / "kmd.sock").exists()


@pytest.mark.parametrize("kind", ["pipe", "datagram", "not listening", "TCP", "file", "closed"])
def test_what_is_no_listening_unix_stream_socket_is_an_error(tmp_path: Path, kind: str) -> None:
    with open_wrong(tmp_path, kind) as passed:
        process = start_activated(tmp_path / "home", passed, {"LISTEN_FDS": "1"})
        _, shown = process.communicate(timeout=WAIT_S)
    error, hint = shown.decode().splitlines()
    assert process.returncode == 1
    assert error.startswith("error: descriptor 3, passed as the socket 'kmd', is no listening Unix stream socket")
    assert hint.startswith("hint: ")
    assert not (tmp_path / "home").exists()


@contextmanager
def open_wrong(folder: Path, kind: str) -> Iterator[list[int]]:
    match kind:
        case "pipe":
            reader, writer = os.pipe()
            try:
                yield [reader]
            finally:
                os.close(reader)
                os.close(writer)
        case "datagram":
            with listening(folder / "wrong", socket.SOCK_DGRAM) as sock:
                yield [sock.fileno()]
        case "not listening":
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                yield [sock.fileno()]
        case "TCP":
            with socket.create_server(("127.0.0.1", 0)) as sock:
                yield [sock.fileno()]
        case "file":
            with (folder / "file").open("wb") as file:
                yield [file.fileno()]
        case _:
            yield []


@pytest.mark.parametrize(
    ("number", "names", "planned"),
    [
        ("0", "", {}),
        ("1", "", {Role.INTAKE: 3}),
        ("2", "", {Role.INTAKE: 3, Role.CONTROL: 4}),
        ("1", "kmd.socket", {Role.INTAKE: 3}),
        ("2", "unknown:unknown", {Role.INTAKE: 3, Role.CONTROL: 4}),
        ("2", "control:kmd", {Role.INTAKE: 4, Role.CONTROL: 3}),
        ("1", "control", {Role.CONTROL: 3}),
        ("3", "", None),
        ("", "", None),
        ("-1", "", None),
        ("two", "", None),
        ("2", "kmd:kmd", None),
        ("2", "kmd:other", None),
        ("2", "kmd", None),
        ("1", "kmd:control", None),
    ],
)
def test_the_plan(number: str, names: str, planned: dict[Role, int] | None) -> None:
    environ = {"LISTEN_PID": "7", "LISTEN_FDS": number, **({"LISTEN_FDNAMES": names} if names else {})}
    assert plan_activation(environ, 8) == {}
    if planned is not None:
        assert plan_activation(environ, 7) == planned
        return
    with pytest.raises(KilometersError) as caught:
        plan_activation(environ, 7)
    assert caught.value.hint


def test_without_a_manager_nothing_is_taken() -> None:
    assert take_activated({}, os.getpid()) == {}


@pytest.mark.trio
async def test_a_socket_can_be_listened_on_again_after_its_listener_was_closed(tmp_path: Path) -> None:
    with listening(tmp_path / "kmd.sock") as sock:
        for _ in range(2):
            listener = open_activated(sock.fileno())
            with socket.socket(socket.AF_UNIX) as peer:
                peer.connect(str(tmp_path / "kmd.sock"))
                stream = await listener.accept()
                await stream.aclose()
            await listener.aclose()


@contextmanager
def manager(address: str | bytes) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(WAIT_S)
        sock.bind(address)
        yield sock


def start_notifying(home: Path, address: str) -> Running:
    return start_kmd(home, {"NOTIFY_SOCKET": address})


def test_a_manager_hears_when_it_is_ready_and_when_it_stops(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with manager(path) as sock:
        log = tmp_path / "log"
        with log.open("wb") as stderr:
            words = [command("kmd"), "--home", str(tmp_path / "home")]
            process = subprocess.Popen(words, stderr=stderr, env={**os.environ, "NOTIFY_SOCKET": path})
        kmd = Running(process, log)
        try:
            assert sock.recv(4096) == b"READY=1"
            assert answering_pid(tmp_path / "home") == process.pid  # at once, without another try
        finally:
            assert kmd.stop() == 0
        assert sock.recv(4096) == b"STOPPING=1"


@pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux's")
def test_a_manager_may_have_an_abstract_socket(tmp_path: Path) -> None:
    name = f"kilometers-test-{os.getpid()}"
    with manager(b"\0" + name.encode()) as sock:
        kmd = start_notifying(tmp_path / "home", f"@{name}")
        assert kmd.stop() == 0
        assert [sock.recv(4096), sock.recv(4096)] == [b"READY=1", b"STOPPING=1"]


@pytest.mark.parametrize("address", ["/nonexistent/notify", "@kilometers-nobody", "vsock:1:2", "/" + "x" * 200])
def test_a_manager_that_does_not_listen_changes_nothing(tmp_path: Path, address: str) -> None:
    kmd = start_notifying(tmp_path / "home", address)
    assert kmd.stop() == 0
    assert "Traceback" not in kmd.log.read_text()


def test_of_twenty_started_at_once_exactly_one_stays(tmp_path: Path) -> None:
    words = [command("kmd"), "--home", str(tmp_path)]
    started = [subprocess.Popen(words, stderr=subprocess.PIPE) for _ in range(20)]
    try:
        wait_for(lambda: sum(process.poll() is None for process in started) == 1, "nineteen to end", 60)
        (left,) = [process for process in started if process.poll() is None]
        assert wait_for(lambda: answering_pid(tmp_path), "an answer") == left.pid
        assert {process.returncode for process in started if process is not left} == {1}
    finally:
        for process in started:
            process.terminate()
            process.communicate(timeout=WAIT_S)
    with running_kmd(tmp_path):
        pass
