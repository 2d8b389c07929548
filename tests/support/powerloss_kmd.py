"""The real kmd under power loss: what it said to relays against what is left of its files."""

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random

from kmd.mcp.names import Stream
from kmd.outbox.outbox import Outbox
from tests.support.powerloss import Kind, Operation, lose_power, parse_trace, render_mark
from tests.support.powerloss_library import FAULTS, TRACE, watch
from tests.support.processes import start_kmd
from tests.support.raw_relay import connected, session_name

SESSIONS = 3
ROUNDS = 120
FAULT_EVERY = 50
"""Turns from one failed sync to the next: kmd waits a second after each."""
READ_ALL = 1 << 20


@dataclass(frozen=True, slots=True)
class Recorded:
    """sent: the bytes of each session's stream to the server."""

    root: str
    operations: list[Operation]
    sent: list[bytes]


def record_kmd(library: Path, folder: Path, seed: int) -> Recorded:
    """Relays by hand send lines to kmd, each waits for its acknowledgement; now and then a sync fails."""
    rand = Random(seed)
    home = folder / "home"
    home.mkdir(parents=True)
    sent = [b""] * SESSIONS
    kmd = start_kmd(home, watch(library, home, folder))
    trace = os.open(folder / TRACE, os.O_WRONLY | os.O_APPEND)
    try:
        with ExitStack() as stack:
            relays = [stack.enter_context(connected(home, session_name(n))) for n in range(SESSIONS)]
            for turn in range(ROUNDS):
                if turn % FAULT_EVERY == FAULT_EVERY - 1:
                    (folder / FAULTS / "fsync-eio-once").touch()
                chosen = rand.sample(range(SESSIONS), rand.randrange(1, SESSIONS + 1))
                for number in chosen:
                    lines = b"".join(render_line(rand) for _ in range(rand.randrange(1, 8)))
                    relays[number].data(0, len(sent[number]), lines)
                    sent[number] += lines
                for number in chosen:
                    acked = relays[number].wait_acked(len(sent[number]))[0]
                    os.write(trace, render_mark(f"acknowledged {number} {acked}"))
    finally:
        os.close(trace)
        kmd.stop()
    return Recorded(str(home.resolve()), parse_trace((folder / TRACE).read_bytes()), sent)


def render_line(rand: Random) -> bytes:
    size = 10 << 10 if rand.random() < 0.1 else rand.randrange(400)
    return rand.randbytes(size).hex().encode() + b"\n"


def lose_power_of_kmd(recorded: Recorded, folder: Path, seed: int) -> list[str]:
    """Lose power once; what is wrong afterwards."""
    rand = Random(seed)
    crash_at = rand.randrange(len(recorded.operations)) + 1
    before = recorded.operations[:crash_at]
    folder.mkdir()
    for name, data in lose_power(recorded.root, before, rand).items():
        (folder / name).write_bytes(data)
    marks = [operation.data.split() for operation in before if operation.kind is Kind.MARK]
    with Outbox(folder / "outbox.db", check_first=True) as outbox:
        durable = read_streams(outbox)
    faults = [f"seed {seed}: the file was damaged" for _ in folder.glob("*.damaged-*")]
    for number, sent in enumerate(recorded.sent):
        acked = max((int(offset) for _, of, offset in marks if int(of) == number), default=0)
        end, stored = durable.get(session_name(number), (0, b""))
        if end < acked:
            faults.append(f"seed {seed}: session {number} was acknowledged up to {acked}, durable is {end}")
        if stored != sent[:end]:
            faults.append(f"seed {seed}: session {number} has other bytes up to {end}")
    return faults


def read_streams(outbox: Outbox) -> dict[str, tuple[int, bytes]]:
    """By session: how far it is durable, and the lines that are there, put together again."""
    rows = outbox.read_events(0, READ_ALL)
    starts = {row.session.session: row.session for row in rows}
    lines: dict[str, list[bytes]] = {}
    for row in rows:
        lines.setdefault(row.session.session, []).append((row.message.payload or b"") + b"\n")
    return {
        session: (outbox.open_session(start).durable.get(Stream.TO_SERVER, 0), b"".join(lines[session]))
        for session, start in starts.items()
    }
