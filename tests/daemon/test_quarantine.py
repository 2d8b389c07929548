"""Refused events: kept whole whatever becomes of the outbox, sent again on demand, gone only when a person says so."""

import json
from pathlib import Path
from typing import Any

import pysqlite3
import pytest
from sqlite_utils import Database

from kmd.mcp.names import Stream
from kmd.outbox.bounds import Limits
from kmd.outbox.database import connect, migrate, migrations
from kmd.outbox.outbox import Intake, Outbox
from kmd.outbox.quarantine import CROWDED_OUT, DROPPED
from tests.daemon.rows import START, full_message, message
from tests.support.misbehaving import Act, Misbehaving, Request, Script, misbehaving, poison, render_answer, say
from tests.support.processes import ask, read_status, running_kmd, wait_for, write_config
from tests.support.raw_relay import connected, session_name

BAD = b'{"jsonrpc":"2.0","method":"bad","params":"\x1b[2J\xc3\xa4"}\n'
GOOD = b'{"jsonrpc":"2.0","method":"good"}\n'


def fill(outbox: Outbox, count: int, size: int = 100) -> None:
    session_id = outbox.open_session(START).session_id
    messages = [message(offset, b"%06d" % offset + b"x" * size) for offset in range(count)]
    outbox.commit([Intake(session_id, messages, {Stream.TO_SERVER: count})])
    outbox.open_destination("team")


def test_a_refused_event_outlives_the_event(tmp_path: Path) -> None:
    with Outbox(tmp_path / "outbox.db") as outbox:
        session_id = outbox.open_session(START).session_id
        outbox.commit([Intake(session_id, [full_message(7), message(9)], {})])
        outbox.open_destination("team")
        (row, _) = outbox.read_events(0, 2)
        outbox.settle("team", [1, 2], {1: "no"}, 5)
        outbox.room.set_limits(Limits(max_bytes=1 << 50, max_age_ns=1))
        assert outbox.room.make_room(2, 2**62 + 10)
        assert outbox.read_events(0, 2) == []
        (entry,) = outbox.quarantine.find(None, 1)
        assert (entry.destination, entry.seq, entry.reason, entry.refused_at_ns) == ("team", 1, "no", 5)
        assert entry.row == row
    with Outbox(tmp_path / "outbox.db") as outbox:
        assert outbox.quarantine.find("team", 1) == [entry]
        assert outbox.open_destination("team").quarantined == 1


def test_the_list_is_in_order_page_by_page_and_without_payloads(tmp_path: Path) -> None:
    with Outbox(tmp_path / "outbox.db") as outbox:
        fill(outbox, 9)
        outbox.open_destination("other")
        outbox.settle("team", list(range(1, 10)), dict.fromkeys(range(1, 10), "no"), 5)
        outbox.settle("other", [1, 2, 3], {3: "never"}, 6)
        assert outbox.quarantine.counts == {"other": 1, "team": 9}
        seen, after = [], ("", 0)
        while page := outbox.quarantine.read(None, after, 4):
            seen += [(entry.destination, entry.seq) for entry in page]
            assert all(entry.row is not None and entry.row.message.payload is None for entry in page)
            after = seen[-1]
        assert seen == [("other", 3), *(("team", seq) for seq in range(1, 10))]
        assert [entry.seq for entry in outbox.quarantine.read("team", ("", 0), 100)] == list(range(1, 10))
        assert [entry.destination for entry in outbox.quarantine.find(None, 3)] == ["other", "team"]


def test_an_event_that_a_bound_took_first_leaves_a_note(tmp_path: Path) -> None:
    with Outbox(tmp_path / "outbox.db") as outbox:
        fill(outbox, 1)
        outbox.settle("team", [1, 99], {99: "late"}, 5)
        (entry,) = outbox.quarantine.read(None, ("", 0), 10)
        assert (entry.seq, entry.reason, entry.row) == (99, "late", None)


