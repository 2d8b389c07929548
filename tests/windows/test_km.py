"""km on Windows, the real one in front of real programs: what client and server see, and what is captured."""

import sys

import pytest

pytest.importorskip("msvcrt", reason="needs Windows")
assert sys.platform == "win32"

import ctypes
import msvcrt
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from kmd.record import BYE, HELLO, RUN, Record, RecordReader, parse_fields, parse_run
from kmd.shim.windows.calls import (
    GENERIC_READ,
    GENERIC_WRITE,
    OPEN_EXISTING,
    Overlapped,
    Security,
    close_handle,
    create_event,
    create_file,
    create_named_pipe,
    current_user_sid,
    overlapped_result,
    start_read,
    start_write,
    wait_for_any,
)
from kmd.shim.windows.names import pipe_sddl
from tests.windows.pipe_kmd import PipeKmd

LAUNCH = Path(__file__).parents[2] / "kmd" / "shim" / "launch.py"
WAIT_S = 60.0
IS_WINE = hasattr(ctypes.windll.ntdll, "wine_get_version")
ECHO = "import os\nwhile d := os.read(0, 65536): os.write(1, d.upper())"
SHOW = "import sys; print(ascii(sys.argv[1:]))"
IN_TOUCH = "import socket; s = socket.create_connection(('127.0.0.1', {port})); s.sendall(s.recv(9))"
LEAVES_ONE = (
    "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdin=-3, stdout=-3, stderr=-3)"
)
ON_BREAK = """
import os, signal, time
signal.signal(signal.SIGBREAK, lambda *_: os._exit(33))
os.write(2, b"on")
while True:
    time.sleep(0.1)
"""
WORDS = ["a b", "", "x&echo owned", 'q"&echo owned&"', "(", "^", "|more", "c:\\d\\", "a=b;c,d", "!PATH!", "é"]


def km(home: Path, *words: str) -> list[str]:
    return [sys.executable, "-I", "-S", str(LAUNCH), "--home", str(home), *words]


def python(code: str, *words: str) -> list[str]:
    return [sys.executable, "-c", code, *words]


