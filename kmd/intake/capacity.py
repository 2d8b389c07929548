"""
How many relays may be connected at once. Each takes a descriptor, and kmd must keep some for everything else:
without them it could neither answer kmctl, nor reach a server, nor take in a spool.

A relay that is sent away holds what it has, writes its spool, and comes again.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

RESERVED = 64
"""Descriptors that are not for relays: files, sockets, connections of kmctl and to servers, spools."""
WANTED = 65_536
"""More are not asked for; some systems say "unlimited" and mean far less."""

HANDLES = 1024
"""Windows has no such limit; each relay's pipe takes memory of the kernel there."""

log = structlog.get_logger(__name__)


if sys.platform == "win32":

    def raise_descriptor_limit() -> int:
        """How many handles kmd may use."""
        return HANDLES

else:
    import resource

    def raise_descriptor_limit() -> int:
        """Take as many descriptors as this user may have. Returns how many that is."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
        if soft == resource.RLIM_INFINITY or soft >= wanted:
            return min(WANTED, soft) if soft != resource.RLIM_INFINITY else WANTED
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):  # macOS has a limit of its own below "unlimited"
            return soft
        return wanted


class Capacity:
    """Room for relays. refused: how many have been sent away; is_full: whether the next one would be."""

    def __init__(self, descriptors: int) -> None:
        self.most = max(1, descriptors - RESERVED)
        self.connected = 0
        self.refused = 0
        self._was_full = False

    @property
    def is_full(self) -> bool:
        return self.connected >= self.most

    @contextmanager
    def admit(self) -> Iterator[bool]:
        """Whether one more may come in; it counts for as long as the block runs."""
        if self.is_full:
            self.refused += 1
            if not self._was_full:
                log.error("too many relays are connected; more are sent away and spool", most=self.most)
            self._was_full = True
            yield False
            return
        self._was_full = False
        self.connected += 1
        try:
            yield True
        finally:
            self.connected -= 1
