"""
A real PgBouncer in transaction mode, in front of the tests' PostgreSQL; Debian has it as the package `pgbouncer`.

Each statement group between BEGIN and COMMIT may go to another connection of PostgreSQL, of which there are few: what a
program leaves behind on one of them meets somebody else. Where there is no PgBouncer its tests are skipped, in CI too.
"""

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from tests.support.postgres import OWNER, Cluster, free_port, other_user
from tests.support.processes import WAIT_S, wait_for

USUAL_PLACES = "/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin:/usr/local/opt/pgbouncer/bin:/usr/pgbouncer/bin"
"""Not on everybody's PATH."""

POOL_SIZE = 3
"""Connections to PostgreSQL for a database: fewer than one km-server's pool, so that they are shared all the time."""

SETTINGS = """
[databases]
* = host={host} port={postgres}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {folder}/users.txt
pool_mode = transaction
default_pool_size = {pool}
max_client_conn = 400
server_idle_timeout = 5
server_login_retry = 1
query_wait_timeout = {wait_s}
"""


def find_program() -> str | None:
    """The program, by its name."""
    return shutil.which("pgbouncer", path=os.pathsep.join((os.environ.get("PATH", ""), USUAL_PLACES)))


@dataclass
class Bouncer:
    """A PgBouncer on `port`; `words` start it."""

    folder: Path
    words: list[str]
    port: int
    process: subprocess.Popen[bytes] | None = None

    def through(self, database_url: str) -> str:
        """The URL of a database of the cluster's, by way of this PgBouncer."""
        parts = urlsplit(database_url)
        login = parts.netloc.rpartition("@")[0]
        return urlunsplit(parts._replace(netloc=f"{login}@127.0.0.1:{self.port}"))

    def start(self) -> None:
        """Start it, and wait until it listens."""
        log = self.folder / "log"
        with log.open("ab") as stderr:
            self.process = subprocess.Popen(
                self.words, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr, cwd=self.folder, **other_user()
            )

        def listens() -> bool:
            if self.process is None or self.process.poll() is not None:
                raise RuntimeError(f"PgBouncer ended:\n{log.read_text()}")
            return asyncio.run(answers(self.through("postgresql://nobody@/nothing")))

        wait_for(listens, "PgBouncer")

    def stop(self, signum: int = signal.SIGTERM) -> None:
        """End it at once: every connection breaks."""
        if self.process is not None:
            self.process.send_signal(signum)
            self.process.wait(WAIT_S)
            self.process = None


async def answers(url: str) -> bool:
    """Whether somebody who speaks PostgreSQL's protocol refuses a user whom nobody knows."""
    try:
        connection = await asyncpg.connect(url, timeout=WAIT_S)
    except OSError:
        return False
    except asyncpg.PostgresError:
        return True
    await connection.close()
    return True


@contextmanager
def running_pgbouncer(
    cluster: Cluster, pool_size: int = POOL_SIZE, wait_s: int = 20, template: str = SETTINGS
) -> Iterator[Bouncer]:
    """
    PgBouncer in front of *cluster* for as long as the block runs; skips the test where the program is missing.

    wait_s: how long a transaction may wait for a connection to PostgreSQL. template: its settings, with the places of
    SETTINGS.
    """
    program = find_program()
    if program is None:
        pytest.skip("no PgBouncer here (apt-get install pgbouncer): nothing is tested through it")
    with tempfile.TemporaryDirectory(prefix="km-pgbouncer-", ignore_cleanup_errors=True) as name:
        folder, port, postgres = Path(name), free_port(), urlsplit(cluster.url)
        settings = template.format(
            host=postgres.hostname, postgres=postgres.port, port=port, folder=folder, pool=pool_size, wait_s=wait_s
        )
        (folder / "pgbouncer.ini").write_text(settings)
        (folder / "users.txt").write_text(f'"{OWNER}" "{OWNER}"\n')
        if user := other_user():
            for path in (folder, *folder.iterdir()):
                os.chown(path, user["user"], user["group"])
        bouncer = Bouncer(folder, [program, str(folder / "pgbouncer.ini")], port)
        bouncer.start()
        try:
            yield bouncer
        finally:
            bouncer.stop(signal.SIGKILL)  # at once: nothing of it is kept
