"""Another user of the machine reaches nothing of kmd's, even where the files let him. Needs root to become one."""

import os
import socket
from pathlib import Path

import pytest

from tests.support.processes import WAIT_S, read_status, running_kmd, wait_for

NOBODY = 65534
REFUSED, ANSWERED, FAILED = 10, 11, 12


@pytest.fixture
def home(tmp_path: Path) -> Path:
    if os.geteuid() != 0 or not hasattr(socket, "SO_PEERCRED"):
        pytest.skip("only root may become another user")
    return tmp_path / "home"


def ask_as_nobody(folder: int, name: str) -> int:
    """Fork, become nobody, ask on the socket *name* in the open *folder*: the folders above stay closed to him."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        os.fchdir(folder)
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(WAIT_S)
        sock.connect(name)
        try:
            sock.sendall(b'{"op":"status"}\n')
            os._exit(ANSWERED if sock.recv(4096) else REFUSED)
        except (BrokenPipeError, ConnectionResetError):
            os._exit(REFUSED)
    finally:
        os._exit(FAILED)


@pytest.mark.parametrize("name", ["kmd.sock", "control.sock"])
def test_another_user_is_refused_even_where_the_files_let_him_in(home: Path, name: str) -> None:
    with running_kmd(home) as kmd:
        home.chmod(0o755)
        (home / name).chmod(0o777)
        folder = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
        try:
            assert ask_as_nobody(folder, name) == REFUSED
        finally:
            os.close(folder)
        wait_for(lambda: "another user" in kmd.log.read_text(), "the log line")
        assert read_status(home)["sessions"] == []