@pytest.mark.parametrize(("delivered", "settled"), [(True, 3), (False, 2)])
def test_what_is_removed_is_counted_as_settled_or_dropped(tmp_path: Path, *, delivered: bool, settled: int) -> None:
    with Outbox(tmp_path / "outbox.db") as outbox:
        fill(outbox, 3, size=100)
        outbox.settle("team", [1, 2, 3], {2: "no"}, 5)
        assert outbox.quarantine.remove("team", 2, delivered=delivered) == 1
        assert outbox.quarantine.remove("team", 2, delivered=delivered) == 0
        assert outbox.read_destination("team").settled == settled
        assert outbox.quarantine.counts == {}
        assert outbox.read_totals(0).evicted == ({} if delivered else {DROPPED: (1, 106)})
        assert len(outbox.read_events(0, 10)) == 3


def test_the_quarantine_keeps_to_its_share_and_the_oldest_go_first_counted(tmp_path: Path) -> None:
    with Outbox(tmp_path / "outbox.db", Limits(max_bytes=400_000)) as outbox:
        fill(outbox, 20, size=9_482)  # with what an entry takes itself: 10,000
        for seq in range(1, 21):
            outbox.settle("team", [seq], {seq: "no"}, seq)
        assert [entry.seq for entry in outbox.quarantine.read(None, ("", 0), 99)] == list(range(11, 21))
        assert outbox.quarantine.counts == {"team": 10}
        assert outbox.read_totals(0).evicted == {CROWDED_OUT: (10, 94_880)}


