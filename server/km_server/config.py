"""What the server runs with, and where its defaults come from."""

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import platformdirs

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8713

BODY_TIMEOUT_S = 60.0
"""For reading one body: 32 MiB at 5 Mbit/s. kmd itself gives up after 30 s."""


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """`port` 0 means any free one."""

    database_url: str
    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    body_timeout_s: float = BODY_TIMEOUT_S


def default_database_url() -> str:
    """A file in the user's data folder."""
    folder = Path(platformdirs.user_data_dir("kilometers-server", appauthor=False))
    return f"sqlite:///{folder / 'server.db'}"


def read_version() -> str:
    """The installed version."""
    return metadata.version("kilometers")
