"""
What kmd's doors have in common. A *peer* is one connection of `km` or `kmctl`; a *role* says for which of the two a
door is. The doors themselves are Unix sockets or named pipes (kmd.intake.doors).
"""

from abc import abstractmethod
from enum import StrEnum

import trio


class Role(StrEnum):
    """What a door is for; also its name in LISTEN_FDNAMES, and the order without names."""

    INTAKE = "kmd"
    CONTROL = "control"


class Peer(trio.abc.Stream):
    """Somebody who has come in: a stream of bytes that also says whose it is."""

    @abstractmethod
    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The next bytes, b"" at the end. Raises trio.BrokenResourceError."""

    @abstractmethod
    def is_own(self) -> bool:
        """Whether the other end runs as this user; True where the system cannot say, as the door is private."""

    @abstractmethod
    def send_now(self, data: bytes) -> None:
        """
        Send *data*, a few bytes, whole or not at all and without waiting.

        Not at all: the other end has not read what came before. Raises nothing for one that is gone.
        """
