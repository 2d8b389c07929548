"""Bytes pass where there is neither a thread nor a process for each direction: copy_by_turns between real pipes."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

from kmd.shim.turns import copy_by_turns

WAIT_S = 30.0
MANY = bytes(range(256)) * 8000


@contextmanager
def copied(pairs: list[tuple[int, int]]) -> Iterator[None]:
    """A copier beside the block; it must end when the block has."""
    copier = Thread(target=copy_by_turns, args=(pairs,), daemon=True)
    copier.start()
    yield
    copier.join(WAIT_S)
    assert not copier.is_alive()


def feed(fd: int, data: bytes) -> Thread:
    def write() -> None:
        with os.fdopen(fd, "wb", buffering=0) as file:
            file.write(data)

    writer = Thread(target=write, daemon=True)
    writer.start()
    return writer


def read_all(fd: int) -> bytes:
    with os.fdopen(fd, "rb") as file:
        return file.read()


def test_both_ways_at_once_and_each_ends_by_itself() -> None:
    (near_a, in_a), (near_b, in_b) = os.pipe(), os.pipe()
    (out_a, far_a), (out_b, far_b) = os.pipe(), os.pipe()
    with copied([(near_a, far_a), (near_b, far_b)]):
        feed(in_a, MANY)
        assert read_all(out_a) == MANY
        feed(in_b, MANY[:5])
        assert read_all(out_b) == MANY[:5]


def test_a_direction_that_nobody_reads_holds_up_no_other() -> None:
    (near_a, in_a), (near_b, in_b) = os.pipe(), os.pipe()
    (out_a, far_a), (out_b, far_b) = os.pipe(), os.pipe()
    with copied([(near_a, far_a), (near_b, far_b)]):
        feed(in_a, MANY)
        feed(in_b, MANY)
        assert read_all(out_b) == MANY
        assert read_all(out_a) == MANY


def test_a_reader_that_goes_is_noticed_while_nothing_is_written() -> None:
    (near, into), (out, far) = os.pipe(), os.pipe()
    with copied([(near, far)]):
        os.close(out)
    try:
        os.write(into, b"x")
        raise AssertionError("somebody still reads")
    except BrokenPipeError:
        os.close(into)


def test_descriptors_that_do_not_wait() -> None:
    ours, theirs = socket.socketpair()
    out, far = os.pipe()
    theirs.setblocking(False)
    os.set_blocking(far, False)
    with copied([(theirs.detach(), far)]):
        ours.sendall(b"one")
        assert os.read(out, 100) == b"one"
        ours.close()
        assert read_all(out) == b""
