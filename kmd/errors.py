"""
Errors, split by what the caller does next. Each carries one sentence and, as `hint`, the next thing to do.

No message holds a payload or a secret: only names, positions and sizes.
"""

from collections.abc import Iterator
from pathlib import Path

CLOCK = "its operator has to renew it; if this machine's clock is wrong, set that"
TRUST = (
    "if it is your own, put its authority into a PEM file and name that as this destination's ca_file"
    " ('kmctl login --ca-file FILE'); or, with all others to trust, in SSL_CERT_FILE, and start kmd with that"
)
NAME = "give the URL with a name that the certificate is for, or have it made for this one"
REFUSED_CERTIFICATES = {
    9: ("it is not valid yet", CLOCK),
    10: ("it has expired", CLOCK),
    18: ("it is self-signed", TRUST),
    19: ("an authority that nobody here knows has signed it", TRUST),
    20: ("an authority that nobody here knows has signed it", TRUST),
    21: ("an authority that nobody here knows has signed it", TRUST),
    62: ("it is for another name", NAME),
    64: ("it is for another address", NAME),
}
"""OpenSSL's X509_V_ERR codes (`verify_code`): what is wrong with a server's certificate, and what to do."""


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


def explain_certificate(verify_code: int, verify_message: str) -> tuple[str, str]:
    """What is wrong with a server's certificate, from what OpenSSL says of it, and what to do. Pure."""
    problem, hint = REFUSED_CERTIFICATES.get(verify_code, (verify_message, "ask the server's operator"))
    return f"the server's certificate is refused: {problem}", hint


def walk_causes(exc: BaseException | None) -> Iterator[BaseException]:
    """*exc*, what it was raised from, and the members of groups among them."""
    seen: set[int] = set()
    waiting = [exc]
    while waiting:
        one = waiting.pop(0)
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions
