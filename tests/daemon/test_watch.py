"""The watch: a pump that waits for its near side learns that the far side has gone, and only then."""

import os
import threading

import pytest

from kmd.shim.watch import Watch
from tests.support.processes import WAIT_S


class Reader:
    """A pump that only reads."""

    def __init__(self, watch: Watch, near: int, far: int) -> None:
        self._watch, self._near, self._far = watch, near, far
        self.read = b""
        self.was_interrupted = False
        self.begun = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self._watch.begin(self._near, self._far)
        self.begun.set()
        while chunk := os.read(self._near, 100):
            self.read += chunk
        self.was_interrupted = self._watch.has_interrupted(self._far)
        self._watch.end(self._far)
        os.close(self._far)
        os.close(self._near)

    def wait(self) -> None:
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive()


@pytest.fixture(scope="module")
def watch() -> Watch:
    watch = Watch()
    threading.Thread(target=watch.run, daemon=True).start()
    return watch


def test_a_blocked_read_ends_when_the_far_side_goes_and_the_near_writer_sees_it(watch: Watch) -> None:
    near, near_writer = os.pipe()
    far_reader, far = os.pipe()
    reader = Reader(watch, near, far)
    assert reader.begun.wait(WAIT_S)
    os.close(far_reader)
    reader.wait()
    assert reader.was_interrupted
    with pytest.raises(BrokenPipeError):
        os.write(near_writer, b"x")
    os.close(near_writer)


def test_an_end_of_file_on_the_near_side_is_no_interruption(watch: Watch) -> None:
    near, near_writer = os.pipe()
    far_reader, far = os.pipe()
    reader = Reader(watch, near, far)
    os.write(near_writer, b"data")
    os.close(near_writer)
    reader.wait()
    assert reader.read == b"data"
    assert not reader.was_interrupted
    assert os.read(far_reader, 1) == b""  # nothing holds the far side open
    os.close(far_reader)


def test_one_pump_is_interrupted_and_the_other_goes_on(watch: Watch) -> None:
    near, near_writer = os.pipe()
    far_reader, far = os.pipe()
    other_near, other_writer = os.pipe()
    other_reader, other_far = os.pipe()
    gone, stays = Reader(watch, near, far), Reader(watch, other_near, other_far)
    assert gone.begun.wait(WAIT_S)
    assert stays.begun.wait(WAIT_S)
    os.close(far_reader)
    gone.wait()
    os.write(other_writer, b"still here")
    os.close(other_writer)
    stays.wait()
    assert stays.read == b"still here"
    assert not stays.was_interrupted
    os.close(near_writer)
    os.close(other_reader)
