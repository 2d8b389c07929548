"""
A process that commits a plan to a real outbox and marks what it would have acknowledged, again after each kill.

`python -m tests.support.powerloss_work FOLDER SEED SYNCHRONOUS FAULTS`: FOLDER/disk/outbox.db is the outbox, marks
go to FOLDER/marks; FAULTS is the share of groups at which syncs and writes begin to fail. Events have the seqs
1, 2, … in the order of the plan, so everybody can tell from the seed what must stand where.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from random import Random

from kmd.errors import OutboxFull
from kmd.mcp.message import Message
from kmd.mcp.names import Kind, Stream
from kmd.mcp.row import SessionStart
from kmd.outbox.bounds import Limits
from kmd.outbox.outbox import Intake, Outbox

SESSIONS = 5
GROUPS = 300
CHECKPOINT_PAGES = 120
"""Far below kmd's own, so that a short run meets many checkpoints."""
LIMITS = Limits(max_bytes=256 << 10)
DESTINATION = "team"
FAULT_NAMES = ("fsync-eio", "fsync-eio-once", "fsync-eio-last", "write-enospc")


@dataclass(frozen=True, slots=True)
class Planned:
    """An event as it must be found: its session's number, and the message."""

    session: int
    message: Message


def start_of(session: int) -> SessionStart:
    return SessionStart(f"01890a5d-ac96-774b-bcce-{session:012x}", f"server-{session}", "cat", session + 1, 1)


def plan(seed: int) -> list[list[Planned]]:
    """Groups as the writer would gather them: a few events of several sessions, small ones and large ones."""
    rand = Random(seed)
    offsets: dict[tuple[int, Stream], int] = {}
    groups = []
    for _ in range(GROUPS):
        group = []
        for session in rand.sample(range(SESSIONS), rand.randrange(1, SESSIONS + 1)):
            for _ in range(rand.randrange(1, 6)):
                stream = rand.choice((Stream.TO_SERVER, Stream.TO_CLIENT))
                size = 10 << 10 if rand.random() < 0.1 else rand.randrange(0, 400)
                offset = offsets.get((session, stream), 0)
                offsets[session, stream] = offset + size + 1
                group.append(Planned(session, plan_message(rand, stream, offset, size)))
        groups.append(group)
    return groups


def plan_message(rand: Random, stream: Stream, offset: int, size: int) -> Message:
    return Message(
        stream=stream,
        offset=offset,
        at_ns=rand.randrange(1 << 60),
        kind=Kind.NOT_JSON,
        size_bytes=size,
        payload=rand.randbytes(size),
    )


def end_of(message: Message) -> int:
    """The offset of the byte behind *message* and its newline."""
    return message.offset + message.size_bytes + 1


class Work:
    """One life of the process."""

    def __init__(self, folder: Path, seed: int, fault_share: float) -> None:
        self._marks = os.open(folder / "marks", os.O_WRONLY | os.O_CREAT, 0o600)
        self._faults = folder / "faults"
        self._groups = plan(seed)
        self._rand = Random(seed)
        self._fault_share = fault_share

    def run(self, outbox: Outbox) -> None:
        """Go on with the plan where the outbox ends."""
        self._rand.seed(outbox.last_seq)
        known = outbox.open_session(start_of(0))
        # That was a commit, so whatever the outbox holds is said to be durable, and relays forget it.
        self.mark("acknowledged", outbox.read_last_seq())
        self.mark("removed", outbox.room.deleted_seq)
        ids = [known.session_id] + [outbox.open_session(start_of(n)).session_id for n in range(1, SESSIONS)]
        cursor = outbox.open_destination(DESTINATION).cursor
        end = 0
        for group in self._groups:
            end += len(group)
            if end <= outbox.last_seq:
                continue
            self._commit(outbox, render_intakes(group, ids))
            self.mark("acknowledged", end)
            if self._rand.random() < 0.2:
                cursor = self._settle(outbox, cursor)
            if self._rand.random() < 0.2:
                self._keep_house(outbox, cursor)

    def _commit(self, outbox: Outbox, intakes: list[Intake]) -> None:
        """Try until it succeeds, as the writer does; at some groups the disk fails for the first tries."""
        fault = self._faults / self._rand.choice(FAULT_NAMES)
        tries_left = self._rand.randrange(1, 4) if self._rand.random() < self._fault_share else 0
        if tries_left:
            fault.touch()
        while True:
            try:
                outbox.commit(intakes)
            except OutboxFull:
                tries_left -= 1
                if tries_left <= 0:
                    fault.unlink(missing_ok=True)
            else:
                fault.unlink(missing_ok=True)
                return

    def _settle(self, outbox: Outbox, cursor: int) -> int:
        rows = outbox.read_events(cursor, self._rand.randrange(1, 100))
        if not rows:
            return cursor
        refused = {rows[0].seq: "no"} if self._rand.random() < 0.1 else {}
        outbox.settle(DESTINATION, [row.seq for row in rows], refused, 1)
        self.mark("settled", rows[-1].seq)
        return rows[-1].seq

    def _keep_house(self, outbox: Outbox, cursor: int) -> None:
        while outbox.room.make_room(cursor, 1):
            self.mark("removed", outbox.room.deleted_seq)
        outbox.room.give_back()

    def mark(self, word: str, seq: int) -> None:
        os.write(self._marks, f"{word} {seq}".encode())


def render_intakes(group: list[Planned], ids: list[int]) -> list[Intake]:
    """One intake for each session of a group, in the order of the plan."""
    messages: dict[int, list[Message]] = {}
    for planned in group:
        messages.setdefault(planned.session, []).append(planned.message)
    return [
        Intake(ids[session], of_session, {message.stream: end_of(message) for message in of_session})
        for session, of_session in messages.items()
    ]


def main(folder: Path, seed: int, synchronous: str, fault_share: float) -> None:
    path = folder / "disk" / "outbox.db"
    work = Work(folder, seed, fault_share)
    work.mark("began", 0)
    with Outbox(path, LIMITS, check_first=path.exists()) as outbox:
        outbox._writer.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        outbox._writer.execute(f"PRAGMA synchronous = {synchronous}")
        work.run(outbox)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], float(sys.argv[4]))
