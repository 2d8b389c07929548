"""
kmd's answers as values. Fields that this version does not know are ignored, missing ones have a default.

docs/control-protocol.md is the contract. `--json` prints what kmd said, not these.
"""

from typing import Any, TypeVar

import msgspec

from kmd.errors import RemoteProtocolError

Answer = dict[str, Any]
"""One line from kmd: a JSON object, not looked into yet."""

ILL_STATES = frozenset({"retrying", "paused"})


class Daemon(msgspec.Struct, frozen=True, kw_only=True):
    """The kmd process itself."""

    version: str = ""
    pid: int = 0
    uptime_s: float = 0
    home: str | None = None
    config: str | None = None
    sqlite: str | None = None


class Evicted(msgspec.Struct, frozen=True, kw_only=True):
    """How much a bound has removed for one reason. bytes: of payloads."""

    events: int = 0
    bytes: int = 0


class Outbox(msgspec.Struct, frozen=True, kw_only=True):
    """
    What is kept on this machine. gap_bytes: traffic that was not captured. last_error: why a commit failed.
    evicted: what had to go, by reason.
    """

    path: str = ""
    events: int = 0
    bytes: int = 0
    oldest_pending_age_s: float | None = None
    gap_bytes: int = 0
    evicted: dict[str, Evicted] = msgspec.field(default_factory=dict)
    last_error: str | None = None


class LiveSession(msgspec.Struct, frozen=True, kw_only=True):
    """A wrapped server that runs now."""

    session: str = ""
    name: str = ""
    command: str = ""
    pid: int | None = None
    started_at: str | None = None
    events: int = 0
    bytes_to_server: int = 0
    bytes_to_client: int = 0
    open_requests: int = 0
    gap_bytes: int = 0


class Destination(msgspec.Struct, frozen=True, kw_only=True):
    """A km-server and how far it has been brought up to date."""

    name: str = ""
    url: str = ""
    cursor: int = 0
    settled: int = 0
    pending: int = 0
    quarantined: int = 0
    state: str = ""
    last_error: str | None = None
    hint: str | None = None
    next_attempt_s: float | None = None
    last_success_at: str | None = None


class Warned(msgspec.Struct, frozen=True, kw_only=True):
    """Something that costs events soon or now, and what to do."""

    message: str = ""
    hint: str = ""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that `kmctl status` shows."""

    daemon: Daemon = msgspec.field(default_factory=Daemon)
    outbox: Outbox = msgspec.field(default_factory=Outbox)
    sessions: tuple[LiveSession, ...] = ()
    destinations: tuple[Destination, ...] = ()
    warnings: tuple[Warned, ...] = ()


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """One destination on the way to a flush's mark."""

    name: str = ""
    mark: int = 0
    cursor: int = 0
    pending: int = 0
    state: str = ""


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """Why one destination has not settled everything, and what to do about it."""

    name: str = ""
    pending: int = 0
    state: str = ""
    error: str | None = None
    hint: str | None = None


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """
    One message of `tail`: the wire contract's Event without its payload, with seq and server name.

    Closed sets are plain text here: a newer kmd may know one more kind.
    """

    seq: int = 0
    server: str = ""
    session: str = ""
    stream: str = ""
    at_ns: int = 0
    kind: str = ""
    method: str | None = None
    target: str | None = None
    rpc_id: str | None = None
    size_bytes: int = 0
    took_ns: int | None = None
    outcome: str | None = None
    error_code: int | None = None


class RefusedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """What was refused: the wire contract's Event. The payload is there only when `show` asks for it."""

    session: str = ""
    stream: str = ""
    offset: int = 0
    index: int = 0
    at_ns: int = 0
    kind: str = ""
    method: str | None = None
    target: str | None = None
    rpc_id: str | None = None
    size_bytes: int = 0
    outcome: str | None = None
    error_code: int | None = None
    payload: str | None = None
    payload_base64: str | None = None


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """An event in quarantine. event: None when a bound had removed it before it could be kept."""

    destination: str = ""
    seq: int = 0
    reason: str = ""
    refused_at: str | None = None
    server: str | None = None
    event: RefusedEvent | None = None
    payload_omitted_bytes: int = 0


class Retried(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a refused event that was sent again."""

    destination: str = ""
    seq: int = 0
    delivered: bool = False
    error: str | None = None
    hint: str | None = None


Shape = TypeVar("Shape")


def parse_part(answer: Answer, part: str, shape: type[Shape]) -> Shape:
    """The value under *part* as *shape*. Raises RemoteProtocolError: it is missing or of another shape."""
    try:
        return msgspec.convert(answer[part], shape)
    except (KeyError, msgspec.ValidationError) as exc:
        raise RemoteProtocolError(
            f"kmd gave an answer without a usable '{part}'", hint="restart kmd: it may be of another version"
        ) from exc


def find_faults(status: Status) -> list[str]:
    """What makes an installation degraded, one phrase each; empty when all is well."""
    faults = []
    for destination in status.destinations:
        if destination.state in ILL_STATES:
            faults.append(f"{destination.name} is {destination.state}")
        if destination.quarantined:
            faults.append(f"{destination.name} refused {destination.quarantined:,} (quarantined)")
    if status.outbox.gap_bytes:
        faults.append(f"{status.outbox.gap_bytes:,} bytes were not captured")
    if status.outbox.last_error:
        faults.append(f"the outbox cannot be written: {status.outbox.last_error}")
    faults += [f"{warned.message} ({warned.hint})" for warned in status.warnings]
    return faults
