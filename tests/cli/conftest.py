"""What tests of kmctl share. The machine may have a service manager of its own: kmctl is not to see it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.desk import Desk, server
from tests.support.processes import create_key, running_kmd, running_server


@pytest.fixture(autouse=True)
def no_service_manager(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "no runtime folder"))


@pytest.fixture(scope="module")
def well(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """The machine that all tests share; each puts back what it has changed."""
    folder = tmp_path_factory.mktemp("doctor")
    with running_server(folder / "server.db") as km_server:
        desk = Desk(folder / "home", km_server.url, folder / "server.db")
        desk.km_home.mkdir(parents=True, mode=0o700)
        desk.write_config(desk.url, create_key(desk.database))
        desk.write_server(server())
        with running_kmd(desk.km_home):
            yield desk


@pytest.fixture
def desk(well: Desk, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """The machine, with this process in it; the files that a fault may spoil are put back."""
    monkeypatch.setenv("HOME", str(well.home))
    monkeypatch.chdir(well.home)
    for name in ("XDG_CONFIG_HOME", "KM_HOME", "CLAUDE_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    kept = {path: path.read_bytes() for path in (well.config, well.client_file, well.home / "server.py")}
    try:
        yield well
    finally:
        for path, raw in kept.items():
            path.write_bytes(raw)
        well.config.chmod(0o600)
