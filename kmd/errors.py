"""
Errors, split by what the caller does next. Each carries one sentence and, as `hint`, the next thing to do.

No message holds a payload or a secret: only names, positions and sizes.
"""

from pathlib import Path


class KilometersError(Exception):
    """Anything that a command shows as one line. `hint` says what to do next, and may be empty."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(KilometersError):
    """The configuration cannot be used: show file and key, change nothing."""

    def __init__(self, path: Path | None, key: str, problem: str, *, hint: str = "") -> None:
        where = ": ".join(part for part in (str(path) if path else "", key) if part)
        super().__init__(f"{where}: {problem}" if where else problem, hint=hint)
        self.path = path
        self.key = key


class DaemonUnavailable(KilometersError):
    """kmd does not answer on its control socket: exit 3."""


class DaemonRunning(KilometersError):
    """Another kmd holds the lock: leave it alone, exit 1."""


class OutboxError(KilometersError):
    """The outbox cannot be used as it is."""


class OutboxFull(OutboxError):
    """No room for the commit: send no ack, keep reading nothing, try again."""


class OutboxCorrupt(OutboxError):
    """SQLite says the file is damaged: set it aside."""


class RemoteProtocolError(KilometersError):
    """A local peer sent something that is no record: close that connection only."""


class DeliveryError(KilometersError):
    """A batch was not settled."""


class ServerUnreachable(DeliveryError):
    """No answer in time, or no connection: retry."""
