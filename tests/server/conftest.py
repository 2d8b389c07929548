"""One real server for the whole run; each test has a tenant of its own on it."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.server.clients import Api, open_api
from tests.support.processes import running_server

NUMBERS = itertools.count(1)


@dataclass(frozen=True)
class Served:
    """A running server and its file."""

    url: str
    database: Path
    log: Path


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    database = tmp_path_factory.mktemp("server") / "server.db"
    with running_server(database) as running:
        yield Served(running.url, database, running.log)


@pytest.fixture
def api(served: Served) -> Iterator[Api]:
    with open_api(served.url, served.database, f"tenant-{next(NUMBERS)}") as opened:
        yield opened


@pytest.fixture
def other_api(served: Served) -> Iterator[Api]:
    with open_api(served.url, served.database, f"tenant-{next(NUMBERS)}") as opened:
        yield opened
