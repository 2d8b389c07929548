"""
Passing bytes on without a thread or process for each direction: where the user may have no more of either.

One wait for all directions, and then at most one read or write of each, so none of them holds up another. Slow, but
the session lives; nothing is captured here.
"""

import os
import select

TURN_BYTES = 4096
"""PIPE_BUF: a pipe that poll(2) calls writable takes so much at once, also one that blocks."""


class Direction:
    """From *near* to *far*; `rest` has been read and not written yet."""

    __slots__ = ("far", "near", "rest")

    def __init__(self, near: int, far: int) -> None:
        self.near = near
        self.far = far
        self.rest = b""

    def move(self) -> bool:
        """Write what waits, else read some. Returns False at the end, from either side."""
        try:
            if self.rest:
                self.rest = self.rest[os.write(self.far, self.rest) :]
                return True
            self.rest = os.read(self.near, TURN_BYTES)
        except BlockingIOError:
            return True  # another process has taken what was there
        except OSError:
            return False
        return bool(self.rest)


def copy_by_turns(pairs: list[tuple[int, int]]) -> None:
    """Copy from each pair's first descriptor to its second until all have ended; each is closed at its own end."""
    directions = [Direction(*pair) for pair in pairs]
    while directions:
        poll = select.poll()
        for one in directions:
            if one.rest:
                poll.register(one.far, select.POLLOUT)
            else:
                poll.register(one.near, select.POLLIN)
                poll.register(one.far, 0)
        ready = {fd for fd, _ in poll.poll()}
        for one in directions.copy():
            is_far_gone = not one.rest and one.far in ready and one.near not in ready
            if is_far_gone or (ready & {one.near, one.far} and not one.move()):
                directions.remove(one)
                os.close(one.near)
                os.close(one.far)
