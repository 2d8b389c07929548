"""
What a relay holds in memory: records that kmd has not acknowledged, those that were sent before those that were not.

No socket, no file, no lock: the tap decides when, this knows what is where and how much it costs.
"""

from _collections_abc import Iterable, Sequence

from kmd.record import STREAMS, render_head, render_light_head
from kmd.shim.slabs import Claims, drop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
else:
    from _collections import deque

ENTRY_OVERHEAD_BYTES = 1024
"""What one record costs beside its bytes."""
NEVER = (1 << 62,) * STREAMS
"""The end of a record that no offset covers: a BYE, which kmd answers with its own."""


class Entry:
    """
    A record: its header's numbers, its body in parts, and per stream the offset after its last byte.

    carried_bytes: how much of what crossed is in it. claims: on the memory of its parts, until `let_go`.
    """

    __slots__ = (
        "at_ns",
        "carried_bytes",
        "claims",
        "cost_bytes",
        "ends",
        "offset",
        "parts",
        "size_bytes",
        "stream",
        "type",
    )

    def __init__(
        self,
        type: int,  # noqa: A002
        stream: int,
        offset: int,
        at_ns: int,
        parts: Sequence[bytes | memoryview],
        ends: tuple[int, ...],
        carried_bytes: int,
        claims: Claims | None = None,
    ) -> None:
        self.type = type
        self.stream = stream
        self.offset = offset
        self.at_ns = at_ns
        self.parts = parts
        self.ends = ends
        self.carried_bytes = carried_bytes
        self.size_bytes = sum(map(len, parts))
        self.claims = claims or {}
        self.cost_bytes = self.size_bytes + ENTRY_OVERHEAD_BYTES

    def is_durable(self, durable: tuple[int, ...]) -> bool:
        """Whether kmd has committed all of it."""
        return all(end <= have for end, have in zip(self.ends, durable, strict=True))

    def let_go(self) -> None:
        """It is held no longer: its memory may be written again."""
        drop(self.claims)
        self.claims = {}

    def for_socket(self) -> list[bytes | memoryview]:
        """What is sent; a CRC over the header alone."""
        return [render_light_head(self.type, self.stream, self.offset, self.at_ns, self.size_bytes), *self.parts]

    def for_file(self) -> list[bytes | memoryview]:
        """What is spooled; a CRC over everything."""
        return [render_head(self.type, self.stream, self.offset, self.at_ns, *self.parts), *self.parts]


def left_of(parts: Sequence[bytes | memoryview], size: int) -> list[bytes | memoryview]:
    """What is left of *parts* without their first *size* bytes. Nothing is copied: fresh memory is dear."""
    left = list(parts)
    while left and size >= len(left[0]):
        size -= len(left.pop(0))
    if size:
        left[0] = memoryview(left[0])[size:]
    return left


class Held:
    """The records in order. `cost_bytes` is what all of them take."""

    __slots__ = ("_sent", "_unsent", "cost_bytes")

    def __init__(self) -> None:
        self._sent: deque[Entry] = deque()
        self._unsent: deque[Entry] = deque()
        self.cost_bytes = 0

    def add(self, entry: Entry) -> None:
        self._unsent.append(entry)
        self.cost_bytes += entry.cost_bytes

    @property
    def next_unsent(self) -> Entry | None:
        return self._unsent[0] if self._unsent else None

    def mark_sent(self) -> None:
        """The next unsent one has gone out whole."""
        self._sent.append(self._unsent.popleft())

    def settle(self, durable: tuple[int, ...]) -> None:
        """kmd has everything below *durable*: let go of what that covers, which is a prefix."""
        sent = self._sent
        while sent and sent[0].is_durable(durable):
            entry = sent.popleft()
            self.cost_bytes -= entry.cost_bytes
            entry.let_go()

    def rewind(self, durable: tuple[int, ...]) -> None:
        """A new connection: everything is unsent again but what is durable."""
        waiting = [entry for entry in (*self._sent, *self._unsent) if not entry.is_durable(durable)]
        self.replace(sent=(), unsent=waiting)

    def list_sent(self) -> list[Entry]:
        return list(self._sent)

    def list_unsent(self) -> list[Entry]:
        return list(self._unsent)

    def replace(self, sent: Iterable[Entry], unsent: Iterable[Entry]) -> None:
        """Hold exactly these, of those that were held."""
        before = (*self._sent, *self._unsent)
        self._sent, self._unsent = deque(sent), deque(unsent)
        self.cost_bytes = sum(entry.cost_bytes for entry in (*self._sent, *self._unsent))
        kept = {id(entry) for entry in (*self._sent, *self._unsent)}
        for entry in before:
            if id(entry) not in kept:
                entry.let_go()
