"""
Where things are. Pure: the environment and the home directory are arguments.

With a *home* (`--home`, else `KM_HOME`) everything is under that one directory. Without one, configuration
and state are in the platform's places, and the *meeting place* of `km` and kmd (sockets, spools) is
`~/.kilometers`: MCP clients pass on only HOME, so nothing else of the environment may decide it.
kmd.shim.hello.meeting_dir says the same for `km`, which must not import this; a test holds the two together.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from kmd.errors import ConfigError

APP = "kilometers"
MEETING_DIR = ".kilometers"
SOCKET = "kmd.sock"
CONTROL_SOCKET = "control.sock"
SPOOL_DIR = "spool"


@dataclass(frozen=True, slots=True)
class Places:
    """Every file of one installation. Directories are 0700, files 0600; kmd makes what is missing."""

    config_file: Path
    state_dir: Path
    meeting_dir: Path

    @property
    def socket(self) -> Path:
        """Where km finds kmd: a socket's path, on Windows a pipe's name."""
        return meeting_point(self.meeting_dir, SOCKET)

    @property
    def control_socket(self) -> Path:
        """Where kmctl finds kmd: a socket's path, on Windows a pipe's name."""
        return meeting_point(self.meeting_dir, CONTROL_SOCKET)

    @property
    def spool_dir(self) -> Path:
        return self.meeting_dir / SPOOL_DIR

    @property
    def lock_file(self) -> Path:
        return self.meeting_dir / "kmd.lock"

    @property
    def outbox_file(self) -> Path:
        return self.state_dir / "outbox.db"


def meeting_point(folder: Path, socket: str) -> Path:
    """Where a door of the kmd of *folder* is. Pipes have no folders: their names are made of it."""
    if sys.platform == "win32":
        from kmd.shim.windows.names import CONTROL, RELAY, pipe_name

        return Path(pipe_name(str(folder), RELAY if socket == SOCKET else CONTROL))
    return folder / socket


def find_places(home: Path | None, environ: Mapping[str, str]) -> Places:
    """
    Decide the places for *home* (the flag's value) in *environ*.

    Returns: absolute paths; nothing is created. Raises ConfigError when no home directory is known.
    """
    chosen = home or (Path(environ["KM_HOME"]) if environ.get("KM_HOME") else None)
    try:
        if chosen is not None:
            root = Path(os.path.abspath(chosen.expanduser()))  # noqa: PTH100 - takes ".." away as the relay does
            return Places(config_file=root / "config.toml", state_dir=root, meeting_dir=root)
        user_home = Path.home()
    except RuntimeError as exc:
        hint = "set HOME, or give --home DIR"
        raise ConfigError(None, "HOME", "no home directory is known", hint=hint) from exc
    except OSError as exc:
        raise ConfigError(None, "home", "the current folder is gone", hint="give --home an absolute path") from exc
    return Places(
        config_file=Path(platformdirs.user_config_dir(APP)) / "config.toml",
        state_dir=Path(platformdirs.user_state_dir(APP)),
        meeting_dir=user_home / MEETING_DIR,
    )
