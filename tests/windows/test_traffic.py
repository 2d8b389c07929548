"""The pumps of km on Windows, over real pipes of the system that runs the tests: every byte crosses, and is kept."""

import sys

import pytest

pytest.importorskip("fcntl", reason="these ends are POSIX descriptors; test_km.py has Windows' own")
assert sys.platform != "win32"

import array
import fcntl
import os
import select
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from kmd.record import BYE, HELLO, RUN, STREAMS, TO_CLIENT, TO_SERVER, Record, RecordReader, parse_fields, parse_run
from kmd.shim.held import Entry
from kmd.shim.link import Ending
from kmd.shim.spool import Spool
from kmd.shim.tap import Tap
from kmd.shim.windows.spool import SeekingSpool
from kmd.shim.windows.traffic import Session
from tests.support.processes import WAIT_S, wait_for

pytestmark = pytest.mark.skipif(
    os.name != "posix", reason="these ends are POSIX descriptors; test_km.py has Windows' own"
)
LARGE = bytes(range(256)) * 4096


class FdEnd:
    """A side of a pipe."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def read(self) -> bytes | None:
        return os.read(self.fd, 65536) or None

    def write(self, chunk: bytes) -> int:
        done = 0
        while done < len(chunk):
            try:
                done += os.write(self.fd, chunk[done:])
            except BrokenPipeError:
                break
        return done

    def close(self) -> None:
        os.close(self.fd)


@dataclass
class Stage:
    """What client and server hold, and the session between them."""

    client_in: int
    client_out: int
    server_in: int
    server_out: int
    session: Session
    ending: Ending
    tap: Tap
    home: Path

    def close(self, name: str) -> None:
        os.close(getattr(self, name))
        setattr(self, name, -1)

    def records(self) -> list[Record]:
        """What was kept; the session is finished."""
        self.tap.leave_to_spool()
        (path,) = (self.home / "spool").iterdir()
        found = list(RecordReader().feed(path.read_bytes()))
        assert found.pop(0).type == HELLO
        return found

    def kept(self) -> list[bytes]:
        """Each stream's bytes."""
        streams = [b""] * STREAMS
        for record in self.records():
            for stream, offset, chunk, _ in parse_run(record.body) if record.type == RUN else []:
                assert offset == len(streams[stream])
                streams[stream] += chunk
        return streams

    def bye(self) -> dict[str, bytes]:
        last = self.records()[-1]
        assert last.type == BYE
        return parse_fields(last.body)


@contextmanager
def stage(home: Path, quiet_s: float = WAIT_S) -> Iterator[Stage]:
    near_in, client_in = os.pipe()
    client_out, near_out = os.pipe()
    server_in, far_in = os.pipe()
    far_out, server_out = os.pipe()
    wake_in, wake_out = os.pipe()
    os.set_blocking(wake_out, False)
    ending = Ending()
    tap = Tap(wake_out, SeekingSpool(str(home), "01890a5d-ac96-774b-bcce-000000000001", b"session=x"))
    flows = [(FdEnd(near_in), FdEnd(far_in), TO_SERVER), (FdEnd(far_out), FdEnd(near_out), TO_CLIENT)]
    session = Session(tap, ending, flows, quiet_s)
    made = Stage(client_in, client_out, server_in, server_out, session, ending, tap, home)
    session.start()
    try:
        yield made
    finally:
        for fd in (made.client_in, made.client_out, made.server_in, made.server_out, wake_in, wake_out):
            if fd >= 0:
                os.close(fd)


def bytes_in(fd: int) -> int:
    answer = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, answer)
    return answer[0]


def is_broken(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, 0)
    return bool(poll.poll(0))


