"""One real server per kind of store for the whole run; each test has a tenant of its own on it."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.server.clients import Api, database_url, open_api
from tests.support.pgbouncer import Bouncer, running_pgbouncer
from tests.support.postgres import Cluster, running_postgres
from tests.support.processes import running_server

NUMBERS = itertools.count(1)


STORES = ["sqlite", "postgresql", "pgbouncer"]
"""The last one is PostgreSQL behind PgBouncer in transaction mode."""
ON_TWO = ("test_activity", "test_auth", "test_export", "test_ingest", "test_reads", "test_stats")
SERVED_ON = {**dict.fromkeys(ON_TWO, STORES[:2]), "test_live": STORES}
"""By module, on which of them a server is asked; every other module on the first one."""


@dataclass(frozen=True)
class Served:
    """A running server and the URL of its store."""

    url: str
    database_url: str
    log: Path

    @property
    def file(self) -> Path:
        """The SQLite file."""
        return Path(self.database_url.removeprefix("sqlite:///"))


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    """A PostgreSQL server for the whole run; each user of it makes a database of its own."""
    with running_postgres() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def bouncer(postgres: Cluster) -> Iterator[Bouncer]:
    """PgBouncer in front of that server, for the whole run."""
    with running_pgbouncer(postgres) as running:
        yield running


@pytest.fixture(params=STORES)
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty store of each kind."""
    if request.param == "sqlite":
        return database_url(tmp_path / "server.db")
    cluster: Cluster = request.getfixturevalue("postgres")
    if request.param == "postgresql":
        return cluster.new_database()
    bouncer: Bouncer = request.getfixturevalue("bouncer")
    return bouncer.through(cluster.new_database())


@pytest.fixture(scope="session")
def served_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The server on a SQLite file."""
    folder = tmp_path_factory.mktemp("server")
    with running_server(folder / "server.db") as running:
        yield Served(running.url, database_url(folder / "server.db"), running.log)


@pytest.fixture(scope="session")
def served_postgres(tmp_path_factory: pytest.TempPathFactory, postgres: Cluster) -> Iterator[Served]:
    """The server on PostgreSQL."""
    url = postgres.new_database()
    with running_server(tmp_path_factory.mktemp("server") / "on-postgres", database_url=url) as running:
        yield Served(running.url, url, running.log)


@pytest.fixture(scope="session")
def served_pgbouncer(tmp_path_factory: pytest.TempPathFactory, postgres: Cluster, bouncer: Bouncer) -> Iterator[Served]:
    """The server on PostgreSQL behind PgBouncer."""
    url = bouncer.through(postgres.new_database())
    with running_server(tmp_path_factory.mktemp("server") / "on-pgbouncer", database_url=url) as running:
        yield Served(running.url, url, running.log)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what the store has a part in on every kind of store; the rest would only be repeated."""
    if "served" in metafunc.fixturenames:
        module = metafunc.module.__name__.rpartition(".")[2]
        metafunc.parametrize("served", SERVED_ON.get(module, STORES[:1]), indirect=True)


@pytest.fixture
def served(request: pytest.FixtureRequest) -> Served:
    """The server on each kind of store."""
    names = {"sqlite": "served_file", "postgresql": "served_postgres", "pgbouncer": "served_pgbouncer"}
    found: Served = request.getfixturevalue(names[request.param])
    return found


@pytest.fixture
def api(served: Served) -> Iterator[Api]:
    with open_api(served.url, served.database_url, f"tenant-{next(NUMBERS)}") as opened:
        yield opened


@pytest.fixture
def file_api(served_file: Served) -> Iterator[Api]:
    """On SQLite, for a test that looks into the file."""
    with open_api(served_file.url, served_file.database_url, f"tenant-{next(NUMBERS)}") as opened:
        yield opened


@pytest.fixture
def other_api(served: Served) -> Iterator[Api]:
    with open_api(served.url, served.database_url, f"tenant-{next(NUMBERS)}") as opened:
        yield opened
