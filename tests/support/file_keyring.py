"""A keyring that keeps its passwords in a file: the `keyring` library with a backend whose content a test can see."""

import json
import os
from pathlib import Path

from keyring.backend import KeyringBackend
from keyring.errors import KeyringLocked, PasswordDeleteError

ENVIRONMENT = "KILOMETERS_TEST_KEYRING"
NAME = f"{__name__}.FileKeyring"


class FileKeyring(KeyringBackend):
    """Locked while its file cannot be read."""

    priority = 5.0

    def get_password(self, service: str, username: str) -> str | None:
        return load().get(f"{service} {username}")

    def set_password(self, service: str, username: str, password: str) -> None:
        save({**load(), f"{service} {username}": password})

    def delete_password(self, service: str, username: str) -> None:
        kept = load()
        if kept.pop(f"{service} {username}", None) is None:
            raise PasswordDeleteError(username)
        save(kept)


def environ_of(file: Path) -> dict[str, str]:
    """The environment in which programs use this keyring, kept in *file*."""
    root = str(Path(__file__).parents[2])
    return {"PYTHON_KEYRING_BACKEND": NAME, ENVIRONMENT: str(file), "PYTHONPATH": root}


def load() -> dict[str, str]:
    path = Path(os.environ[ENVIRONMENT])
    if path.is_dir():
        raise KeyringLocked("the test has locked it")
    kept: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    return kept


def save(kept: dict[str, str]) -> None:
    Path(os.environ[ENVIRONMENT]).write_text(json.dumps(kept))
