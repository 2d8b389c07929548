"""Telling a service manager how kmd is (systemd's protocol; see sd_notify(3)). Without one nothing happens."""

import socket
import sys
from collections.abc import Mapping

import structlog

READY = "READY=1"
STOPPING = "STOPPING=1"
SEND_TIMEOUT_S = 1.0
"""The manager's queue may be full; kmd must not hang on it."""

log = structlog.get_logger(__name__)


def notify(state: str, environ: Mapping[str, str]) -> None:
    """Send *state* to NOTIFY_SOCKET, a path or, after an @, an abstract name. A manager that is gone is logged."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    target = b"\0" + address[1:].encode() if address.startswith("@") else address.encode()
    try:
        if sys.platform != "win32":
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(SEND_TIMEOUT_S)
                sock.connect(target)
                sock.send(state.encode("ascii"))
    except OSError as exc:
        log.warning("the service manager was not told", state=state, error=exc.strerror or type(exc).__name__)
