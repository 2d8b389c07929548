"""Structured logs to stderr: for a person on a terminal, JSON lines everywhere else. Never a payload or a key."""

import logging
import os
import sys
from pathlib import Path

import structlog

from kmd.errors import KilometersError

LOG_FILE_MAX_BYTES = 1 << 20
"""A log file that has grown over this is put aside at the next start; the one put aside before is gone then."""


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
    Have everything that this process says on stderr, tracebacks too, appended to *path* (0600).

    Raises KilometersError when that cannot be.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if path.exists() and path.stat().st_size > LOG_FILE_MAX_BYTES:
            path.replace(path.with_name(path.name + ".1"))
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        sys.stderr.flush()
        os.dup2(descriptor, 2)
        os.close(descriptor)
    except OSError as exc:
        hint = "choose another file with --log-file"
        raise KilometersError(f"{path}: cannot be written ({exc.strerror})", hint=hint) from exc
