"""`kmctl doctor` finds each planted fault and names its fix, and on a healthy set-up says so in one line."""

import json
import ssl
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from kmctl.cli import run
from kmctl.diagnosis import handshake
from kmctl.diagnosis.destinations import judge_clock
from kmctl.diagnosis.finding import Level
from kmctl.diagnosis.handshake import parse_message, render_status
from kmctl.diagnosis.local import Seen, judge_mode, judge_room, judge_service, judge_silence
from kmctl.supervisors.lifecycle import Report
from kmctl.supervisors.plan import Kind, State
from kmd.errors import DaemonUnavailable, KilometersError
from tests.cli.desk import ERROR, Desk, Shown, examine, server
from tests.cli.stub import destination_of, status_of, stub_daemon
from tests.server.test_proxies import write_certificate
from tests.support.processes import WAIT_S, command, create_key

ROOT = Path(__file__).parents[2]


def test_a_healthy_set_up_is_one_line(desk: Desk, capsys: Shown) -> None:
    assert run(["--home", str(desk.km_home), "doctor"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert shown.out.count("\n") == 1
    assert shown.out.startswith("all is well: kmd ")
    assert "team takes events" in shown.out
    assert "km is in front of 1 server in 1 client" in shown.out
    code, told = examine(desk.km_home, capsys)
    assert (code, told["healthy"]) == (0, True)
    assert {one["check"] for one in told["findings"] if one["level"] == "ok"} >= {
        "kmd", "version", "sqlite", "modes", "disk", "outbox", "config", "key", "clock", "wrap", "command", "handshake",
    }  # fmt: skip
    assert run(["--home", str(desk.km_home), "doctor", "--verbose"]) == 0
    assert "handshake: cursor: own: answers" in capsys.readouterr().out


Plant = Callable[[Desk], AbstractContextManager[Path | None]]
"""Plants a fault; gives the home to examine where it is another one."""


@contextmanager
def spoil_mode(path: Path, mode: int) -> Iterator[None]:
    before = path.stat().st_mode
    path.chmod(mode)
    try:
        yield
    finally:
        path.chmod(before)


@contextmanager
def with_status(
    desk: Desk, *destinations: dict[str, Any], daemon: dict[str, Any] | None = None, **outbox: object
) -> Iterator[Path]:
    """A kmd that has this to say."""
    home = Path(tempfile.mkdtemp(dir=desk.home))
    status = status_of(*destinations, **outbox)
    status["daemon"] = {**status["daemon"], "version": version("kilometers"), "sqlite": "3.51.3", **(daemon or {})}
    with stub_daemon(home, {"status": [{"status": status}]}):
        home.chmod(0o700)
        (home / "control.sock").chmod(0o600)
        (home / "kmd.sock").touch(0o600)
        yield home


@contextmanager
def spoil_config(desk: Desk, url: str = "", key: str = "", extra: str = "") -> Iterator[None]:
    desk.write_config(url or desk.url, key or create_key(desk.database), extra)
    yield


@contextmanager
def spoil_server(desk: Desk, code: str) -> Iterator[None]:
    desk.write_server(code)
    yield


@contextmanager
def spoil_client(desk: Desk, old: str, new: str) -> Iterator[None]:
    text = desk.client_file.read_text()
    assert old in text
    desk.client_file.write_text(text.replace(old, new, 1))
    yield


@contextmanager
def lose_wrap(desk: Desk) -> Iterator[None]:
    entry = {"command": sys.executable, "args": [str(desk.home / "server.py")]}
    desk.client_file.write_text(json.dumps({"mcpServers": {"own": entry}}))
    yield


@contextmanager
def lose_command(desk: Desk) -> Iterator[None]:
    desk.write_client(str(desk.home / "missing-server"))
    yield


@contextmanager
def lose_key(desk: Desk) -> Iterator[None]:
    desk.config.write_text(f'[[destinations]]\nname = "team"\nurl = "{desk.url}"\nkey_from = "file"\n')
    yield


@contextmanager
def log_out(desk: Desk) -> Iterator[None]:
    desk.config.write_text(f'[[destinations]]\nname = "team"\nurl = "{desk.url}"\n')
    yield


@contextmanager
def elsewhere(desk: Desk) -> Iterator[Path]:
    yield desk.home / "nobody"


@contextmanager
def whoami(skew: timedelta, certificate: Path | None = None) -> Iterator[str]:
    """A server that knows every key, with a clock of its own."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"tenant": "a", "scopes": ["ingest"]}'
            self.send_response_only(200)
            self.send_header("Date", format_datetime(datetime.now(UTC) + skew, usegmt=True))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A client that does not trust us goes away."""

    with Quiet(("127.0.0.1", 0), Handler) as listening:
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            listening.socket = context.wrap_socket(listening.socket, server_side=True)
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"{'https' if certificate else 'http'}://127.0.0.1:{listening.server_port}"
        finally:
            listening.shutdown()
            thread.join(WAIT_S)


@contextmanager
def strange_server(desk: Desk, *, skew: timedelta = timedelta(), tls: bool = False) -> Iterator[None]:
    with whoami(skew, write_certificate(desk.home) if tls else None) as url, spoil_config(desk, url, "km_x"):
        yield


FAULTS: dict[str, tuple[Plant, str, str, str]] = {
    "kmd away": (elsewhere, "kmd", "kmd is not running", "kmctl service install"),
    "another version": (
        lambda desk: with_status(desk, daemon={"version": "0.0.9"}),
        "version",
        "kmd is 0.0.9",
        "kmctl service restart",
    ),
    "an old SQLite": (
        lambda desk: with_status(desk, daemon={"sqlite": "3.45.1"}),
        "sqlite",
        "SQLite 3.45.1",
        "--upgrade pysqlite3",
    ),
    "a disk that fails": (
        lambda desk: with_status(desk, last_error="disk I/O error"),
        "outbox",
        "cannot be written",
        "disk space",
    ),
    "traffic that was not captured": (
        lambda desk: with_status(desk, gap_bytes=5000),
        "capture",
        "5,000 bytes",
        "kmctl config set outbox.max_bytes",
    ),
    "refused events": (
        lambda desk: with_status(desk, destination_of(quarantined=3)),
        "quarantine",
        "3 events",
        "kmctl quarantine list",
    ),
    "a destination that is paused": (
        lambda desk: with_status(desk, destination_of(state="paused", last_error="no", hint="do this")),
        "destination",
        "team is paused: no",
        "do this",
    ),
    "an open socket": (
        lambda desk: spoil_mode(desk.km_home / "kmd.sock", 0o666),
        "modes",
        "kmd.sock is open to other users (666)",
        "chmod 600",
    ),
    "an open folder": (lambda desk: spoil_mode(desk.km_home, 0o755), "modes", "(755)", "chmod 700"),
    "an open configuration": (lambda desk: spoil_mode(desk.config, 0o644), "modes", "config.toml", "chmod 600"),
    "a configuration that is wrong": (
        lambda desk: spoil_config(desk, extra='[log]\nlevel = "loud"\n'),
        "config",
        "(line 2)",
        "kmctl config edit",
    ),
    "a disk that is too small": (
        lambda desk: spoil_config(desk, extra=f"[outbox]\nmax_bytes = {2**45}\n"),
        "disk",
        "may take",
        "outbox.max_bytes",
    ),
    "a server that is away": (
        lambda desk: spoil_config(desk, "http://127.0.0.1:1"),
        "destination",
        "connection refused",
        "is km-server running",
    ),
    "a key that is refused": (
        lambda desk: spoil_config(desk, key="km_bad"),
        "key",
        "refused the key",
        "makes a new one; then: kmctl login --name team",
    ),
    "a key that was never given": (
        log_out,
        "key",
        "wants a key, and there is none",
        "kmctl login --name team",
    ),
    "a key that may only read": (
        lambda desk: spoil_config(desk, key=create_key(desk.database, scope="read")),
        "key",
        "may not send",
        "--scope ingest",
    ),
    "a key that is gone": (lose_key, "key", "holds no key", "kmctl login"),
    "a clock that is wrong": (
        lambda desk: strange_server(desk, skew=timedelta(minutes=-5)),
        "clock",
        "ahead of the server's",
        "timedatectl",
    ),
    "a certificate that nobody knows": (
        lambda desk: strange_server(desk, tls=True),
        "tls",
        "self-signed",
        "SSL_CERT_FILE",
    ),
    "a client's file that is spoiled": (
        lambda desk: spoil_client(desk, '"mcpServers"', "mcpServers:::"),
        "client",
        "mcp.json:2",
        "correct the file",
    ),
    "a client that has rewritten its file": (lose_wrap, "wrap", "no longer behind km", "kmctl install --client cursor"),
    "a km that is gone": (
        lambda desk: spoil_client(desk, f"{ROOT}/kmd/", "/gone/kmd/"),
        "wrap",
        "/gone/kmd/shim/launch.py",
        "kmctl install --client cursor",
    ),
    "a command that is gone": (lose_command, "command", "missing-server cannot be started", "install it"),
    "a server that dies": (
        lambda desk: spoil_server(desk, "import sys; print('no token', file=sys.stderr); sys.exit(3)"),
        "handshake",
        "exit status 3",
        "stderr",
    ),
    "a server that talks on stdout": (
        lambda desk: spoil_server(desk, server('print("Starting \\x1b[2J!")')),
        "stdout",
        "1 line on stdout",
        "log to stderr",
    ),
    "a server that refuses": (
        lambda desk: spoil_server(desk, server(answer=ERROR)),
        "handshake",
        "refuses to start a session",
        "update",
    ),
    "a server that says nothing": (
        lambda desk: spoil_server(desk, "import sys; sys.stdin.read()"),
        "handshake",
        "does not answer",
        "by hand",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_planted_fault_is_found(desk: Desk, fault: str, capsys: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, check, what, fix = FAULTS[fault]
    monkeypatch.setattr(handshake, "ANSWER_TIMEOUT_S", 1.0 if "says nothing" in fault else 60.0)
    with ExitStack() as stack:
        home = stack.enter_context(plant(desk)) or desk.km_home
        code, told = examine(home, capsys)
        assert run(["--home", str(home), "doctor", "--no-start"]) in (0, 4)
        assert "\x1b" not in capsys.readouterr().out
    assert (code, told["healthy"]) == (4, False)
    bad = [one for one in told["findings"] if one["level"] == "bad"]
    assert [one["check"] for one in bad] == [check], bad
    assert what in bad[0]["what"], bad
    assert fix in bad[0]["fix"].replace(f" --home {home}", ""), bad
    assert bad[0]["fix"].count("kmctl ") == bad[0]["fix"].count(f"kmctl --home {home} ")


INSTALLED = Report(Kind.KM, State(installed=True), None, None)
NOBODY = Report(None, State(installed=False), None, None)
AWAY, HANGS = DaemonUnavailable("kmd is not running"), KilometersError("no")


@pytest.mark.parametrize(
    ("trouble", "pid", "report", "what", "fix"),
    [
        (AWAY, None, INSTALLED, "kmd is not running", "kmctl service start"),
        (AWAY, None, NOBODY, "kmd is not running", "kmctl service install"),
        (AWAY, 7, INSTALLED, "kmd runs (pid 7), but cannot be asked: kmd is not running", "kmctl service restart"),
        (HANGS, 7, NOBODY, "kmd runs (pid 7), but cannot be asked: no", "kill 7 && kmctl service install"),
        (HANGS, None, INSTALLED, "kmd runs, but cannot be asked: no", "kmctl service restart"),
    ],
)
def test_a_kmd_that_says_nothing(
    trouble: KilometersError, pid: int | None, report: Report, what: str, fix: str
) -> None:
    found = judge_silence(trouble, pid, report, [])
    assert (found.what, found.fix) == (what, fix)


def test_a_kmd_whose_socket_was_deleted(desk: Desk, capsys: Shown) -> None:
    """Its lock tells that it runs; starting it, as for one that does not, would be of no use."""
    socket, aside = desk.km_home / "control.sock", desk.km_home / "aside"
    socket.rename(aside)
    try:
        code, told = examine(desk.km_home, capsys, "--no-start", "--offline")
    finally:
        aside.rename(socket)
    assert code == 4
    (fault,) = [one for one in told["findings"] if one["level"] == "bad"]
    assert f"{socket} is gone" in fault["what"]
    assert fault["fix"].startswith("kill ")


def test_the_evidence_is_shown_and_harmless(desk: Desk, capsys: Shown) -> None:
    desk.write_server(server('print("Starting \\x1b[2J!")'))
    assert run(["--home", str(desk.km_home), "doctor"]) == 4
    shown = capsys.readouterr().out
    assert "        | Starting \\x1b[2J!\n" in shown
    assert shown.endswith("1 thing needs you\n")
    assert run(["--home", str(desk.km_home), "--plain", "doctor"]) == 4
    spoken = capsys.readouterr().out.splitlines()
    assert spoken[0].startswith("bad: stdout: cursor: own: 1 line on stdout")
    assert "detail: Starting \\x1b[2J!" in spoken
    assert all(line == line.strip() and "  " not in line and "|" not in line for line in spoken)
    desk.write_server("import sys; print('no token', file=sys.stderr); sys.exit(3)")
    assert run(["--home", str(desk.km_home), "doctor"]) == 4
    assert "        | no token\n" in capsys.readouterr().out


def test_a_server_of_2026_answers_discovery(desk: Desk, capsys: Shown) -> None:
    desk.write_server(server(answer='**({"result": {}} if message["method"] == "server/discover" else {"error": {}})'))
    assert examine(desk.km_home, capsys)[0] == 0


def test_it_gets_its_variables_and_keeps_them(desk: Desk, capsys: Shown) -> None:
    desk.write_server(server('import os; sys.exit(9) if os.environ.get("TOKEN") != "secret" else None'))
    assert examine(desk.km_home, capsys)[0] == 4
    entry = json.loads(desk.client_file.read_text())
    entry["mcpServers"]["own"]["env"] = {"TOKEN": "secret"}
    desk.client_file.write_text(json.dumps(entry))
    code, told = examine(desk.km_home, capsys)
    assert code == 0
    assert "secret" not in json.dumps(told)
    entry["mcpServers"]["own"]["env"] = {"TOKEN": "${input:token}"}
    desk.client_file.write_text(json.dumps(entry))
    code, told = examine(desk.km_home, capsys)
    assert code == 0
    assert "only its client can start it" in json.dumps(told)


def test_it_leaves_nothing_running(desk: Desk, capsys: Shown) -> None:
    marker = desk.home / "child"
    desk.write_server(
        "import subprocess, sys\n"
        f"child = subprocess.Popen(['sleep', '1000']); open({str(marker)!r}, 'w').write(str(child.pid))\n"
        + server()
        + "\nchild.wait()\n"
    )
    assert examine(desk.km_home, capsys)[0] == 0
    pid = int(marker.read_text())
    state = Path(f"/proc/{pid}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


def test_without_starting_and_without_asking(desk: Desk, capsys: Shown) -> None:
    desk.write_config("http://127.0.0.1:1", "km_x")
    desk.write_server("import sys; sys.exit(3)")
    code, told = examine(desk.km_home, capsys, "--no-start", "--offline")
    assert code == 0
    assert not {"handshake", "key"} & {one["check"] for one in told["findings"]}


def test_a_real_server(desk: Desk, capsys: Shown) -> None:
    desk.write_client(command("mcp-server-time"))
    code, told = examine(desk.km_home, capsys)
    assert code == 0, told


def test_a_server_that_nobody_has_wrapped_is_a_note(desk: Desk, capsys: Shown) -> None:
    other = desk.home / ".gemini" / "settings.json"
    other.parent.mkdir()
    other.write_text('{"mcpServers": {"bare": {"command": "true"}}}')
    try:
        code, told = examine(desk.km_home, capsys, "--no-start")
    finally:
        other.unlink()
        other.parent.rmdir()
    assert code == 0
    (found,) = [one for one in told["findings"] if one["level"] == "note" and one["check"] == "wrap"]
    assert found["fix"] == f"kmctl --home {desk.km_home} install --client gemini-cli --server bare"


@pytest.mark.parametrize(("free", "wanted", "level"), [(1, 1, "bad"), (2**30, 2**31, "bad"), (2**31, 2**30, "ok")])
def test_room(free: int, wanted: int, level: str) -> None:
    assert judge_room(free, wanted).level == level


def test_another_users_file() -> None:
    finding = judge_mode(Seen(Path("/x"), 0o100600, 5), 6)
    assert finding is not None
    assert finding.fix == "sudo chown 6 /x"
    assert judge_mode(Seen(Path("/x"), None, -1), 6) is None


@pytest.mark.parametrize(
    ("kind", "at_login", "files", "level"),
    [
        (None, None, (), Level.NOTE),
        (Kind.SYSTEMD, True, (), Level.OK),
        (Kind.SYSTEMD, False, (), Level.BAD),
        (Kind.KM, None, (Path("/x"),), Level.OK),
        (Kind.KM, None, (), Level.NOTE),
    ],
)
def test_who_starts_kmd(kind: Kind | None, at_login: bool | None, files: tuple[Path, ...], level: Level) -> None:  # noqa: FBT001
    report = Report(kind, State(kind is not None, at_login, None, files), None, None)
    assert judge_service(report).level is level


NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("date", "level"),
    [
        ("Tue, 24 Nov 2026 12:00:00 GMT", "ok"),
        ("Tue, 24 Nov 2026 12:00:59 GMT", "ok"),
        ("Tue, 24 Nov 2026 12:02:00 GMT", "bad"),
        ("Tue, 24 Nov 2026 11:58:00 GMT", "bad"),
        ("", "note"),
        ("yesterday", "note"),
    ],
)
def test_clocks(date: str, level: str) -> None:
    assert judge_clock("team", date, NOW).level == level


@pytest.mark.parametrize(
    ("status", "shown"), [(0, "exit status 0"), (-11, "killed by SIGSEGV"), (-99, "killed by signal 99")]
)
def test_how_a_server_ended(status: int, shown: str) -> None:
    assert render_status(status) == shown


@pytest.mark.parametrize(
    ("line", "is_message"),
    [(b'{"jsonrpc":"2.0"}', True), (b"[]", True), (b"{}", False), (b"1", False), (b"x", False), (b"[" * 99999, False)],
)
def test_what_is_a_message(line: bytes, is_message: bool) -> None:  # noqa: FBT001 - a table
    assert (parse_message(line) is not None) is is_message
