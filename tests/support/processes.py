"""The real programs as subprocesses: kmd, km-server, km. Every wait has a bound; every process is ended again."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

WAIT_S = 20.0
"""Generous on purpose: a loaded machine must not fail a test, a hang must."""
LAUNCH = Path(__file__).parents[2] / "kmd" / "shim" / "launch.py"


def command(name: str) -> str:
    """The console script *name* of the environment that runs the tests."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"{name} is not installed beside {sys.executable}")
    return found


def quick_km(home: Path, name: str, *server: str) -> list[str]:
    """The words that put km in front of *server*, in its quick form."""
    return [sys.executable, "-I", "-S", str(LAUNCH), "--home", str(home), "--name", name, "--", *server]


def wait_for(probe: Callable[[], T | None], what: str, wait_s: float = WAIT_S) -> T:
    """Ask *probe* until it gives something true. Raises TimeoutError naming *what*."""
    deadline = time.monotonic() + wait_s
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {wait_s:.0f} s for {what}")
        time.sleep(0.05)


def ask(home: Path, request: dict[str, object], wait_s: float = WAIT_S) -> list[dict[str, Any]]:
    """The answer lines of kmd under *home*. Raises OSError when it does not answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(wait_s)
        folder = os.open(home, os.O_RDONLY)
        try:  # by its descriptor: a socket's path may be 107 bytes long, a folder's 4095
            sock.connect(f"/proc/self/fd/{folder}/control.sock")
        finally:
            os.close(folder)
        sock.sendall(json.dumps(request).encode() + b"\n")
        data = b""
        while chunk := sock.recv(1 << 16):
            data += chunk
    return [json.loads(line) for line in data.splitlines()]


def read_status(home: Path) -> dict[str, Any]:
    """kmd's status object."""
    (line,) = ask(home, {"op": "status"})
    status: dict[str, Any] = line["status"]
    return status


def flush(home: Path, timeout_s: float = WAIT_S) -> dict[str, Any]:
    """Ask kmd to flush; returns its last line."""
    return ask(home, {"op": "flush", "timeout_s": timeout_s}, timeout_s + WAIT_S)[-1]


@dataclass(slots=True)
class Running:
    """A subprocess of ours. `log` has what it wrote to stderr."""

    process: subprocess.Popen[bytes]
    log: Path
    url: str = ""

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """Send *signum* and wait for the end; returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signum)
        try:
            return self.process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            if self.process.stdout:
                self.process.stdout.close()


def start_kmd(home: Path, environ: dict[str, str] | None = None) -> Running:
    """Start kmd under *home* and wait until it answers."""
    home.mkdir(parents=True, exist_ok=True)
    log = home.parent / f"{home.name}.kmd.log"
    with log.open("ab") as stderr:
        process = subprocess.Popen(
            [command("kmd"), "--home", str(home)],
            stdin=subprocess.DEVNULL,
            stderr=stderr,
            env={**os.environ, **(environ or {})},
        )
    running = Running(process, log)

    def answers() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"kmd ended with {process.returncode}:\n{log.read_text()}")
        try:
            return bool(read_status(home)["daemon"]["pid"] == process.pid)
        except OSError:
            return False

    wait_for(answers, "kmd")
    return running


@contextmanager
def running_kmd(home: Path) -> Iterator[Running]:
    """kmd under *home* for as long as the block runs."""
    running = start_kmd(home)
    try:
        yield running
    finally:
        running.stop()


def start_server(
    database: Path, port: int = 0, extra: tuple[str, ...] = (), *, database_url: str | None = None
) -> Running:
    """
    Start km-server on a SQLite file with *extra* flags; `url` is where it listens.

    database_url: another store; *database* then only says where the log goes.
    """
    log = database.with_suffix(".log")
    store = database_url or f"sqlite:///{database}"
    with log.open("ab") as stderr:
        process = subprocess.Popen(
            [command("km-server"), "serve", "--database-url", store, "--port", str(port), *extra],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
    assert process.stdout is not None
    words = process.stdout.readline().decode().split()
    if not words:
        process.wait(WAIT_S)
        process.stdout.close()
        raise RuntimeError(f"km-server did not start:\n{log.read_text()}")
    return Running(process, log, words[-1])


@contextmanager
def running_server(database: Path, port: int = 0, *, database_url: str | None = None) -> Iterator[Running]:
    """km-server for as long as the block runs; see start_server."""
    running = start_server(database, port, database_url=database_url)
    try:
        yield running
    finally:
        running.stop()


def create_key(
    database: Path, tenant: str = "acme", scope: str = "ingest,read", *, database_url: str | None = None
) -> str:
    """A new API key, as an operator makes one; see start_server for *database_url*."""
    words = [command("km-server"), "keys", "create", "--tenant", tenant, "--scope", scope]
    words += ["--database-url", database_url or f"sqlite:///{database}"]
    done = subprocess.run(words, check=True, capture_output=True, timeout=WAIT_S)
    return done.stdout.decode().strip()


def write_config(home: Path, *destinations: tuple[str, str, str], extra: str = "") -> None:
    """A config.toml with (name, url, key) destinations."""
    home.mkdir(parents=True, exist_ok=True)
    tables = [f'[[destinations]]\nname = "{n}"\nurl = "{u}"\nkey = "{k}"\n' for n, u, k in destinations]
    (home / "config.toml").write_text(extra + "\n".join(tables))
    (home / "config.toml").chmod(0o600)
