"""A real systemd user instance for one test, on a machine that runs none: in a mount namespace of its own."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.processes import WAIT_S, wait_for

SCRIPT = Path(__file__).with_suffix(".sh")
SYSTEMD = Path("/lib/systemd/systemd")
UNIFIED = (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup"))


def missing() -> str:
    """Why there can be none here; empty when there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs Linux and root"
    if not SYSTEMD.exists() or not shutil.which("unshare") or not shutil.which("systemctl"):
        return "needs systemd and unshare (Debian: apt-get install systemd util-linux)"
    return ""


@contextmanager
def user_systemd(folder: Path) -> Iterator[dict[str, str]]:
    """
    systemd with `folder/home` as its user's home. Yields the environment that leads programs to it.

    Skips the test where it cannot be had; on CI that is a failure.
    """
    if reason := missing():
        give_up(reason)
    environ = {"HOME": str(folder / "home"), "XDG_RUNTIME_DIR": str(folder / "run")}
    for path in environ.values():
        Path(path).mkdir(mode=0o700)
    group = f"kilometers-test-{os.getpid()}"
    log = folder / "systemd.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["unshare", "--mount", "sh", str(SCRIPT), group],
            env={**os.environ, **environ},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        try:
            wait_for(lambda: process.poll() is not None or answers(environ), "systemd")
            runs = process.poll() is None
        except (TimeoutError, subprocess.TimeoutExpired):
            runs = False
        if not runs:
            give_up(f"systemd does not run here: {log.read_text()}")
        yield environ
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        remove_group(group)


def give_up(reason: str) -> None:
    """Skip, but never on the project's own CI, which runs as root on Linux."""
    if os.environ.get("CI") and sys.platform == "linux" and os.geteuid() == 0:
        pytest.fail(reason)
    pytest.skip(reason)


def answers(environ: dict[str, str]) -> bool:
    words = ["systemctl", "--user", "show", "--property=SystemState", "--value"]
    done = subprocess.run(words, env={**os.environ, **environ}, capture_output=True, text=True, timeout=WAIT_S)
    return done.stdout.strip() in ("running", "degraded")


def remove_group(group: str) -> None:
    """Take the cgroups away again, innermost first."""
    for root in UNIFIED:
        if not (root / group).is_dir():
            continue
        folders = sorted((path for path in (root / group).rglob("*") if path.is_dir()), reverse=True)
        for path in [*folders, root / group]:
            try:
                path.rmdir()
            except OSError:
                return  # a process that is still ending; an empty folder in /sys harms nobody
