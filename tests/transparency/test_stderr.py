"""`km --stderr`: the server's stderr is captured, and reaches the client as promptly, in order and whole as bare."""

from pathlib import Path

import pytest

from kmd.mcp.names import Stream
from kmd.outbox.outbox import Outbox
from tests.support.processes import read_status, running_kmd, wait_for
from tests.transparency.scenarios import SCENARIOS
from tests.transparency.stage import Stage, bare, km_stderr, observe
from tests.transparency.test_away import behind

NAMES = (
    "bytes_come_back[line_of_1_mib]", "errors_stay_apart_from_output", "errors_end_with_the_server",
    "errors_go_where_output_goes",
    "errors_end_before_the_server_does", "exit_code[seven]", "dies_by_itself[SEGV]", "last_words_arrive_whole[code]",
    "client_signals_the_process[TERM]", "client_is_killed[reader]", "client_is_killed[flood]",
    "server_closes_both_and_lives_on", "launcher_leaves_the_server_on_the_pipes", "grandchild_writes_after_the_server",
    "client_stops_reading_while_the_server_is_idle[gets_epipe]", "descriptors_seen_by_a_plain_program",
    "process_state[as_it_is]", "closed_from_the_start[stderr]", "closed_from_the_start[all_three]",
    "ends_that_do_not_block[both]", "stdin_is_dev_null", "kernel_view[all_blocked]", "environment[no_lang]",
    "limits_that_are_ours_too[few_descriptors]",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_it_is_as_transparent_but_for_the_file_itself(name: str, tmp_path: Path) -> None:
    act = SCENARIOS[name].act
    wrapped, plain = observe(act, km_stderr, tmp_path), observe(act, bare, tmp_path)
    for record in (wrapped, plain):
        if "stderr" in record.get("about", {}):
            record["about"].pop("stderr")  # whether it is the very file
    assert wrapped == plain


def stage(folder: Path, home: Path) -> Stage:
    place = folder / "stage"
    place.mkdir()
    return Stage(place, behind(home, km_stderr))


def test_each_word_arrives_at_once(tmp_path: Path) -> None:
    """While the server lives and says nothing more."""
    with stage(tmp_path, tmp_path / "home") as place:
        client = place.probe("chatter")
        for line in (b"one\n", b"three\n"):
            client.send(line)
            assert client.receive_note() == b"got %d\n" % (len(line) - 1)
            assert client.receive(len(line)) == line
        assert client.finish() == {"output": b"", "errors": b"", "status": 0}
        assert place.left() == []


def test_any_bytes_cross_and_are_captured(tmp_path: Path) -> None:
    home, size = tmp_path / "home", 3_000_000
    with running_kmd(home), stage(tmp_path, home) as place:
        client = place.probe("noise", size)
        errors = client.receive_errors(size)
        assert client.receive_line() == b"all out\n"
        assert client.finish(b"bye\n")["output"] == b"bye\n"
        assert errors == (bytes(range(256)) * (size // 256 + 1))[:size]
        lines = errors.split(b"\n")
        wait_for(lambda: read_status(home)["outbox"]["events"] == len(lines) + 3, "every line")
    with Outbox(home / "outbox.db") as outbox:
        rows = [row.message for row in outbox.read_events(0, 1_000_000)]
    assert [row.payload for row in rows if row.stream is Stream.STDERR] == lines
    assert [row.payload for row in rows if row.stream is Stream.TO_CLIENT] == [b"all out", b"bye"]


def test_a_client_that_does_not_read_its_errors_stops_the_server(tmp_path: Path) -> None:
    with stage(tmp_path, tmp_path / "home") as place:
        client = place.probe("noise", 8 << 20)
        assert not client.poll_output(300)
        assert len(client.receive_errors(8 << 20)) == 8 << 20
        assert client.receive_line() == b"all out\n"
        client.finish()


def test_a_client_that_lets_its_errors_go_is_noticed(tmp_path: Path) -> None:
    """While the server is idle; at its next word it gets SIGPIPE, as bare."""

    def act(place: Stage) -> dict[str, object]:
        client = place.probe("notice_errors_gone")
        client.receive_line()
        client.close_errors()
        return {**client.finish()}

    assert observe(act, km_stderr, tmp_path) == observe(act, bare, tmp_path)


def test_a_command_that_is_not_there_says_so(tmp_path: Path) -> None:
    with stage(tmp_path, tmp_path / "home") as place:
        record = place.start(["no-such-server"]).finish()
    assert record["status"] == 127
    assert record["errors"].startswith(b"km: command not found")


def test_errors_to_a_file_are_appended_whole(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"before\n")
    with stage(tmp_path, tmp_path / "home") as place:
        with log.open("ab") as file:
            client = place.probe("chatter", stderr=file)
        client.finish(b"one\n")
        assert place.left() == []
    assert log.read_bytes() == b"before\ngot 3\n"
