"""What an installed wheel has, which a work tree has elsewhere."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEMPLATES = ("systemd/kmd.socket", "systemd/kmd.service", "launchd/kmd.plist", "windows/kmd.xml")
READ = "import sys; from kmctl.supervisors.templates import read_template as r, IN_TREE as t; assert not t.exists();"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel holds."""
    folder = tmp_path_factory.mktemp("wheel")
    words = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True, timeout=100)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.mark.parametrize("name", TEMPLATES)
def test_it_carries_the_templates_of_packaging(installed: Path, name: str) -> None:
    words = [sys.executable, "-c", f"{READ} sys.stdout.write(r({name!r}))"]
    environ = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(words, cwd=installed, env=environ, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == (ROOT / "packaging" / name).read_text()


def test_nothing_of_the_tests_is_in_it(installed: Path) -> None:
    assert {path.name for path in installed.iterdir() if path.is_dir()} >= {"kmd", "kmctl", "km_server"}
    assert not (installed / "tests").exists()
    assert not (installed / "packaging").exists()  # it would stand before the package of that name