def run(words: list[str], data: bytes = b"", **environ: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(words, input=data, capture_output=True, timeout=WAIT_S, env={**os.environ, **environ})


def wait_for(probe: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not probe():
        assert time.monotonic() < deadline_s, f"waited {WAIT_S:.0f} s for {what}"
        time.sleep(0.02)


def spooled(home: Path) -> list[Record]:
    (path,) = (home / "spool").iterdir()
    reader = RecordReader()
    return list(reader.feed(path.read_bytes()))


def streams_of(records: list[Record]) -> list[bytes]:
    streams = [b"", b"", b""]
    for record in records:
        for stream, offset, chunk, _ in parse_run(record.body) if record.type == RUN else []:
            assert offset == len(streams[stream])
            streams[stream] += chunk
    return streams


def batch(folder: Path, name: str, *lines: str) -> Path:
    path = folder / name
    path.write_bytes("\r\n".join(["@echo off", *lines, ""]).encode())
    return path


@pytest.mark.parametrize("code", [0, 1, 7, 255, 256, 0x7FFFFFFF, 0x80000003, 0xC000013A, 0xFFFFFFFF])
def test_the_exit_code_is_the_servers(tmp_path: Path, code: int) -> None:
    words = python(f"import ctypes; ctypes.windll.kernel32.ExitProcess({code})")
    assert run(words).returncode == code
    assert run(km(tmp_path, *words)).returncode == code


@pytest.mark.parametrize("data", [b"", b"hello\n", bytes(range(256)) * 4096 + b"\r\n\x1a\n\0"])
def test_bytes_cross_both_ways_and_wait_in_the_spool(tmp_path: Path, data: bytes) -> None:
    done = run(km(tmp_path, "--name", "echo", "--", *python(ECHO)), data)
    assert done.stdout == data.upper()
    assert done.stderr == b""
    assert done.returncode == 0
    records = spooled(tmp_path)
    assert records[0].type == HELLO
    assert parse_fields(records[0].body)["name"] == b"echo"
    assert streams_of(records)[:2] == [data, data.upper()]
    assert records[-1].type == BYE
    assert parse_fields(records[-1].body)["closed_first"] == b"client"


def test_a_call_and_its_answer_have_different_times(tmp_path: Path) -> None:
    with subprocess.Popen(km(tmp_path, *python(ECHO)), stdin=-1, stdout=-1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(20):
            process.stdin.write(b"call")
            process.stdin.flush()
            assert process.stdout.read(4) == b"CALL"
        process.communicate(timeout=WAIT_S)
    kept = [at_ns for record in spooled(tmp_path) if record.type == RUN for _, _, _, at_ns in parse_run(record.body)]
    assert len(set(kept)) == len(kept) == 40


def test_stderr_is_the_clients_own_and_can_be_captured(tmp_path: Path) -> None:
    code = "import msvcrt, os; os.write(2, b'%d' % msvcrt.get_osfhandle(2)); os.write(2, b'said')"
    assert run(km(tmp_path, *python(code))).stderr.endswith(b"said")
    assert run(km(tmp_path / "captured", *python(code))).stderr.endswith(b"said")
    (tmp_path / "two").mkdir()
    assert run(km(tmp_path / "two", "--stderr", "--", *python(code))).stderr.endswith(b"said")
    assert streams_of(spooled(tmp_path / "two"))[2].endswith(b"said")


def test_stdout_and_stderr_that_are_one_stay_one(tmp_path: Path) -> None:
    code = "import os\nfor n in range(200): os.write(1 + n % 2, b'%d ' % n)"
    done = subprocess.run(km(tmp_path, *python(code)), input=b"", stdout=-1, stderr=subprocess.STDOUT, timeout=WAIT_S)
    assert done.stdout.split() == [b"%d" % number for number in range(200)]
    assert streams_of(spooled(tmp_path))[1] == done.stdout


def test_everything_reaches_kmd_over_its_pipe_and_nothing_is_left(tmp_path: Path) -> None:
    kmd = PipeKmd(tmp_path, pipe_sddl(current_user_sid()))
    data = bytes(range(256)) * 2000
    assert run(km(tmp_path, *python(ECHO)), data).stdout == data.upper()
    kmd.thread.join(WAIT_S)
    assert kmd.byes == 1
    assert kmd.streams[:2] == [data, data.upper()]
    assert not (tmp_path / "spool").exists() or list((tmp_path / "spool").iterdir()) == []


def test_a_kmd_that_goes_and_comes_gets_the_rest(tmp_path: Path) -> None:
    kmd = PipeKmd(tmp_path, pipe_sddl(current_user_sid()), hangs_up_after=1000)
    with subprocess.Popen(km(tmp_path, *python(ECHO)), stdin=-1, stdout=-1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for number in range(200):
            line = b"line %d\n" % number * 20
            process.stdin.write(line)
            process.stdin.flush()
            assert process.stdout.read(len(line)) == line.upper()
        process.stdin.close()
        assert process.wait(WAIT_S) == 0
    kmd.thread.join(5.0 if (tmp_path / "spool").exists() else WAIT_S)
    whole = b"".join(b"line %d\n" % number * 20 for number in range(200))
    kept = bytes(kmd.streams[0])
    if not kmd.byes:  # km ended before it had come back: the spool has the rest
        for record in spooled(tmp_path):
            for stream, offset, chunk, _ in parse_run(record.body) if record.type == RUN else []:
                kept = kept[:offset] + chunk if stream == 0 and offset <= len(kept) else kept
    assert kmd.connections >= 1
    assert kept == whole


def test_a_kmd_that_comes_back_is_met_again_without_traffic(tmp_path: Path) -> None:
    kmd = PipeKmd(tmp_path, pipe_sddl(current_user_sid()), hangs_up_after=0)
    with subprocess.Popen(km(tmp_path, *python(ECHO)), stdin=-1, stdout=-1) as process:
        wait_for(lambda: kmd.connections >= 2, "the second connection")
        process.communicate(b"and on", timeout=WAIT_S)
    kmd.thread.join(WAIT_S)
    assert kmd.streams[1] == b"AND ON"


def test_one_pipe_for_both_ways_is_left_to_the_server(tmp_path: Path) -> None:
    """A blocked read of km's would keep the server's answer from being written."""
    name = rf"\\.\pipe\kilometers-test-{os.getpid()}"
    server = create_named_pipe(name, Security(pipe_sddl(current_user_sid())), 4096, first=True)
    near = create_file(name, GENERIC_READ | GENERIC_WRITE, 0, OPEN_EXISTING)
    descriptor = msvcrt.open_osfhandle(near, os.O_RDWR)
    with subprocess.Popen(km(tmp_path, *python(ECHO)), stdin=descriptor, stdout=descriptor) as process:
        os.close(descriptor)
        operation, buffer = Overlapped(event=create_event()), ctypes.create_string_buffer(100)
        start_write(server, b"both ways", operation)
        assert overlapped_result(server, operation, wait=True) == 9
        start_read(server, buffer, operation)
        assert wait_for_any([operation.event], WAIT_S)
        assert buffer.value == b"BOTH WAYS"
        close_handle(server)
        assert process.wait(WAIT_S) == 0


def test_a_pipe_that_belongs_to_another_is_told_nothing(tmp_path: Path) -> None:
    try:
        kmd = PipeKmd(tmp_path, f"O:BAD:P(A;;GA;;;{current_user_sid()})")
    except OSError as exc:
        pytest.skip(f"this user cannot make a pipe of another owner: {exc}")
    if run(km(tmp_path, *python(ECHO)), b"secret").stdout != b"SECRET":
        pytest.fail("the traffic runs all the same")
    if kmd.byes:
        pytest.skip("this system says that the pipe is this user's (Wine)")
    assert kmd.streams[0] == b""
    assert streams_of(spooled(tmp_path))[0] == b"secret"


def test_who_kills_km_kills_the_server(tmp_path: Path) -> None:
    code = "import os, time; os.write(2, b'on'); os.read(0, 1); time.sleep(600)"
    with subprocess.Popen(km(tmp_path, *python(code)), stdin=-1, stdout=-1, stderr=-1) as process:
        assert process.stderr is not None
        assert process.stderr.read(2) == b"on"
        process.kill()
        assert process.stderr.read() == b""  # its end: nobody holds the client's stderr any more


def test_control_break_is_the_servers_affair(tmp_path: Path) -> None:
    if IS_WINE:
        pytest.skip("Wine has no console here")
    group = subprocess.CREATE_NEW_PROCESS_GROUP
    with subprocess.Popen(km(tmp_path, *python(ON_BREAK)), stdin=-1, stderr=-1, creationflags=group) as process:
        assert process.stderr is not None
        assert process.stderr.read(2) == b"on"
        process.send_signal(signal.CTRL_BREAK_EVENT)
        assert process.wait(WAIT_S) == 33


def left_behind(home: Path, *, killed: bool) -> bytes:
    """What a process says that the server has left behind, when km has ended or been killed; empty when it is gone."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(WAIT_S)
        code = LEAVES_ONE + ("; import os; os.read(0, 1)" if killed else "")
        words = km(home, *python(code, IN_TOUCH.format(port=listener.getsockname()[1])))
        with subprocess.Popen(words, stdin=-1, stdout=-1) as process:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(WAIT_S)
                if killed:
                    process.kill()
                process.wait(WAIT_S)
                try:
                    connection.sendall(b"there?")
                    return connection.recv(100)
                except ConnectionError:
                    return b""


def test_what_the_server_leaves_behind_lives_on(tmp_path: Path) -> None:
    assert left_behind(tmp_path, killed=False) == b"there?"


def test_unless_km_was_killed(tmp_path: Path) -> None:
    assert left_behind(tmp_path, killed=True) == b""


def test_the_server_inherits_its_three_handles_and_nothing_else(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "secret", os.O_RDWR | os.O_CREAT)
    handle = msvcrt.get_osfhandle(descriptor)
    os.set_handle_inheritable(handle, True)
    code = f"import ctypes; print(ctypes.windll.kernel32.GetFileType(ctypes.c_void_p({handle})))"
    bare = subprocess.run(python(code), capture_output=True, close_fds=False, timeout=WAIT_S)
    through = subprocess.run(km(tmp_path, *python(code)), capture_output=True, close_fds=False, timeout=WAIT_S)
    os.close(descriptor)
    assert bare.stdout.split() == [b"1"]
    assert through.stdout.split() != [b"1"]


def test_a_batch_file_gets_the_words_and_gives_its_exit_code(tmp_path: Path) -> None:
    folder = tmp_path / "with blank & mark"
    folder.mkdir()
    batch(folder, "tool.cmd", f'"{sys.executable}" -c "{SHOW}" %*', "exit /b 5")
    done = run(km(tmp_path, "--", "tool", *WORDS), PATH=f"{folder};{os.environ['PATH']}")
    assert done.stdout.strip() == ascii(WORDS).encode()
    assert done.returncode == 5


def test_percent_signs_reach_a_batch_file_as_they_are(tmp_path: Path) -> None:
    if IS_WINE:
        pytest.skip("Wine's cmd.exe takes %% for one, as Windows' does in batch files only")
    words = ["%PATH%", "100%", "%%", "%1", "%~dp0", "a%20b", "%cd%"]
    batch(tmp_path, "tool.bat", f'"{sys.executable}" -c "{SHOW}" %*')
    assert run(km(tmp_path, str(tmp_path / "tool.bat"), *words)).stdout.strip() == ascii(words).encode()


def test_what_cannot_be_passed_to_a_batch_file_is_refused(tmp_path: Path) -> None:
    done = run(km(tmp_path, str(batch(tmp_path, "tool.bat", "echo run")), "a\nb"))
    assert (done.returncode, done.stdout) == (126, b"")
    assert b"line break" in done.stderr


def test_a_missing_command_is_one_line_and_127(tmp_path: Path) -> None:
    done = run(km(tmp_path, "no-such-server"))
    assert (done.returncode, done.stdout) == (127, b"")
    assert done.stderr.count(b"\n") == 1
    assert b"command not found: 'no-such-server'" in done.stderr


def test_a_file_that_is_no_program_is_one_line_and_126(tmp_path: Path) -> None:
    script = tmp_path / "server.py"
    script.write_text("print(1)")
    done = run(km(tmp_path, str(script)))
    assert (done.returncode, done.stdout) == (126, b"")
    assert done.stderr.count(b"\n") == 1
    assert b"interpreter" in done.stderr


def test_wrong_usage_is_one_line_and_2(tmp_path: Path) -> None:
    assert run(km(tmp_path)).returncode == 2
    assert b"unknown option" in run([sys.executable, str(LAUNCH), "--nonsense"]).stderr


def test_audit_mode_is_refused_rather_than_left_out(tmp_path: Path) -> None:
    done = run(km(tmp_path, "--strict", "--", *python(ECHO)))
    assert done.returncode == 125
    assert b"--strict" in done.stderr


def test_a_pythons_environment_is_not_kms(tmp_path: Path) -> None:
    code = "import os; print(os.environ.get('__PYVENV_LAUNCHER__'), os.environ['KEPT'])"
    done = run(km(tmp_path, *python(code)), KEPT="ä", __PYVENV_LAUNCHER__="C:\\other\\python.exe")
    assert done.stdout.split()[0] == b"None"
