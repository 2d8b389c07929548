"""The relay protocol against a real kmd: what is acknowledged is durable, and what is sent again is stored once."""

import signal
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from kmd.record import ACK, DATA, NO_STREAM, POSITION_MAX, WELCOME, render_head, render_offsets
from tests.support.processes import Running, ask, read_status, running_kmd, start_kmd, wait_for
from tests.support.raw_relay import RawRelay, connected, render_hello, session_name

NUMBERS = count(1)
LATELY_NS = 1_800_000_000_000_000_000
"""Not so long ago that the bound on age takes it."""
LINE = b'{"jsonrpc":"2.0","id":%d,"method":"ping"}\n'


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One kmd for the whole file; each test has a session of its own."""
    home = tmp_path_factory.mktemp("relay") / "home"
    with running_kmd(home) as kmd:
        yield home
        assert kmd.process.poll() is None
        assert "a connection failed" not in kmd.log.read_text()


@pytest.fixture
def session() -> str:
    return session_name(next(NUMBERS))


def events(home: Path, session: str) -> list[dict[str, Any]]:
    """What kmd has committed of *session*, in order of commit."""
    answers = ask(home, {"op": "tail", "limit": 10_000})
    return [answer["event"] for answer in answers if answer["event"]["session"] == session]


def live(home: Path, session: str) -> dict[str, Any] | None:
    return next((row for row in read_status(home)["sessions"] if row["session"] == session), None)


def test_a_new_session_is_welcomed_at_zero_and_shown_as_live(home: Path, session: str) -> None:
    with RawRelay(home) as relay:
        assert relay.hello(session, name=b"files") == (0, 0, 0)
        row = live(home, session)
        assert row is not None
        assert (row["name"], row["pid"]) == ("files", 77)
    wait_for(lambda: live(home, session) is None, "the session to leave")


def test_whole_lines_are_acknowledged_and_a_partial_one_is_not(home: Path, session: str) -> None:
    with connected(home, session) as relay:
        relay.data(0, 0, LINE % 1 + LINE % 2 + b'{"id":3')
        whole = len(LINE % 1) * 2
        assert relay.wait_acked(whole) == (whole, 0, 0)
        assert [event["offset"] for event in events(home, session)] == [0, len(LINE % 1)]
        relay.data(0, whole + 7, b',"method":"x"}\n')
        assert relay.wait_acked(whole + 22) == (whole + 22, 0, 0)


def test_what_is_acknowledged_was_committed_before(home: Path, session: str) -> None:
    with connected(home, session) as relay:
        for number in range(20):
            relay.data(1, number * len(LINE % 10), LINE % (10 + number))
            relay.wait_acked(0, (number + 1) * len(LINE % 10))
            assert len(events(home, session)) == number + 1


def test_a_relay_that_comes_back_is_told_what_is_durable_and_its_resend_is_stored_once(
    home: Path, session: str
) -> None:
    sent = b"".join(LINE % number for number in range(10, 30))
    with connected(home, session) as relay:
        relay.data(0, 0, sent[:500])
        relay.wait_acked(1)
    with RawRelay(home) as relay:
        durable = relay.hello(session)[0]
        assert 0 < durable <= 500
        assert sent[:durable].endswith(b"\n")
        relay.data(0, 0, sent[:300])
        relay.data(0, 300, sent[300:])
        relay.wait_acked(len(sent))
    found = events(home, session)
    assert [event["offset"] for event in found] == [number * len(LINE % 10) for number in range(20)]


@pytest.mark.parametrize("start", [0, 1, 50, 81, 82])
def test_a_resend_from_anywhere_below_is_stored_once(home: Path, session: str, start: int) -> None:
    sent = LINE % 1 + LINE % 2 + LINE % 3
    with connected(home, session) as relay:
        relay.data(0, 0, sent[:82])
        relay.wait_acked(82)
    with connected(home, session) as relay:
        relay.data(0, start, sent[start:])
        relay.wait_acked(len(sent))
    assert [event["rpc_id"] for event in events(home, session)] == ["1", "2", "3"]


def test_bye_is_answered_with_bye_when_everything_is_durable(home: Path, session: str) -> None:
    with connected(home, session) as relay:
        relay.data(0, 0, LINE % 1 + b"the last line has no newline")
        relay.data(1, 0, b'{"id":9,"result":{}}')
        relay.bye(closed_first=b"client")
        relay.wait_bye()
        assert [event["size_bytes"] for event in events(home, session)] == [len(LINE % 1) - 1, 28, 20]
        relay.wait_closed()
    wait_for(lambda: live(home, session) is None, "the session to leave")
    with RawRelay(home) as again:
        assert again.hello(session) == (len(LINE % 1) + 28, 20, 0)


def test_an_answer_that_overtakes_its_request_is_acknowledged_only_with_it(home: Path, session: str) -> None:
    with connected(home, session) as relay:
        relay.data(1, 0, b'{"id":1,"result":{}}\n', at_ns=2_000)
        relay.data(0, 0, LINE % 1, at_ns=1_000)
        relay.wait_acked(len(LINE % 1), 21)
    request, answer = events(home, session)
    assert (request["kind"], answer["method"], answer["took_ns"]) == ("request", "ping", 1_000)


def test_an_answer_without_a_request_is_stored_unpaired_after_a_moment(home: Path, session: str) -> None:
    with connected(home, session) as relay:
        relay.data(1, 0, b'{"id":1,"result":{}}\n')
        relay.wait_acked(0, 21)
    (answer,) = events(home, session)
    assert answer.get("method") is None


def test_a_request_from_before_a_reconnection_still_gets_its_answer(home: Path, session: str) -> None:
    with connected(home, session) as relay:
        relay.data(0, 0, LINE % 5, at_ns=1_000)
        relay.wait_acked(len(LINE % 5))
    with connected(home, session) as relay:
        relay.data(1, 0, b'{"id":5,"result":{}}\n', at_ns=4_000)
        relay.wait_acked(0, 21)
    assert events(home, session)[-1]["took_ns"] == 3_000


def test_a_request_from_long_before_kmd_was_killed_still_gets_its_answer(tmp_path: Path) -> None:
    home, session = tmp_path / "home", session_name(1)
    noise = (LINE % 1 + b'{"id":1,"method":"back"}\n', b'{"id":1,"result":{}}\n' * 2)
    kmd = start_kmd(home)
    with connected(home, session) as relay:
        relay.data(0, 0, LINE % 5, at_ns=LATELY_NS)
        start = len(LINE % 5)
        sizes = [len(noise[0]) * 1500, len(noise[1]) * 1500]
        for number in range(0, 1500, 100):
            for stream, begin in ((0, start), (1, 0)):
                relay.data(stream, begin + number * len(noise[stream]), noise[stream] * 100, at_ns=LATELY_NS + 1)
        relay.wait_acked(start + sizes[0], sizes[1])
        kmd.stop(signal.SIGKILL)
    with running_kmd(home), connected(home, session) as relay:
        assert relay.acked == (start + sizes[0], sizes[1], 0)
        relay.data(1, sizes[1], b'{"id":5,"result":{}}\n', at_ns=LATELY_NS + 3_000)
        relay.wait_acked(0, sizes[1] + 21)
        answered = ask(home, {"op": "tail", "limit": 1})[0]["event"]
        assert (answered["method"], answered["took_ns"]) == ("ping", 3_000)


def test_a_gap_is_counted_and_what_stands_around_it_is_whole(home: Path, session: str) -> None:
    before = read_status(home)["outbox"]["gap_bytes"]
    with connected(home, session) as relay:
        relay.data(0, 0, LINE % 1 + b'{"broken')
        relay.gap(0, len(LINE % 1) + 8, 100)
        relay.data(0, len(LINE % 1) + 108, b'rest"}\n' + LINE % 2)
        relay.bye(**{"length.0": b"%d" % (len(LINE % 1) + 108 + 7 + len(LINE % 2) + 50)})
        relay.wait_bye()
    assert [event["rpc_id"] for event in events(home, session)] == ["1", "2"]
    assert read_status(home)["outbox"]["gap_bytes"] - before == 8 + 100 + 7 + 50


def test_a_gap_with_a_reconnection_in_the_broken_line_is_counted_once(home: Path, session: str) -> None:
    before = read_status(home)["outbox"]["gap_bytes"]
    with connected(home, session) as relay:
        relay.data(0, 0, b'{"broken')
        relay.gap(0, 8, 100)
        relay.data(0, 108, b"more of it")
        relay.wait_acked(1)
    with connected(home, session) as relay:
        relay.data(0, 108, b'more of it"}\n' + LINE % 2)
        relay.wait_acked(108 + 13 + len(LINE % 2))
    assert [event["rpc_id"] for event in events(home, session)] == ["2"]
    assert read_status(home)["outbox"]["gap_bytes"] - before == 108 + 13


def test_a_second_connection_of_a_session_waits_until_the_first_has_ended(home: Path, session: str) -> None:
    with RawRelay(home) as second:
        with connected(home, session) as first:
            first.data(0, 0, LINE % 1)
            second.send(render_hello(session))
            first.wait_acked(len(LINE % 1))
        record = second.receive()
        assert record is not None
        assert record.type == WELCOME
        assert record.body == render_offsets(WELCOME, (len(LINE % 1), 0, 0))[-24:]


def test_records_cut_at_every_byte_are_taken_in(home: Path, session: str) -> None:
    with connected(home, session) as relay:
        record = render_head(DATA, 0, 0, 5, LINE % 1) + LINE % 1
        for at in range(len(record)):
            relay.send(record[at : at + 1])
        relay.wait_acked(len(LINE % 1))


BAD_HELLOS: dict[str, bytes] = {
    "no fields": render_head(1, NO_STREAM, 0, 0, b""),
    "another protocol": render_hello(session_name(900), protocol=b"99"),
    "a protocol that is no number": render_hello(session_name(900), protocol=b"one"),
    "a session that is no id": render_hello("../../etc/passwd"),
    "a session that is no text": render_hello(session_name(900), session=b"\xff" * 36),
    "a negative pid": render_hello(session_name(900), pid=b"-1"),
    "a huge pid": render_hello(session_name(900), pid=b"9" * 5000),
    "a start beyond time": render_hello(session_name(900), started_at_ns=b"%d" % 2**63),
    "data first": render_head(DATA, 0, 0, 0, b"x\n") + b"x\n",
    "an ack first": render_offsets(ACK, (0, 0, 0)),
    "a flipped bit": render_hello(session_name(900))[:-1] + b"\x00",
    "text": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "zeros": bytes(4096),
    "ones": b"\xff" * 4096,
    "a body over the bound": b"\x01\xff\x00\x00\xff\xff\xff\xff" + bytes(20),
}


@pytest.mark.parametrize("name", BAD_HELLOS)
def test_a_hello_that_is_none_is_refused(home: Path, name: str) -> None:
    with RawRelay(home) as relay:
        relay.send(BAD_HELLOS[name])
        assert relay.receive() is None


BAD_RECORDS: dict[str, bytes] = {
    "a second hello": render_hello(session_name(901)),
    "an ack": render_offsets(ACK, (1, 1, 1)),
    "an unknown stream": render_head(DATA, 3, 0, 0, b"x\n") + b"x\n",
    "no stream": render_head(DATA, NO_STREAM, 0, 0, b"x\n") + b"x\n",
    "an offset beyond any stream": render_head(DATA, 0, 2**64 - 2, 0, b"x\n") + b"x\n",
    "a time beyond any clock": render_head(DATA, 0, 0, 2**64 - 1, b"x\n") + b"x\n",
    "a gap beyond any stream": render_head(3, 0, 0, 0, b"\xff" * 8) + b"\xff" * 8,
    "a gap without a length": render_head(3, 0, 0, 0, b""),
    "a bye with nonsense": render_head(4, NO_STREAM, 0, 0, b"length.0=many") + b"length.0=many",
    "a bye without names": render_head(4, NO_STREAM, 0, 0, b"=\0=") + b"=\0=",
    "garbage": b"\x99" * 100,
}


@pytest.mark.parametrize("name", BAD_RECORDS)
def test_nonsense_after_hello_ends_the_connection_and_what_was_acknowledged_stays(
    home: Path, session: str, name: str
) -> None:
    with connected(home, session) as relay:
        relay.data(0, 0, LINE % 1)
        relay.wait_acked(len(LINE % 1))
        relay.send(BAD_RECORDS[name])
        relay.wait_closed()
    with RawRelay(home) as relay:
        assert relay.hello(session) == (len(LINE % 1), 0, 0)
    assert len(events(home, session)) == 1


STRANGE: dict[str, bytes] = {
    "the last offset": render_head(DATA, 0, POSITION_MAX, 0, b"x\ny\n") + b"x\ny\n",
    "the longest gap": render_head(3, 1, POSITION_MAX, 0, POSITION_MAX.to_bytes(8, "little"))
    + POSITION_MAX.to_bytes(8, "little"),
    "an answer on stderr": render_head(DATA, 2, 0, 0, b'{"id":1,"result":{}}\n') + b'{"id":1,"result":{}}\n',
    "a bye of unlikely length": render_head(4, NO_STREAM, 0, 0, b"length.0=%d" % 10**30) + b"length.0=%d" % 10**30,
    "a bye of negative length": render_head(4, NO_STREAM, 0, 0, b"length.0=-5") + b"length.0=-5",
    "a bye from beyond": render_head(4, NO_STREAM, 0, 2**63 - 1, b"closed_first=" + b"\xff" * 99)
    + b"closed_first="
    + b"\xff" * 99,
}


@pytest.mark.parametrize("name", STRANGE)
def test_strange_but_well_formed_records_stop_nothing(home: Path, session: str, name: str) -> None:
    with connected(home, session) as relay:
        relay.send(STRANGE[name])
    other = session_name(next(NUMBERS))
    with connected(home, other) as relay:
        relay.data(0, 0, LINE % 1)
        relay.wait_acked(len(LINE % 1))
    assert read_status(home)["outbox"]["last_error"] is None


def test_impossible_gaps_of_many_sessions_leave_the_status_whole(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with running_kmd(home):
        for number in range(5):
            with connected(home, session_name(number)) as relay:
                relay.gap(1, POSITION_MAX, POSITION_MAX)
                relay.bye()
                relay.wait_bye()
        assert read_status(home)["outbox"]["gap_bytes"] == (1 << 63) - 1


@pytest.mark.parametrize("action", ["show", "drop"])
@pytest.mark.parametrize("seq", [-1, 1 << 63, 10**30])
def test_a_number_that_no_event_has_is_answered(home: Path, action: str, seq: int) -> None:
    answers = ask(home, {"op": "quarantine", "action": action, "seq": seq})
    assert "no refused event" in answers[-1]["error"]["message"]


def restart_killed(kmd: Running, home: Path) -> Running:
    kmd.stop(signal.SIGKILL)
    return start_kmd(home)


def test_what_was_acknowledged_survives_kill_9_and_the_rest_comes_again(tmp_path: Path) -> None:
    home, session = tmp_path / "home", session_name(1)
    sent = b"".join(LINE % number for number in range(100, 400))
    kmd = start_kmd(home)
    for stop in (700, 3000, 9000):
        with connected(home, session) as relay:
            start = relay.acked[0]
            relay.data(0, start, sent[start:stop])
            acked = relay.wait_acked(start + 1)[0]
            kmd = restart_killed(kmd, home)
        with RawRelay(home) as relay:
            assert relay.hello(session)[0] >= acked
        assert [event["offset"] for event in events(home, session)] == list(
            range(0, len(events(home, session)) * 43, 43)
        )
    with connected(home, session) as relay:
        relay.data(0, relay.acked[0], sent[relay.acked[0] :])
        relay.wait_acked(len(sent))
    assert [event["rpc_id"] for event in events(home, session)] == [str(number) for number in range(100, 400)]
    kmd.stop()
