"""What a client saw of one part: its results, and of each process that it started the bytes and the end."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spawned:
    """One server process: what the client wrote and read, whole, and the status as wait(2) has it (-15: SIGTERM)."""

    sent: bytes
    received: bytes
    status: int | None


@dataclass(frozen=True, slots=True)
class Played:
    """One part as a client has played it. `results` is plain JSON: about the server, then one for each step."""

    results: object
    spawned: list[Spawned]
