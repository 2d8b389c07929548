"""
The outbox against a model, with any sequence of what can happen to it: commits, resends, settling, refusals,
bounds, ends, and being closed and opened again in between.

The model is a few dictionaries. Whatever was done, the outbox must say the same as it does.
"""

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kmd.mcp.names import Stream
from kmd.mcp.row import SessionStart
from kmd.outbox.bounds import Limits, Step
from kmd.outbox.outbox import Intake, Outbox
from tests.daemon.rows import message

Identity = tuple[str, int, int]
DESTINATIONS = ("a", "b")
SESSIONS = [SessionStart(f"01890a5d-ac96-774b-bcce-{n:012d}", f"s{n}", "c", 1, 1) for n in range(3)]
PAYLOADS = st.binary(max_size=3000)


@dataclass
class Told:
    """What one destination has: its cursor, what it took, what it refused, ends of sessions."""

    cursor: int = 0
    settled: int = 0
    refused: dict[int, str] = field(default_factory=dict)
    ends_cursor: int = 0


class OutboxMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="km-model-"))
        self.outbox = self.open()
        self.events: list[tuple[Identity, bytes | None]] = []
        self.durable: dict[str, int] = {}
        self.ends: list[tuple[str, int]] = []
        self.deleted = 0
        self.told = {name: Told() for name in DESTINATIONS}
        self.clock = 0

    def open(self) -> Outbox:
        return Outbox(self.folder / "outbox.db", Limits(1 << 30))

    @initialize()
    def begin(self) -> None:
        for name in DESTINATIONS:
            self.outbox.open_destination(name)

    @rule(which=st.sampled_from(SESSIONS), payloads=st.lists(PAYLOADS, max_size=6), back=st.integers(0, 4))
    def commit(self, which: SessionStart, payloads: list[bytes], back: int) -> None:
        """
        New events, and some that came before: those that are kept do not change, whatever is said now.

        One that a bound has removed would come in again; intake passes over it, as its offset is durable.
        """
        known = {identity for identity, _ in self.events[self.deleted :]}
        start = self.durable.get(which.session, 0)
        offsets = range(max(0, start - back), start + len(payloads))
        bodies = [b"again"] * (len(offsets) - len(payloads)) + payloads
        messages = [message(offset, body) for offset, body in zip(offsets, bodies, strict=True)]
        session_id = self.outbox.open_session(which).session_id
        self.outbox.commit([Intake(session_id, messages, {Stream.TO_SERVER: start + len(payloads)})])
        for offset, body in zip(offsets, bodies, strict=True):
            identity = (which.session, offset, 0)
            if identity not in known:
                self.events.append((identity, body))
        self.durable[which.session] = start + len(payloads)
        self.ends = [end for end in self.ends if end[0] != which.session]

    @rule(which=st.sampled_from(SESSIONS))
    def end(self, which: SessionStart) -> None:
        self.clock += 1
        session_id = self.outbox.open_session(which).session_id
        self.outbox.commit([Intake(session_id, [], {}, ended_at_ns=self.clock)])
        self.ends = [end for end in self.ends if end[0] != which.session] + [(which.session, self.clock)]

    @rule(name=st.sampled_from(DESTINATIONS), limit=st.integers(1, 8), refused=st.sets(st.integers(0, 7), max_size=2))
    def settle(self, name: str, limit: int, refused: set[int]) -> None:
        told = self.told[name]
        seqs = [row.seq for row in self.outbox.read_events(told.cursor, limit)]
        if not seqs:
            return
        reasons = {seqs[place]: f"no {place}" for place in refused if place < len(seqs)}
        self.outbox.settle(name, seqs, reasons, 5)
        told.cursor = seqs[-1]
        told.settled += len(seqs) - len(reasons)
        told.refused |= reasons

    @rule(name=st.sampled_from(DESTINATIONS), limit=st.integers(1, 3))
    def tell_ends(self, name: str, limit: int) -> None:
        ends = self.outbox.read_ends(self.told[name].ends_cursor, limit)
        if ends:
            self.told[name].ends_cursor = ends[-1].end_seq
            self.outbox.settle_ends(name, ends[-1].end_seq, 5)

    @precondition(lambda self: any(told.refused for told in self.told.values()))
    @rule(delivered=st.booleans(), data=st.data())
    def leave_quarantine(self, delivered: bool, data: st.DataObject) -> None:  # noqa: FBT001
        name = data.draw(st.sampled_from([name for name, told in self.told.items() if told.refused]))
        seq = data.draw(st.sampled_from(sorted(self.told[name].refused)))
        assert self.outbox.quarantine.remove(name, seq, delivered=delivered) == 1
        del self.told[name].refused[seq]
        self.told[name].settled += delivered

    @rule(max_bytes=st.sampled_from([1, 60_000, 100_000]))
    def make_room(self, max_bytes: int) -> None:
        """One step at a bound: what it took is counted, and nothing that is waited for goes while anything else is."""
        settled = min(told.cursor for told in self.told.values())
        self.outbox.room.set_limits(Limits(max_bytes))
        before = dict(self.outbox.read_totals(settled).evicted)
        self.outbox.room.make_room(settled, 10**18)
        self.outbox.room.set_limits(Limits(1 << 30))
        for reason, (events, size) in self.outbox.read_totals(settled).evicted.items():
            went, went_bytes = events - before.get(reason, (0, 0))[0], size - before.get(reason, (0, 0))[1]
            self.forget(reason, settled, went, went_bytes)

    def forget(self, reason: str, settled: int, went: int, went_bytes: int) -> None:
        kept = range(self.deleted, len(self.events))
        if reason == Step.STRIP_SETTLED:
            whole = [place for place in kept if place < settled and self.events[place][1] is not None][:went]
            assert sum(len(self.events[place][1] or b"") for place in whole) == went_bytes
            for place in whole:
                self.events[place] = (self.events[place][0], None)
        elif went:
            gone = list(kept)[:went]
            assert sum(len(self.events[place][1] or b"") for place in gone) == went_bytes
            if reason == Step.DELETE_UNSETTLED:
                assert settled <= self.deleted
            else:
                assert gone[-1] < settled
            self.deleted += went

    @rule(is_checked=st.booleans())
    def reopen(self, is_checked: bool) -> None:  # noqa: FBT001
        self.outbox.__exit__(None, None, None)
        self.outbox = Outbox(self.folder / "outbox.db", Limits(1 << 30), check_first=is_checked)

    @invariant()
    def says_the_same(self) -> None:
        rows = self.outbox.read_events(0, 10_000)
        found = [((row.session.session, row.message.offset, row.message.index), row.message.payload) for row in rows]
        assert found == self.events[self.deleted :]
        assert [row.seq for row in rows] == list(range(self.deleted + 1, len(self.events) + 1))
        assert self.outbox.last_seq == len(self.events)
        assert self.outbox.room.deleted_seq == self.deleted
        assert [(end.start.session, end.ended_at_ns) for end in self.outbox.read_ends(0, 100)] == self.ends
        for name, told in self.told.items():
            row = self.outbox.read_destination(name)
            known = (row.cursor, row.settled, row.quarantined, row.ends_cursor)
            assert known == (told.cursor, told.settled, len(told.refused), told.ends_cursor)

    def teardown(self) -> None:
        self.outbox.__exit__(None, None, None)
        shutil.rmtree(self.folder)


TestOutboxModel = OutboxMachine.TestCase
TestOutboxModel.settings = settings(max_examples=20, stateful_step_count=20, deadline=None)