def read_exactly(fd: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        data += os.read(fd, size - len(data))
    return bytes(data)


def read_all(fd: int) -> bytes:
    data = b""
    while chunk := os.read(fd, 1 << 16):
        data += chunk
    return data


def write_for_ever(fd: int) -> None:
    while True:
        os.write(fd, b"x" * 4096)


def write_all(fd: int, data: bytes) -> threading.Thread:
    def write() -> None:
        rest = data
        while rest:
            rest = rest[os.write(fd, rest) :]

    thread = threading.Thread(target=write)
    thread.start()
    return thread


def test_both_directions_cross_whole_and_are_kept(tmp_path: Path) -> None:
    with stage(tmp_path) as on:
        writer = write_all(on.client_in, LARGE)
        assert read_exactly(on.server_in, len(LARGE)) == LARGE
        writer.join(WAIT_S)
        on.close("client_in")
        assert os.read(on.server_in, 1) == b""
        os.write(on.server_out, b"answer")
        on.close("server_out")
        assert read_all(on.client_out) == b"answer"
        on.session.wait_for_output()
        on.session.finish()
        assert on.ending.ended
        assert on.kept() == [LARGE, b"answer", b""]
        assert on.bye() == {
            "closed_first": b"client",
            "length.0": b"%d" % len(LARGE),
            "length.1": b"6",
            "length.2": b"0",
        }


@given(st.lists(st.tuples(st.booleans(), st.binary(min_size=1, max_size=300)), max_size=12))
def test_any_conversation_is_kept_as_it_crossed(
    tmp_path_factory: pytest.TempPathFactory, turns: list[tuple[bool, bytes]]
) -> None:
    with stage(tmp_path_factory.mktemp("home")) as on:
        for is_client, chunk in turns:
            source, target = (on.client_in, on.server_in) if is_client else (on.server_out, on.client_out)
            os.write(source, chunk)
            assert read_exactly(target, len(chunk)) == chunk
        on.close("server_out")
        assert read_all(on.client_out) == b""
        on.session.wait_for_output()
        on.session.finish()
        assert on.bye()["closed_first"] == b"server"
        assert on.kept()[:2] == [b"".join(chunk for side, chunk in turns if side is wanted) for wanted in (True, False)]


def test_a_server_that_reads_no_more_is_felt_by_the_client(tmp_path: Path) -> None:
    with stage(tmp_path) as on:
        on.close("server_in")
        with pytest.raises(BrokenPipeError):
            write_for_ever(on.client_in)
        os.write(on.server_out, b"still here")
        assert os.read(on.client_out, 100) == b"still here"


@pytest.mark.skipif(sys.platform != "linux", reason="how much of it finds room is different")
def test_only_what_has_crossed_is_kept(tmp_path: Path) -> None:
    with stage(tmp_path) as on:
        os.write(on.client_in, b"x" * 40_000)
        wait_for(lambda: bytes_in(on.server_in) == 40_000, "the first chunk")
        os.write(on.client_in, b"x" * 60_000)  # of which only some finds room
        wait_for(lambda: bytes_in(on.server_in) > 40_000, "a full pipe")
        crossed = bytes_in(on.server_in)
        assert crossed < 100_000
        on.close("server_in")
        wait_for(lambda: is_broken(on.client_in), "the end of the pump")
        on.close("server_out")
        on.session.wait_for_output()
        on.session.finish()
        assert on.kept()[TO_SERVER] == b"x" * crossed
        assert on.bye()["length.0"] == b"%d" % crossed


def test_a_client_that_reads_no_more_is_felt_by_the_server(tmp_path: Path) -> None:
    with stage(tmp_path) as on:
        on.close("client_out")
        with pytest.raises(BrokenPipeError):
            write_for_ever(on.server_out)
        on.session.wait_for_output()
        on.session.finish()
        assert on.bye()["closed_first"] == b"client"
        assert on.kept()[TO_CLIENT] == b""


def test_a_process_that_keeps_the_servers_output_does_not_keep_km(tmp_path: Path) -> None:
    with stage(tmp_path, quiet_s=0.05) as on:
        os.write(on.server_out, b"last words")
        assert os.read(on.client_out, 100) == b"last words"
        on.session.wait_for_output()
        on.session.finish()
        assert on.bye()["closed_first"] == b"server"
        for _ in range(2):  # the second has crossed: the first would have been kept by now
            os.write(on.server_out, b"too late")
            assert os.read(on.client_out, 100) == b"too late"
        assert on.tap.inbox.kept_bytes == len(b"last words")
        assert on.kept()[TO_CLIENT] == b"last words"


def test_what_the_server_wrote_reaches_a_client_that_reads_it_late(tmp_path: Path) -> None:
    with stage(tmp_path, quiet_s=0.02) as on:
        writer = write_all(on.server_out, LARGE[:200_000])
        done = threading.Thread(target=on.session.wait_for_output)
        done.start()
        done.join(0.5)  # many times as long as nothing may come
        assert done.is_alive()
        assert read_exactly(on.client_out, 200_000) == LARGE[:200_000]
        writer.join(WAIT_S)
        done.join(WAIT_S)
        assert not done.is_alive()


class FailingTap(Tap):
    """One whose keeping fails, as nothing should."""

    def keep(self, stream: int, chunk: memoryview, at_ns: int) -> None:
        raise OSError("broken on purpose")


@pytest.mark.parametrize("tap", [None, FailingTap])
def test_traffic_runs_whatever_becomes_of_the_capture(tmp_path: Path, tap: type[Tap] | None) -> None:
    near_in, client_in = os.pipe()
    server_in, far_in = os.pipe()
    wake_in, wake_out = os.pipe()
    made = None if tap is None else tap(wake_out, SeekingSpool(str(tmp_path), "s", b"session=x"))
    session = Session(made, Ending(), [(FdEnd(near_in), FdEnd(far_in), TO_SERVER)])
    session.start()
    for _ in range(3):
        os.write(client_in, b"on")
        assert os.read(server_in, 10) == b"on"
    os.close(client_in)
    assert os.read(server_in, 10) == b""
    session.finish()
    for fd in (server_in, wake_in, wake_out):
        os.close(fd)


def test_finishing_wakes_the_link(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    session = Session(Tap(write_end, SeekingSpool(str(tmp_path), "s", b"session=x")), Ending(), [])
    session.finish()
    assert wait_for(lambda: os.read(read_end, 10), "the wake-up")
    os.close(read_end)
    os.close(write_end)


def test_a_spool_without_positions_holds_the_same_bytes(tmp_path: Path) -> None:
    entries = [Entry(2, 0, 10 * n, n, (b"part %d," % n, b"more"), (10 * n + 10, 0, 0), 10) for n in range(700)]
    made: list[Spool] = [kind(str(tmp_path / kind.__name__), "s", b"session=x") for kind in (Spool, SeekingSpool)]
    texts = []
    for spool in made:
        (tmp_path / type(spool).__name__).mkdir()
        read, begin = b"", spool.position
        for start in range(0, 700, 100):  # what is written after a read goes to the end, and the next read goes on
            assert spool.append(entries[start : start + 100])
            for _ in range(2):
                chunk = spool.read(1000)
                spool.position += len(chunk)
                read += chunk
        while chunk := spool.read(1000):
            spool.position += len(chunk)
            read += chunk
        (path,) = (tmp_path / type(spool).__name__ / "spool").iterdir()
        assert path.read_bytes()[begin:] == read
        assert spool.size_bytes == path.stat().st_size
        texts.append(path.read_bytes())
        spool.discard()
        assert not path.exists()
    assert texts[0] == texts[1]
    assert len(texts[0]) > 700 * 28
