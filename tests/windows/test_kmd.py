"""kmd and kmctl as real processes on Windows: pipes, the lock, relays by hand, a spool, the end."""

import sys

import pytest

pytest.importorskip("msvcrt", reason="needs Windows")
assert sys.platform == "win32"

import ctypes
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kmd.paths import find_places
from kmd.pipe_client import PipeClient, connect_pipe
from kmd.private_dir import make_private_dir, others_in
from kmd.record import ACK, BYE, DATA, HELLO, NO_STREAM, WELCOME, Record, RecordReader, render_fields, render_head
from kmd.shim.windows import calls

WAIT_S = 60.0
LINES = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"add"}}\n'
NOW_NS = time.time_ns()
"""Now, and not long ago: what is old and settled is removed after some days."""
SESSION = "01890a5d-ac96-774b-bcce-00000000000"


def run(*words: str, home: Path) -> subprocess.CompletedProcess[str]:
    """`python -m WORDS --home HOME`, ended."""
    environ = {**os.environ, "PYTHONUTF8": "1"}
    return subprocess.run(
        [sys.executable, "-m", *words, "--home", str(home)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=WAIT_S,
        env=environ,
        check=False,
    )


def read_status(home: Path) -> dict[str, Any]:
    """What `kmctl status --json` says; nothing while kmd does not answer."""
    done = run("kmctl", "status", "--json", home=home)
    return dict(json.loads(done.stdout)) if done.returncode == 0 else {}


def render_hello(session: str) -> bytes:
    fields = {"protocol": b"1", "session": session.encode(), "name": b"raw", "command": b"cat", "pid": b"77"}
    body = render_fields({**fields, "started_at_ns": b"%d" % NOW_NS})
    return render_head(HELLO, NO_STREAM, 0, 0, body) + body


def render_data(offset: int, data: bytes) -> bytes:
    return render_head(DATA, 0, offset, NOW_NS, data) + data


@contextmanager
def running_kmd(home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """kmd that answers; it has to end well when it is asked to."""
    log = home.with_suffix(".log")
    words = [sys.executable, "-m", "kmd", "--home", str(home), "--log-file", str(log)]
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + WAIT_S
        while not read_status(home):
            assert process.poll() is None, log.read_text(errors="replace")
            assert time.monotonic() < deadline, "kmd does not answer"
        yield process
        if process.poll() is None:
            stopped = run("kmctl", "service", "stop", home=home)
            assert stopped.returncode == 0, stopped.stderr
            assert process.wait(WAIT_S) == 0
        assert "Traceback" not in log.read_text(errors="replace")
    finally:
        process.kill()
        process.wait()


def receive(client: PipeClient, reader: RecordReader, kind: int) -> Record:
    """The next record of this kind."""
    while True:
        chunk = client.recv(1 << 16)
        assert chunk, "kmd has closed the pipe"
        for record in reader.feed(chunk):
            if record.type == kind:
                return record


def connect(home: Path) -> PipeClient:
    client = connect_pipe(str(find_places(home, {}).socket), WAIT_S)
    client.settimeout(WAIT_S)
    return client


def test_a_second_one_is_refused_and_the_folder_is_private(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with running_kmd(home) as kmd:
        second = run("kmd", home=home)
        assert second.returncode == 1
        assert f"already running for {home} (pid {kmd.pid})" in second.stderr
        assert others_in(home) == []
        assert (home / "kmd.lock").read_text().strip() == str(kmd.pid)
    assert (home / "kmd.lock").read_bytes() == b""
    assert run("kmctl", "status", home=home).returncode == 3


def test_what_relays_bring_is_acknowledged_and_shown(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with running_kmd(home):
        clients = [connect(home) for _ in range(20)]
        readers = [RecordReader() for _ in clients]
        for number, (client, reader) in enumerate(zip(clients, readers, strict=True)):
            client.sendall(render_hello(f"{SESSION[:-2]}{number:03x}"))
            receive(client, reader, WELCOME)
            client.sendall(render_data(0, LINES))
        for client, reader in zip(clients, readers, strict=True):
            receive(client, reader, ACK)
        assert len(read_status(home)["sessions"]) == 20
        big = LINES * 50_000
        for at in range(0, len(big), 65536):
            clients[0].sendall(render_data(len(LINES) + at, big[at : at + 65536]))
        body = render_fields({"closed_first": b"client", "length.0": b"%d" % (len(LINES) + len(big))})
        clients[0].sendall(render_head(BYE, NO_STREAM, 0, 0, body) + body)
        receive(clients[0], readers[0], BYE)
        assert clients[0].recv(1) == b""
        for client in clients:
            client.close()
        shown = run("kmctl", "tail", "--json", "-n", "3", home=home)
        assert [json.loads(line)["target"] for line in shown.stdout.splitlines()] == ["add"] * 3, shown
        assert read_status(home)["outbox"]["last_seq"] == 20 + 50_000
        assert run("kmctl", "flush", home=home).returncode == 0


def test_a_relay_that_never_reads_and_one_that_says_nothing_hold_nobody_up(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with running_kmd(home):
        deaf, dumb = connect(home), connect(home)
        deaf.sendall(render_hello(f"{SESSION}1"))
        for number in range(3000):
            deaf.sendall(render_data(number * len(LINES), LINES))
        with connect(home) as third:
            third.sendall(render_hello(f"{SESSION}2"))
            receive(third, RecordReader(), WELCOME)
        deaf.close()
        dumb.close()


def test_a_spool_is_taken_in_when_nobody_has_it_any_more(tmp_path: Path) -> None:
    home = tmp_path / "home"
    make_private_dir(home)
    (home / "spool").mkdir()
    path = home / "spool" / f"{SESSION}3.1.spool"
    access = calls.GENERIC_READ | calls.GENERIC_WRITE
    handle = calls.create_file(str(path), access, calls.FILE_SHARE_READ, calls.CREATE_NEW)
    calls.write_file(handle, render_hello(f"{SESSION}3") + render_data(0, LINES))
    with running_kmd(home):
        assert run("kmctl", "flush", home=home).returncode == 0
        assert path.exists()
        calls.close_handle(handle)
        deadline = time.monotonic() + WAIT_S
        while path.exists():
            assert time.monotonic() < deadline, "the spool stays"
            time.sleep(0.1)
        assert read_status(home)["outbox"]["last_seq"] == 1


def test_killed_it_starts_again_with_everything(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with running_kmd(home) as kmd, connect(home) as client:
        client.sendall(render_hello(f"{SESSION}4") + render_data(0, LINES))
        receive(client, RecordReader(), ACK)
        kmd.kill()
        assert kmd.wait(WAIT_S) != 0
    with running_kmd(home):
        assert read_status(home)["outbox"]["last_seq"] == 1


def test_a_folder_that_others_may_read_is_refused(tmp_path: Path) -> None:
    home = tmp_path / "home"
    calls.make_folder(str(home), f"D:P(A;OICI;FA;;;{calls.current_user_sid()})(A;OICI;FR;;;WD)")
    done = run("kmd", home=home)
    assert done.returncode == 1
    assert "is open to other users (WD)" in done.stderr
    assert f'icacls "{home}"' in done.stderr


@pytest.mark.skipif(hasattr(ctypes.WinDLL("ntdll"), "wine_get_version"), reason="Wine lets a second one in")
def test_a_pipe_that_is_there_already_is_refused(tmp_path: Path) -> None:
    home = tmp_path / "home"
    name = str(find_places(home, {}).control_socket)
    security = calls.Security(f"O:{calls.current_user_sid()}D:P(A;;GA;;;WD)")
    handle = calls.create_named_pipe(name, security, 4096, first=True)
    try:
        done = run("kmd", home=home)
    finally:
        calls.close_handle(handle)
    assert done.returncode == 1
    assert "another program has this pipe" in done.stderr


def test_nothing_is_said_to_a_pipe_of_another_user(tmp_path: Path) -> None:
    """Squatting: somebody made the pipe before kmd did. The administrators stand in for him."""
    name = str(find_places(tmp_path / "home", {}).control_socket)
    try:
        handle = calls.create_named_pipe(name, calls.Security("O:BAD:P(A;;GA;;;WD)"), 4096, first=True)
    except OSError as exc:
        pytest.skip(f"only an administrator may give a pipe away ({exc})")
    done = run("kmctl", "status", home=tmp_path / "home")
    assert done.returncode == 3
    assert "the pipe is another user's; nothing was said to it" in done.stderr
    overlapped = calls.Overlapped(event=calls.create_event())
    with pytest.raises(OSError):  # it came, said nothing, and went
        calls.start_read(handle, ctypes.create_string_buffer(100), overlapped)
    calls.close_handle(handle)


def test_clients_are_wrapped_and_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("APPDATA", "LOCALAPPDATA", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    file = tmp_path / "APPDATA" / "Claude" / "claude_desktop_config.json"
    file.parent.mkdir(parents=True)
    server = b'{"command": "npx", "args": ["-y", "x"], "env": {"KEY": "s3cret"}}'
    text = b'{\r\n  // mine\r\n  "mcpServers": {"x": ' + server + b"}\r\n}\r\n"
    file.write_bytes(text)
    installed = run("kmctl", "install", "--yes", "--no-service", home=tmp_path / "home")
    assert installed.returncode == 0, installed.stderr
    assert "s3cret" not in installed.stdout
    assert b"launch.py" in file.read_bytes()
    assert run("kmctl", "uninstall", "--yes", home=tmp_path / "home").returncode == 0
    assert file.read_bytes() == text


def test_a_log_that_has_grown_is_put_aside(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from kmd.logs import redirect_stderr\n"
        "redirect_stderr(Path(sys.argv[1]))\nfor _ in range(25): print('x' * 100_000, file=sys.stderr)"
    )
    log = tmp_path / "logs" / "kmd.log"
    subprocess.run([sys.executable, "-c", script, str(log)], check=True, timeout=WAIT_S)
    sizes = {path.name: path.stat().st_size for path in log.parent.iterdir()}
    assert set(sizes) == {"kmd.log", "kmd.log.1"}
    assert 1 << 20 < sizes["kmd.log.1"] < 1_300_000
