"""km on Windows: what a client and a server see is the same bare and wrapped."""

import sys

import pytest

pytest.importorskip("msvcrt", reason="needs Windows, or KM_TEST_WINE (test_elsewhere.py)")
assert sys.platform == "win32"

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.windows.test_km import WAIT_S, batch, km, python, run

ECHO = "import os\nwhile data := os.read(0, 65536): os.write(1, data)"
BINARY = "import msvcrt, os; msvcrt.setmode(0, os.O_BINARY); msvcrt.setmode(1, os.O_BINARY)\n"
BOTH_OUTPUTS = "import os; os.write(1, b'out'); os.write(2, b'err \\xff\\r\\n'); os.write(1, b' more')"
CLOSES_EARLY = "import os, sys; os.write(1, b'bye'); os.close(1); sys.exit(len(os.read(0, 9)))"
READS_NOTHING = "import sys; print('done', flush=True); sys.exit(3)"
SURROUNDINGS = (
    "import ctypes, json, msvcrt, os, sys\n"
    "kinds = [ctypes.windll.kernel32.GetFileType(ctypes.c_void_p(msvcrt.get_osfhandle(fd))) for fd in range(3)]\n"
    "print(json.dumps([os.getcwd(), sorted(os.environ.items()), sys.argv, kinds]))"
)
HARD_WORDS = ["", "a b", 'say "hi"', "back\\slash\\", 'ends\\"', "100%PATH%", "a&b|c>d<e^f", "ünïcode ☃", "!x!"]
ENDS_WITH_STDIN = (
    "import os, socket, sys\n"
    "line = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
    "line.sendall(b'up')\n"
    "os.read(0, 1)\n"
    "line.sendall(b'stdin ended')\n"
)
CLIENT = (
    "import subprocess, sys, threading\n"
    "wrapped = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
    "threading.Event().wait()"
)


@pytest.mark.parametrize(
    ("code", "data"),
    [
        pytest.param(BINARY + ECHO, bytes(range(256)) * 40 + b"\x1a\r\n\n\r no end", id="any bytes"),
        pytest.param(ECHO, b'{"id":1}\n{"id":2}\r\n', id="text mode"),
        pytest.param(BINARY + ECHO, bytes(range(256)) * (32 << 10), id="8 MiB each way"),
        pytest.param(BOTH_OUTPUTS, b"", id="both outputs"),
        pytest.param(CLOSES_EARLY, b"123456789", id="stdout ends first"),
        pytest.param(READS_NOTHING, b"", id="reads nothing"),
        pytest.param(SURROUNDINGS, b"", id="folder, environment, words and kinds of handles"),
    ],
)
def test_what_a_client_sees_is_the_same(tmp_path: Path, code: str, data: bytes) -> None:
    server = python(code, *HARD_WORDS)
    bare, wrapped = run(server, data), run(km(tmp_path / "home", *server), data)
    assert (wrapped.returncode, wrapped.stdout, wrapped.stderr) == (bare.returncode, bare.stdout, bare.stderr)
    assert bare.stdout


def test_an_answer_comes_while_the_client_waits(tmp_path: Path) -> None:
    words = km(tmp_path / "home", *python(BINARY + ECHO))
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as wrapped:
        assert wrapped.stdin is not None
        assert wrapped.stdout is not None
        for number in range(50):
            line = b'{"jsonrpc":"2.0","id":%d,"method":"ping"}\n' % number
            wrapped.stdin.write(line)
            wrapped.stdin.flush()
            assert wrapped.stdout.readline() == line
        wrapped.stdin.write(b"half a li")
        wrapped.stdin.flush()
        assert wrapped.stdout.read(9) == b"half a li"
        wrapped.stdin.close()
        assert (wrapped.stdout.read(), wrapped.wait(WAIT_S)) == (b"", 0)


def test_km_ends_with_the_server_though_the_client_goes_on(tmp_path: Path) -> None:
    words = km(tmp_path / "home", *python(READS_NOTHING))
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as wrapped:
        assert wrapped.stdout is not None
        assert (wrapped.stdout.read(), wrapped.wait(WAIT_S)) == (b"done\r\n", 3)


@contextmanager
def listening() -> Iterator[socket.socket]:
    """Where a server tells the test that it is up, what it has seen, and by its connection's end that it has ended."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(WAIT_S)
        yield listener


def port_of(listener: socket.socket) -> str:
    return str(listener.getsockname()[1])


def hear_of_start(listener: socket.socket) -> socket.socket:
    connection, _ = listener.accept()
    connection.settimeout(WAIT_S)
    assert connection.recv(2) == b"up"
    return connection


def hear_out(connection: socket.socket) -> bytes:
    """All that the server still says until its process has ended."""
    heard = b""
    with connection:
        try:
            while data := connection.recv(100):
                heard += data
        except ConnectionResetError:  # how Windows says that the process was ended
            pass
    return heard


def test_the_server_is_told_when_its_client_is_killed(tmp_path: Path) -> None:
    with listening() as listener:
        words = km(tmp_path / "home", *python(ENDS_WITH_STDIN, port_of(listener)))
        with subprocess.Popen([sys.executable, "-c", CLIENT, *words], stdin=subprocess.DEVNULL) as client:
            server = hear_of_start(listener)
            client.kill()
            assert hear_out(server) == b"stdin ended"


def test_a_batch_file_is_found_by_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "with space"
    folder.mkdir()
    batch(folder, "served.cmd", "echo [%1] [%2]", "exit /b 5")
    wrapped = run(km(tmp_path / "home", "served", "a b", "c&d"), PATH=f"{folder};{os.environ['PATH']}")
    assert (wrapped.returncode, wrapped.stdout, wrapped.stderr) == (5, b'["a b"] ["c&d"]\r\n', b"")
