"""`km --strict`: what has crossed is on disk, whatever is killed and should the power fail; what cannot be does not."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from kmd.mcp.names import Stream
from kmd.outbox.outbox import Outbox
from kmd.record import DATA, STREAMS, TO_CLIENT, TO_SERVER, RecordReader
from tests.support.powerloss import Kind, lose_power, parse_trace
from tests.support.powerloss_library import FAULTS, MARKS, TRACE, build_library, watch
from tests.support.processes import quick_km, read_status, running_kmd, start_kmd, wait_for
from tests.transparency.client import WAIT_S, Client
from tests.transparency.scenarios import SCENARIOS
from tests.transparency.stage import Stage, bare, km_strict, observe
from tests.transparency.test_away import LEAVES_S, behind

NAMES = (
    "bytes_come_back[random_3_mib]", "bytes_come_back[line]", "bytes_come_back[nothing]",
    "partial_line_is_not_held_back", "both_write_before_either_reads", "errors_stay_apart_from_output",
    "stderr_is_the_very_file", "errors_end_with_the_server", "exit_code[seven]", "dies_by_itself[SEGV]",
    "last_words_arrive_whole[code]", "client_signals_the_process[TERM]", "client_is_killed[reader]",
    "client_is_killed[flood]", "server_closes_stdin_and_goes_on", "launcher_leaves_the_server_on_the_pipes",
    "client_stops_reading_while_the_server_is_idle[dies_of_sigpipe]", "descriptors_seen_by_a_plain_program",
    "process_state[as_it_is]", "stdin_is_dev_null", "sockets_instead_of_pipes", "closed_from_the_start[stderr]",
)  # fmt: skip
KILLS = 12
LOSSES = 60
DISK_BYTES = 1 << 20


@pytest.mark.parametrize("name", NAMES)
def test_it_is_as_transparent(name: str, tmp_path: Path) -> None:
    act = SCENARIOS[name].act
    assert observe(act, km_strict, tmp_path) == observe(act, bare, tmp_path)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    place = tmp_path / "stage"
    place.mkdir()
    with Stage(place, behind(tmp_path / "home", km_strict)) as stage:
        yield stage


def recorded(spool: bytes) -> list[bytes]:
    """Per stream the bytes in a spool file, which must follow on one another."""
    reader = RecordReader(salvage=True)
    reader.trusts_bodies = False
    streams = [b""] * STREAMS
    for record in [*reader.feed(spool), *reader.finish()]:
        if record.type == DATA:
            assert record.offset == len(streams[record.stream])
            streams[record.stream] += record.body
    return streams


def read_spool(home: Path) -> list[bytes]:
    (path,) = (home / "spool").iterdir()
    return recorded(path.read_bytes())


def relays_of(stage: Stage, client: Client) -> list[int]:
    return [pid for pid in stage.running() if pid != client.process.pid]


@pytest.mark.parametrize("seed", range(KILLS))
def test_everything_killed_at_once_leaves_every_byte_that_crossed(seed: int, stage: Stage, tmp_path: Path) -> None:
    rand = Random(seed)
    client = stage.probe("echo")
    got, sent = b"", b""
    for _ in range(rand.randrange(1, 40)):
        piece = rand.randbytes(rand.choice((1, 100, 5000, 70_000)))
        sent += piece
        client.send(piece)
        if rand.random() < 0.8:
            got += client.receive(len(sent) - len(got))
    for pid in [*relays_of(stage, client), client.process.pid]:
        os.kill(pid, signal.SIGKILL)
    got += client.receive_rest()
    to_server, to_client, _ = read_spool(tmp_path / "home")
    assert sent.startswith(to_server)
    assert to_server.startswith(to_client)
    assert to_client.startswith(got)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_library(tmp_path_factory.mktemp("library"))


def test_power_loss_takes_nothing_that_the_server_has_got(library: Path, stage: Stage, tmp_path: Path) -> None:
    """The server notes how much has come, in the same trace; at each note the disk must have as much."""
    home, folder = tmp_path / "home", tmp_path / "trace"
    spool = home / "spool"
    spool.mkdir(parents=True)
    environ = {**stage.environ, **watch(library, spool, folder)}
    (folder / MARKS).touch()
    client = stage.probe("mark", folder / MARKS, env=environ)
    rand, sent = Random(7), b""
    for _ in range(LOSSES):
        piece = rand.randbytes(rand.choice((1, 300, 5000)))
        sent += piece
        client.send(piece)
        assert client.receive(len(piece)) == piece, client.receive_errors(5000)
    client.finish()
    assert stage.left(LEAVES_S) == []
    operations = parse_trace((folder / TRACE).read_bytes())
    notes = [at for at, operation in enumerate(operations) if operation.kind is Kind.MARK]
    assert len(notes) >= LOSSES
    for at in notes:
        came = int(operations[at].data)
        for seed in range(3):
            (file,) = lose_power(str(spool.resolve()), operations[:at], Random(seed)).values()
            assert recorded(file)[TO_SERVER][:came] == sent[:came]


@pytest.mark.parametrize("fault", ["fsync-eio", "write-enospc"])
def test_what_cannot_be_recorded_does_not_cross(fault: str, library: Path, stage: Stage, tmp_path: Path) -> None:
    home, folder = tmp_path / "home", tmp_path / "trace"
    home.mkdir()
    environ = {**stage.environ, **watch(library, home, folder, is_traced=False)}
    client = stage.probe("echo", env=environ)
    client.send(b"before")
    assert client.receive(6) == b"before"
    (folder / FAULTS / fault).touch()
    client.send(b"after")
    record = client.finish()
    assert record["output"] == b""
    assert record["status"] == 0  # echo ends with its input
    assert_says_why(record["errors"], home)
    assert read_spool(home)[:2] == [b"before", b"before"]
    assert stage.left() == []


def assert_says_why(errors: bytes, home: Path) -> None:
    assert errors.startswith(b"km: --strict: cannot record in " + bytes(home / "spool") + b" (")
    assert errors.count(b"\n") == 1


def test_an_answer_that_cannot_be_recorded_does_not_cross(library: Path, stage: Stage, tmp_path: Path) -> None:
    """The server's word, while the client says nothing."""
    home, folder = tmp_path / "home", tmp_path / "trace"
    home.mkdir()
    environ = {**stage.environ, **watch(library, home, folder, is_traced=False)}
    client = stage.probe("obey", "USR1", env=environ)
    assert client.receive_line() == b"ready\n"
    (folder / FAULTS / "fsync-eio").touch()
    client.process.send_signal(signal.SIGUSR1)
    assert client.receive_rest() == b""
    assert client.sees_gone(client.input)
    record = client.finish()
    assert_says_why(record["errors"], home)
    assert read_spool(home)[TO_CLIENT] == b"ready\n"


