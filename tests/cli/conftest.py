"""The machine that runs the tests may have a service manager of its own: kmctl is not to see it."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def no_service_manager(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "no runtime folder"))
