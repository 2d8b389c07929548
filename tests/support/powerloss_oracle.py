"""
What must hold after a power loss: the outbox of tests/support/powerloss_work.py, examined against its plan.

A run is recorded once, kills included; then power is lost at as many points of it as there are seeds.
"""

import signal
import subprocess
import sys
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from random import Random

from kmd.mcp.message import Message
from kmd.mcp.names import Stream
from kmd.mcp.row import Row
from kmd.outbox.bounds import Step
from kmd.outbox.outbox import Outbox
from tests.support.powerloss import Kind, Operation, lose_power, parse_trace
from tests.support.powerloss_library import TRACE, watch
from tests.support.powerloss_work import DESTINATION, GROUPS, LIMITS, Planned, end_of, plan, start_of

LIVES = 3
KILL_AT = (200, 4000)
"""The operation at which a life but the last ends."""
LIFE_S = 60.0
DELETED = (Step.DELETE_SETTLED, Step.DELETE_UNSETTLED, Step.DELETE_AGED)


@dataclass(frozen=True, slots=True)
class Run:
    """A recorded run: its plan, flat, and the seqs at which its groups end."""

    root: str
    operations: list[Operation]
    planned: list[Planned]
    ends: frozenset[int]

    @property
    def restarts(self) -> list[int]:
        """The operations at which a life begins that is not the first."""
        began = [n for n, o in enumerate(self.operations) if o.kind is Kind.MARK and o.data.startswith(b"began")]
        return began[1:]

    def last_mark(self, word: str, until: int) -> int:
        """What the last mark of that word before operation *until* says, 0 without one."""
        marks = (operation.data.split() for operation in self.operations[:until] if operation.kind is Kind.MARK)
        return max((int(seq) for found, seq in marks if found == word.encode()), default=0)

    def next_mark(self, word: str, after: int) -> int:
        marks = (operation.data.split() for operation in self.operations[after:] if operation.kind is Kind.MARK)
        return next((int(seq) for found, seq in marks if found == word.encode()), len(self.planned))


@dataclass(slots=True)
class Finding:
    """One loss of power. lost: acknowledged events that are gone. faults: whatever else is not as promised."""

    crash_at: int
    acknowledged: int
    lost: int = 0
    faults: list[str] = field(default_factory=list)


def record_run(
    library: Path, folder: Path, seed: int, *, synchronous: str = "FULL", fault_share: float = 0.0, lives: int = LIVES
) -> Run:
    """Let the work be done, killed and begun again; the last life comes to the end of the plan."""
    rand = Random(seed)
    root = folder / "disk"
    root.mkdir(parents=True)
    program = [sys.executable, "-m", "tests.support.powerloss_work"]
    words = [*program, str(folder), str(seed), synchronous, str(fault_share)]
    for life in range(lives):
        kill_at = rand.randrange(*KILL_AT) if life + 1 < lives else 0
        environ = watch(library, root, folder, kill_at=kill_at)
        done = subprocess.run(words, env=environ, cwd=Path(__file__).parents[2], timeout=LIFE_S, check=False)
        assert done.returncode in (0, -signal.SIGKILL if kill_at else 0), done.returncode
    groups = plan(seed)
    assert len(groups) == GROUPS
    ends = frozenset(accumulate(map(len, groups), initial=0))
    operations = parse_trace((folder / TRACE).read_bytes())
    return Run(str(root.resolve()), operations, [planned for group in groups for planned in group], ends)


def lose_power_once(run: Run, folder: Path, seed: int, within: slice = slice(None)) -> Finding:
    """Choose a point *within* the run, lose power there, and open what is left as kmd does after a crash."""
    rand = Random(seed)
    crash_at = rand.choice(range(len(run.operations))[within]) + 1
    folder.mkdir()
    for name, data in lose_power(run.root, run.operations[:crash_at], rand).items():
        (folder / name).write_bytes(data)
    finding = Finding(crash_at, run.last_mark("acknowledged", crash_at))
    with Outbox(folder / "outbox.db", LIMITS, check_first=True) as outbox:
        if list(folder.glob("*.damaged-*")):
            finding.faults.append("the file was damaged")
        examine(run, finding, outbox)
    return finding


def examine(run: Run, finding: Finding, outbox: Outbox) -> None:
    """Compare every row with the plan, every offset with the rows, every count with what went."""
    faults = finding.faults
    rows = outbox.read_events(0, len(run.planned) + 1)
    last_seq, deleted = outbox.last_seq, outbox.room.deleted_seq
    finding.lost = max(0, finding.acknowledged - last_seq)
    if last_seq not in run.ends:
        faults.append("half a group is there")
    if [row.seq for row in rows] != list(range(deleted + 1, last_seq + 1)):
        faults.append("an event is missing, or there twice")
    if not run.last_mark("removed", finding.crash_at) <= deleted <= run.next_mark("removed", finding.crash_at):
        faults.append(f"events are gone up to {deleted}, but no bound has removed them")
    faults += [f"event {row.seq} is not what was committed" for row in rows if not is_as_planned(run, row)]
    examine_counts(faults, outbox, rows, deleted)
    examine_offsets(run, faults, outbox)
    cursor = outbox.open_destination(DESTINATION).cursor
    if not run.last_mark("settled", finding.crash_at) <= cursor <= last_seq:
        faults.append(f"the cursor stands at {cursor}")


def is_as_planned(run: Run, row: Row) -> bool:
    """Byte-equal and of the right session; a payload may have been taken away by the size bound."""
    planned = run.planned[row.seq - 1]
    expected = planned.message
    if row.message.payload is None:
        expected = without_payload(expected)
    return row.message == expected and row.session.session == start_of(planned.session).session


def without_payload(message: Message) -> Message:
    fields = {name: getattr(message, name) for name in message.__struct_fields__}
    return Message(**{**fields, "payload": None})


def examine_counts(faults: list[str], outbox: Outbox, rows: list[Row], deleted: int) -> None:
    """What went is counted, and it was the oldest."""
    evicted = outbox.read_totals(0).evicted
    if sum(evicted.get(step, (0, 0))[0] for step in DELETED) != deleted:
        faults.append("the count of removed events is wrong")
    stripped = [row.message.payload is None for row in rows]
    if stripped != sorted(stripped, reverse=True):
        faults.append("a payload is missing in the middle")
    if sum(stripped) > evicted.get(Step.STRIP_SETTLED, (0, 0))[0]:
        faults.append("a payload is missing that nobody took away")


def examine_offsets(run: Run, faults: list[str], outbox: Outbox) -> None:
    """Each stream is durable exactly as far as its last event goes."""
    expected: dict[tuple[int, Stream], int] = {}
    for planned in run.planned[: outbox.last_seq]:
        expected[planned.session, planned.message.stream] = end_of(planned.message)
    for session in {planned.session for planned in run.planned}:
        durable = outbox.open_session(start_of(session)).durable
        wanted = {stream: end for (of, stream), end in expected.items() if of == session}
        if durable != wanted:
            faults.append(f"session {session} is durable up to {durable}, its events go to {wanted}")
