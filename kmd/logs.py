"""Structured logs to stderr: for a person on a terminal, JSON lines everywhere else. Never a payload or a key."""

import contextlib
import io
import logging
import os
import sys
import threading
from pathlib import Path

import structlog

from kmd.errors import KilometersError
from kmd.open_flags import BINARY, NO_LINKS
from kmd.private_dir import make_dir

STDERR = 2
LOG_FILE_MAX_BYTES = 1 << 20
"""A log file that has grown over this is put aside; the one put aside before is gone then."""


def configure_logs(level: str) -> None:
    """Send structlog's and the standard library's warnings to stderr at *level*."""
    processors: list[structlog.types.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if sys.stderr.isatty():
        processors.append(structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback))
    else:
        # Both renderers would by default show the local variables of a traceback, and so payloads and keys.
        plain = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        processors += [structlog.processors.ExceptionRenderer(plain), structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def redirect_stderr(path: Path) -> None:
    """
    Have everything that this process says on stderr, tracebacks too, appended to *path* (0600, bounded).

    Raises KilometersError when that cannot be.
    """
    try:
        make_dir(path.parent)
        put_aside(path)
        open_as_stderr(path)
    except OSError as exc:
        hint = "choose another file with --log-file"
        raise KilometersError(f"{path}: cannot be written ({exc.strerror})", hint=hint) from exc
    sys.stderr = BoundedLog(path)


def put_aside(path: Path) -> None:
    """Make room for a new file when the one at *path* has grown over the bound. Raises OSError."""
    if path.exists() and path.stat().st_size > LOG_FILE_MAX_BYTES:
        path.replace(path.with_name(path.name + ".1"))


def open_as_stderr(path: Path) -> None:
    """Put *path* in the place of descriptor 2. Raises OSError."""
    put_in_place_of_stderr(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | NO_LINKS | BINARY, 0o600))


def put_in_place_of_stderr(descriptor: int) -> None:
    """Have descriptor 2 be a copy of *descriptor*, which is closed. Raises OSError."""
    os.dup2(descriptor, STDERR)
    os.close(descriptor)


def start_anew(path: Path) -> None:
    """Put a log that has grown aside, and go on in a new one; whatever happens, in one of the two. Raises OSError."""
    try:
        if sys.platform == "win32":  # a file that is open cannot be renamed there
            put_in_place_of_stderr(os.open(os.devnull, os.O_WRONLY))
        put_aside(path)
    finally:
        open_as_stderr(path)


class BoundedLog(io.TextIOBase):
    """stderr as a file that is put aside when it has grown; a disk that refuses must not end kmd."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def write(self, text: str) -> int:
        """Append *text* at once: a line that is still in memory is lost with the process."""
        with self._lock, contextlib.suppress(OSError):
            os.write(STDERR, text.encode("utf-8", "backslashreplace"))
            if os.fstat(STDERR).st_size > LOG_FILE_MAX_BYTES:
                start_anew(self._path)
        return len(text)

    def fileno(self) -> int:
        return STDERR
