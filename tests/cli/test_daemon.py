"""The client of the control socket against a real Unix socket."""

import os
import socket
from pathlib import Path

import pytest

from kmctl import daemon
from kmctl.daemon import ask, open_answers
from kmd.errors import DaemonUnavailable, KilometersError, RemoteProtocolError
from tests.cli.stub import stub_daemon

STATUS = {"op": "status"}


def test_one_question_one_answer(tmp_path: Path) -> None:
    with stub_daemon(tmp_path, {"status": [{"status": {"a": 1}}]}) as stub:
        assert ask(stub.path, STATUS) == {"status": {"a": 1}}
    assert stub.requests == [STATUS]


def test_many_answers_in_order(tmp_path: Path) -> None:
    lines = [{"event": {"seq": number}} for number in range(1000)]
    with (
        stub_daemon(tmp_path, {"tail": lines}) as stub,
        open_answers(stub.path, {"op": "tail", "limit": 1000}) as answers,
    ):
        assert list(answers) == lines


def test_a_socket_path_longer_than_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / ("d" * 120)
    home.mkdir()
    before = Path.cwd()
    monkeypatch.chdir(home)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind("control.sock")
        listener.listen()
        monkeypatch.chdir(before)
        with daemon.connect(home / "control.sock", str) as peer:
            peer.sendall(b"x")
            with listener.accept()[0] as seen:
                assert seen.recv(1) == b"x"
    assert Path.cwd() == before


@pytest.mark.parametrize("kind", ["nothing", "no folder", "a file for a folder", "stale", "a file"])
def test_no_daemon(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "control.sock"
    if kind == "no folder":
        path = tmp_path / "none" / "control.sock"
    elif kind == "a file for a folder":
        (tmp_path / "file").touch()
        path = tmp_path / "file" / "control.sock"
    elif kind == "stale":
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as gone:
            gone.bind(str(path))
    elif kind == "a file":
        path.touch()
    before = Path.cwd()
    with pytest.raises(DaemonUnavailable, match="kmd is not running") as caught:
        ask(path, STATUS, start=lambda: "kmd --home X")
    assert caught.value.hint == "start it with 'kmd --home X'"
    assert Path.cwd() == before


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    fds = Path("/proc/self/fd")
    if not fds.exists():
        pytest.skip("needs /proc")
    before = len(os.listdir(fds))  # noqa: PTH208 - iterdir would count its own
    for _ in range(5):
        with pytest.raises(DaemonUnavailable):
            ask(tmp_path / "control.sock", STATUS)
    assert len(os.listdir(fds)) == before  # noqa: PTH208


def test_an_error_answer_is_kmds_own_error(tmp_path: Path) -> None:
    answer = {"error": {"message": "no such destination", "hint": "see status"}}
    with stub_daemon(tmp_path, {"status": [answer]}) as stub, pytest.raises(KilometersError) as caught:
        ask(stub.path, STATUS)
    assert (str(caught.value), caught.value.hint) == ("no such destination", "see status")
    assert type(caught.value) is KilometersError


@pytest.mark.parametrize("line", [b"nonsense\n", b"[1]\n", b"\xff\n", b"5\n", b"\n"])
def test_an_answer_that_is_none(tmp_path: Path, line: bytes) -> None:
    with stub_daemon(tmp_path, {"status": [line]}) as stub, pytest.raises(RemoteProtocolError):
        ask(stub.path, STATUS)


def test_a_line_without_end_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "LINE_MAX_BYTES", 1000)
    with (
        stub_daemon(tmp_path, {"status": [b"x" * 5000]}, hold=True) as stub,
        pytest.raises(RemoteProtocolError, match="endless"),
    ):
        ask(stub.path, STATUS)


@pytest.mark.parametrize("script", [[], [b'{"status": ']])
def test_a_daemon_that_goes_away(tmp_path: Path, script: list[bytes]) -> None:
    with stub_daemon(tmp_path, {"status": script}) as stub, pytest.raises(DaemonUnavailable) as caught:
        ask(stub.path, STATUS)
    assert caught.value.hint


def test_a_daemon_that_hangs(tmp_path: Path) -> None:
    with (
        stub_daemon(tmp_path, {}, hold=True) as stub,
        open_answers(stub.path, STATUS, wait_s=0.1) as answers,
        pytest.raises(DaemonUnavailable, match="in time"),
    ):
        next(answers)
