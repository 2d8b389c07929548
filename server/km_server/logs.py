"""
Logs to stderr: lines for people on a terminal, JSON elsewhere.

What libraries log may quote a request, headers and all: of theirs only the place, the level and the kind of
exception come through.
"""

import logging
import sys

import structlog


class LibraryHandler(logging.Handler):
    """Hands on that a library complained, not what it said."""

    def emit(self, record: logging.LogRecord) -> None:
        kind = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else None
        structlog.get_logger().warning("library", logger=record.name, severity=record.levelname, error=kind)


def set_up_logs() -> None:
    """Configure structlog and the standard module for this process."""
    on_terminal = sys.stderr.isatty()
    renderer = structlog.dev.ConsoleRenderer() if on_terminal else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, handlers=[LibraryHandler()], force=True)
