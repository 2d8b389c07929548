"""Whatever becomes of kmd, the traffic neither fails nor waits: the records stay those of the bare server."""

import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.processes import start_kmd
from tests.transparency.client import Record
from tests.transparency.scenarios import SCENARIOS
from tests.transparency.stage import Stage, Wrap, bare, km

NAMES = (
    "bytes_come_back[line_of_1_mib]",
    "thousands_of_lines_each_way_at_once",
    "partial_line_is_not_held_back",
    "server_closes_stdin_and_goes_on",
    "client_stops_reading_while_the_server_is_idle[dies_of_sigpipe]",
    "client_signals_the_process[TERM]",
    "exit_code[seven]",
    "last_words_arrive_whole[code]",
    "descriptors_seen_by_a_plain_program",
)
"""One of each kind; the states are about kmd, not about the server."""
LEAVES_S = 8.0
"""A relay's own patience with a kmd that hangs: handshake, linger, one more try."""


@contextmanager
def listening(home: Path, *, backlog: int = 8) -> Iterator[socket.socket]:
    """A socket where kmd's should be; nobody serves it."""
    home.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(home / "kmd.sock"))
        sock.listen(backlog)
        yield sock


@contextmanager
def missing(home: Path) -> Iterator[None]:
    """Nothing there, not even the folder."""
    yield


@contextmanager
def refusing(home: Path) -> Iterator[None]:
    """A stale socket file: connecting is refused."""
    with listening(home):
        pass
    yield


@contextmanager
def hung(home: Path) -> Iterator[None]:
    """Connections are taken into the backlog, nothing is ever answered."""
    with listening(home):
        yield


@contextmanager
def closing_at_once(home: Path) -> Iterator[None]:
    """Each connection is accepted and dropped."""
    with answering(home, b"", keep=False):
        yield


@contextmanager
def talking_nonsense(home: Path) -> Iterator[None]:
    """Each connection gets bytes that are no record."""
    with answering(home, b"HTTP/1.1 400 Bad Request\r\n\r\n" * 100, keep=True):
        yield


@contextmanager
def answering(home: Path, data: bytes, *, keep: bool) -> Iterator[None]:
    """A socket whose connections get *data* and are then kept unread, or closed."""
    kept: list[socket.socket] = []
    with listening(home) as sock:

        def serve() -> None:
            while True:
                try:
                    peer, _ = sock.accept()
                except OSError:
                    return
                with suppress(OSError):
                    peer.sendall(data)
                kept.append(peer)
                if not keep:
                    peer.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            sock.shutdown(socket.SHUT_RDWR)
            thread.join(10)
            for peer in kept:
                peer.close()


@contextmanager
def not_writable(home: Path) -> Iterator[None]:
    """The meeting place is a plain file: nothing can be made in it, not even by root."""
    home.parent.mkdir(parents=True, exist_ok=True)
    home.write_text("not a folder")
    yield


@contextmanager
def running(home: Path) -> Iterator[None]:
    """A kmd that does its work."""
    kmd = start_kmd(home)
    try:
        yield
    finally:
        kmd.stop()


@contextmanager
def stopped(home: Path) -> Iterator[None]:
    """A kmd that has stopped in the middle of its work (SIGSTOP)."""
    kmd = start_kmd(home)
    kmd.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        kmd.process.send_signal(signal.SIGCONT)
        kmd.stop()


State = Callable[[Path], AbstractContextManager[None]]
STATES: tuple[State, ...] = (
    missing, refusing, hung, closing_at_once, talking_nonsense, not_writable, running, stopped,
)  # fmt: skip


def behind(home: Path, wrap: Wrap = km) -> Wrap:
    """km, in the form *wrap*, whose kmd is under *home*, whatever the stage."""

    def km_there(_: Path, words: list[str]) -> list[str]:
        return wrap(home, words)

    return km_there


def play(names: Iterable[str], wrap: Wrap, folder: Path) -> dict[str, Record]:
    """The records of several scenarios; what a relay still does once both ends are gone is not looked at."""
    records = {}
    for at, name in enumerate(names):
        place = folder / str(at)
        place.mkdir(parents=True)
        with Stage(place, wrap) as stage:
            records[name] = SCENARIOS[name].act(stage)
    return records


@pytest.mark.parametrize("state", STATES, ids=lambda state: str(state.__name__))
def test_no_state_of_kmd_shows(state: State, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with state(home):
        assert play(NAMES, behind(home), tmp_path / "km") == play(NAMES, bare, tmp_path / "bare")


@pytest.mark.parametrize("state", [hung, stopped, talking_nonsense], ids=lambda state: str(state.__name__))
def test_a_relay_does_not_wait_for_kmd_for_ever(state: State, tmp_path: Path) -> None:
    home = tmp_path / "home"
    place = tmp_path / "stage"
    place.mkdir()
    with state(home), Stage(place, behind(home)) as stage:
        stage.probe("echo").finish(b"x\n" * 1000)
        assert stage.left(LEAVES_S) == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
def test_kmd_goes_away_in_the_middle(how: signal.Signals, tmp_path: Path) -> None:
    home = tmp_path / "home"
    place = tmp_path / "stage"
    place.mkdir()
    kmd = start_kmd(home)
    try:
        with Stage(place, behind(home)) as stage:
            client = stage.probe("echo")
            for number in range(400):
                line = b"%d" % number * 100 + b"\n"
                client.send(line)
                assert client.receive(len(line)) == line
                if number == 200:
                    kmd.process.send_signal(how)
            assert client.finish(b"last\n") == {"output": b"last\n", "errors": b"", "status": 0}
    finally:
        kmd.process.send_signal(signal.SIGCONT)
        kmd.stop()
