"""
Errors, split by what the caller does next. None holds a payload, a key or a body.

`ServerError` ends a command: one line and a hint, exit code 1. `ApiError` answers a request. `StoreBusy`
answers it with 503 and a time to come back.
"""

from collections.abc import Mapping


class ServerError(Exception):
    """Anything that a command shows as one line. `hint` says what to do next, and may be empty."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(ServerError):
    """The settings cannot be used as they are."""


class AddressError(ServerError):
    """The server cannot listen where it was told to."""


class StoreError(ServerError):
    """The store cannot be opened or used as it is."""


class StoreBusy(StoreError):
    """The store takes nothing now: the same request may succeed after `retry_after_s` seconds."""

    def __init__(self, message: str, *, retry_after_s: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class ApiError(Exception):
    """An answer that is no success. `code` is for programs, the message and `hint` for people."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        hint: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.hint = hint
        self.headers = dict(headers or {})
