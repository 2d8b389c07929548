"""
Node.js for the tests: the official TypeScript clients and public servers, as pinned in tests/node/package.json.

They are installed with npm into `tests/node/node_modules` when they are first needed or the pins change. Without
Node.js the tests that need it are skipped, aloud, except where `CI=true` says that nothing may be left out.
`python -m tests.support.node` installs ahead (that is what `make install` does).
"""

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "node"
PACKAGES = FOLDER / "package.json"
INSTALLED = FOLDER / "node_modules" / ".installed"
"""A copy of the package.json that was installed from."""
OLDEST_MAJOR = 20
INSTALL_MAX_S = 300.0


class NodeMissingError(RuntimeError):
    """There is no Node.js with the packages that the tests need; the text says what to do."""


def is_everything_wanted() -> bool:
    """Whether this is a run in which nothing may be left out."""
    return os.environ.get("CI") == "true"


def node() -> str:
    """The Node.js to use. Raises NodeMissingError when there is none, or only one that is too old."""
    found = shutil.which("node")
    if found is None or shutil.which("npm") is None:
        raise NodeMissingError(f"no node and npm on PATH: install Node.js {OLDEST_MAJOR} or newer")
    said = subprocess.run([found, "--version"], capture_output=True, text=True, check=True, timeout=30).stdout
    major = int(said.strip().removeprefix("v").partition(".")[0])
    if major < OLDEST_MAJOR:
        raise NodeMissingError(f"Node.js {said.strip()} is too old: install {OLDEST_MAJOR} or newer")
    return found


def install() -> None:
    """Have the packages there as pinned. Raises NodeMissingError; npm's own words are on stderr."""
    node()
    with PACKAGES.open() as lock:  # one at a time, whoever else runs tests in this checkout
        fcntl.flock(lock, fcntl.LOCK_EX)
        if INSTALLED.exists() and INSTALLED.read_bytes() == PACKAGES.read_bytes():
            return
        words = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error"]
        try:
            subprocess.run(words, cwd=FOLDER, check=True, timeout=INSTALL_MAX_S, stdout=subprocess.DEVNULL)
        except subprocess.SubprocessError as exc:
            raise NodeMissingError(f"npm could not install what {PACKAGES} names: is the registry there?") from exc
        INSTALLED.write_bytes(PACKAGES.read_bytes())


def server_script(name: str) -> Path:
    """The script of a public server, such as `server-memory`."""
    return FOLDER / "node_modules" / "@modelcontextprotocol" / name / "dist" / "index.js"


if __name__ == "__main__":
    try:
        install()
    except NodeMissingError as exc:
        print(f"the tests with TypeScript clients and npm servers are left out: {exc}", file=sys.stderr)
        sys.exit(is_everything_wanted())