def test_a_disk_that_fills_up_ends_the_session_and_keeps_what_crossed(stage: Stage, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may mount a tmpfs")
    home = tmp_path / "home"
    home.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0700", "tmpfs", str(home)]
    mounted = subprocess.run(words, capture_output=True, text=True, timeout=WAIT_S)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        client = stage.probe("echo")
        sent = Random(1).randbytes(2 * DISK_BYTES)
        got = client.exchange(sent)
        assert_says_why(client.receive_note(), home)
        client.finish()
        to_server, to_client, _ = read_spool(home)
        assert 0 < len(got) < len(to_server) < DISK_BYTES
        assert sent.startswith(to_server)
        assert to_server.startswith(to_client)
        assert to_client.startswith(got)
        assert stage.left() == []
    finally:
        subprocess.run(["umount", "--lazy", str(home)], check=True, timeout=WAIT_S)


@pytest.mark.parametrize("how", ["home_is_a_file", "spool_is_a_file"])
def test_where_nothing_can_be_recorded_no_server_starts(how: str, tmp_path: Path) -> None:
    home, started = tmp_path / "home", tmp_path / "started"
    if how == "home_is_a_file":
        home.write_text("")
    else:
        home.mkdir()
        (home / "spool").write_text("")
    words = km_strict(home, ["/bin/sh", "-c", f"touch {started}"])
    done = subprocess.run(words, input=b"", capture_output=True, timeout=WAIT_S)
    assert (done.returncode, done.stdout, started.exists()) == (125, b"", False)
    assert_says_why(done.stderr, home)


def test_where_there_is_nothing_to_record_from_no_server_starts(tmp_path: Path) -> None:
    words = ["/bin/sh", "-c", 'exec "$@" <&-', "sh", *km_strict(tmp_path / "home", ["/bin/echo", "started"])]
    done = subprocess.run(words, capture_output=True, timeout=WAIT_S)
    assert (done.returncode, done.stdout) == (125, b"")
    assert done.stderr.startswith(b"km: --strict: ")


def events(home: Path) -> dict[Stream, list[bytes | None]]:
    with Outbox(home / "outbox.db") as outbox:
        rows = [row.message for row in outbox.read_events(0, 1_000_000)]
    return {stream: [row.payload for row in rows if row.stream is stream] for stream in Stream}


def test_kmd_has_each_line_once_and_the_spool_goes(stage: Stage, tmp_path: Path) -> None:
    home, lines = tmp_path / "home", [b'{"n":%d}' % number for number in range(500)]
    kmd = start_kmd(home)
    client = stage.probe("echo")
    for number, line in enumerate(lines):
        client.send(line + b"\n")
        assert client.receive(len(line) + 1) == line + b"\n"
        if number in (100, 300):  # kmd is away for a while
            kmd.stop(signal.SIGKILL)
        if number in (200, 400):
            kmd = start_kmd(home)
    client.finish()
    assert stage.left(LEAVES_S) == []
    try:
        wait_for(lambda: read_status(home)["outbox"]["events"] >= 2 * len(lines), "every line")
        assert read_status(home)["outbox"]["gap_bytes"] == 0
        assert list((home / "spool").iterdir()) == []
    finally:
        kmd.stop()
    assert events(home) == {Stream.TO_SERVER: lines, Stream.TO_CLIENT: lines, Stream.STDERR: []}


def test_a_kmd_that_comes_later_takes_everything_in(stage: Stage, tmp_path: Path) -> None:
    home = tmp_path / "home"
    stage.probe("echo").finish(b"one\ntwo\n")
    assert stage.left(LEAVES_S) == []
    with running_kmd(home):
        wait_for(lambda: read_status(home)["outbox"]["events"] == 4, "the lines")
        wait_for(lambda: not list((home / "spool").iterdir()), "the spool to go")


def test_strict_and_stderr_go_together(tmp_path: Path) -> None:
    home = tmp_path / "home"
    words = quick_km(home, "both", "/bin/sh", "-c", "echo out; echo err >&2; cat")
    words[words.index("--")] = "--strict"
    words.insert(words.index("--strict"), "--stderr")
    with running_kmd(home):
        done = subprocess.run(words, input=b"in\n", capture_output=True, timeout=WAIT_S)
        assert (done.stdout, done.stderr, done.returncode) == (b"out\nin\n", b"err\n", 0)
        wait_for(lambda: read_status(home)["outbox"]["events"] == 4, "the lines")
    assert events(home) == {Stream.TO_SERVER: [b"in"], Stream.TO_CLIENT: [b"out", b"in"], Stream.STDERR: [b"err"]}
