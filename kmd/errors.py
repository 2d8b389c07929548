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

    def __init__(self, path: Path | None, key: str, problem: str, *, hint: str = "", line: int | None = None) -> None:
        where = ": ".join(part for part in (str(path) if path else "", key) if part)
        at = f" (line {line})" if line is not None else ""
        super().__init__(f"{where}: {problem}{at}" if where else f"{problem}{at}", hint=hint)
        self.path = path
        self.key = key
        self.problem = problem
        self.line = line


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