def test_notes_of_an_earlier_version_are_filled_in_from_the_events(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    path.touch()
    old = connect(path)
    database = Database(old, execute_plugins=False)
    migrations.apply(database, stop_before="m0003_quarantine")
    old.execute("PRAGMA application_id = 0x4B4D4F42")
    old.execute("INSERT INTO sessions VALUES (1, 's', 'files', 'server', 1, 2, NULL, NULL, 0)")
    old.execute(
        "INSERT INTO events (seq, session_id, stream, offset, idx, at_ns, kind, size_bytes, payload)"
        " VALUES (4, 1, 'to_server', 5, 0, 6, 'request', 2, x'7b7d')"
    )
    old.execute("INSERT INTO quarantine VALUES ('team', 4, 'no', 9), ('team', 3, 'gone', 8)")
    migrate(old, path)
    old.close()
    with Outbox(path) as outbox:
        gone, kept = outbox.quarantine.read(None, ("", 0), 10)
        assert (gone.seq, gone.reason, gone.row) == (3, "gone", None)
        assert (kept.seq, kept.reason, kept.refused_at_ns) == (4, "no", 9)
        (kept,) = outbox.quarantine.find("team", 4)
        assert kept.row == outbox.read_events(0, 1)[0]


def test_a_repair_carries_the_quarantine_over_under_the_new_numbers(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    with Outbox(path) as outbox:
        fill(outbox, 600)
        outbox.settle("team", list(range(1, 601)), {1: "a", 300: "b", 400: "c"}, 5)
        before = outbox.quarantine.find("team", 400)[0].row
    raw = pysqlite3.connect(str(path))
    raw.execute("DELETE FROM events WHERE seq < 10 OR seq = 300")
    raw.commit()
    raw.close()
    data = bytearray(path.read_bytes())
    data[68:72] = bytes(4)  # the application's mark: enough to have the whole file carried over
    path.write_bytes(data)
    with Outbox(path) as outbox:
        assert list(tmp_path.glob("outbox.db.damaged-*"))
        entries = outbox.quarantine.read(None, ("", 0), 10)
        assert [(entry.seq, entry.reason) for entry in entries] == [(-2, "b"), (-1, "a"), (390, "c")]
        after = outbox.quarantine.find("team", 390)[0].row
        assert after is not None
        assert before is not None
        assert after.message == before.message == outbox.read_events(389, 1)[0].message
        assert outbox.quarantine.find("team", -1)[0].row is not None


def refuse(server: Misbehaving, reason: str) -> Script:
    """Reject each event that says "bad" by verdict; take the others."""

    def script(request: Request) -> Act:
        receipt = json.loads(server.commit(request))
        for event, verdict in zip(request.batch["events"], receipt["verdicts"], strict=True):
            if '"bad"' in event["payload"]:
                verdict |= {"status": "rejected", "reason": reason}
                server.stored.pop((event["session"], event["stream"], event["offset"], event.get("index", 0)), None)
        return Act(render_answer(200, json.dumps(receipt).encode()))

    return script


def send_lines(home: Path, *lines: bytes) -> None:
    with connected(home, session_name(1)) as relay:
        relay.data(0, 0, b"".join(lines))
        relay.wait_acked(len(b"".join(lines)))


def quarantine(home: Path, action: str, **fields: object) -> list[dict[str, Any]]:
    return ask(home, {"op": "quarantine", "action": action, **fields})


def quarantined(home: Path) -> int:
    count: int = read_status(home)["destinations"][0]["quarantined"]
    return count


def test_list_show_retry_and_drop_against_a_server_that_changes_its_mind(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with misbehaving() as server:
        server.script = refuse(server, "not today")
        write_config(home, ("team", server.url, ""))
        with running_kmd(home):
            send_lines(home, BAD, GOOD, BAD, GOOD, BAD)
            wait_for(lambda: quarantined(home) == 3, "three refusals")
            listed = [line["refused"] for line in quarantine(home, "list")]
            assert [(one["destination"], one["seq"], one["reason"]) for one in listed] == [
                ("team", seq, "not today") for seq in (1, 3, 5)
            ]
            assert all("payload" not in one["event"] and one["server"] == "raw" for one in listed)
            ((shown,)) = [line["refused"] for line in quarantine(home, "show", seq=3)]
            assert shown["event"]["payload"].encode() == BAD[:-1]

            again, done = quarantine(home, "retry", seq=1)
            assert again["retried"] == {
                "destination": "team", "seq": 1, "delivered": False, "error": "not today", "hint": None,
            }  # fmt: skip
            assert (done["delivered"], done["kept"], quarantined(home)) == (0, 1, 3)

            server.script = server.behave
            *_, done = quarantine(home, "retry", seq=1, destination="team")
            assert (done["delivered"], done["kept"], quarantined(home)) == (1, 0, 2)
            settled = read_status(home)["destinations"][0]["settled"]
            assert (settled, len(server.stored)) == (3, 3)
            assert quarantine(home, "drop", seq=3) == [{"done": True, "dropped": 1}]
            *_, done = quarantine(home, "retry", all=True)
            assert (done["delivered"], done["kept"], quarantined(home)) == (1, 0, 0)
            status = read_status(home)
            assert status["destinations"][0]["settled"] == 4
            assert status["outbox"]["evicted"] == {DROPPED: {"events": 1, "bytes": len(BAD) - 1}}
            payloads = sorted(event["payload"].encode() + b"\n" for event in server.stored.values())
            assert payloads == [BAD, BAD, GOOD, GOOD]


@pytest.mark.parametrize(
    ("answer", "error"), [(say(503), "503"), (say(401), "key was refused"), (say(422), "422"), (say(415), "415")]
)
def test_a_retry_that_fails_says_why_and_keeps_the_event(tmp_path: Path, answer: Script, error: str) -> None:
    home = tmp_path / "home"
    with misbehaving() as server:
        server.script = poison(server, {0, len(BAD)}, 422)
        write_config(home, ("team", server.url, ""))
        with running_kmd(home):
            send_lines(home, BAD, BAD, GOOD)
            wait_for(lambda: quarantined(home) == 2, "two refusals")
            server.script = answer
            *retried, done = quarantine(home, "retry", all=True)
            assert error in retried[0]["retried"]["error"]
            assert (done["delivered"], done["kept"], quarantined(home)) == (0, 2, 2)
            assert len(retried) == (2 if error == "422" else 1)
        write_config(home)
        with running_kmd(home):
            (first, *_) = quarantine(home, "retry", all=True)
            assert "no such destination" in first["retried"]["error"]
            assert len(quarantine(home, "list")) == 2


@pytest.mark.parametrize(
    "request_fields",
    [{"action": "show", "seq": 9}, {"action": "show"}, {"action": "retry"}, {"action": "drop"}, {"action": "dance"},
     {"action": "retry", "seq": 9}, {"action": "drop", "seq": 9, "destination": "team"}],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_meant_is_an_error_with_a_hint(tmp_path: Path, request_fields: dict[str, object]) -> None:
    with running_kmd(tmp_path):
        (line,) = ask(tmp_path, {"op": "quarantine", **request_fields})
        assert line["error"]["hint"]
