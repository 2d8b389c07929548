"""
A random MCP session between a client and a server, as a relay would see it, with what must come out of it.

The relay has one pump for each direction. A pump *reads* a chunk (that dates it), passes it on, and only then
*keeps* it for kmd, so the other pump may keep an answer before this one has kept the request.
"""

from collections import deque
from dataclasses import dataclass, field
from random import Random

from kmd.mcp.names import Stream

BOTH = (Stream.TO_SERVER, Stream.TO_CLIENT)
IDS = (b"1", b'"1"', b"0", b'""', b"7")

OPPOSITE = {Stream.TO_SERVER: Stream.TO_CLIENT, Stream.TO_CLIENT: Stream.TO_SERVER}


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes as a pump kept them."""

    stream: Stream
    offset: int
    data: bytes
    at_ns: int


@dataclass(slots=True)
class Sent:
    """A message that one side wrote: where it ends, and for an answer the method that it answers."""

    stream: Stream
    end: int
    rpc_id: bytes = b""
    answers: str | None = None


@dataclass(slots=True)
class Session:
    """kept: the chunks in the order in which kmd gets them. paired: (stream, offset) of each answer to its method."""

    kept: list[Chunk] = field(default_factory=list)
    streams: dict[Stream, bytes] = field(default_factory=lambda: dict.fromkeys(BOTH, b""))
    paired: dict[tuple[Stream, int], str | None] = field(default_factory=dict)


class Play:
    """Plays a session step by step; *random* decides."""

    def __init__(self, random: Random, *, ids_are_reused: bool) -> None:
        self.session = Session()
        self._random = random
        self._ids_are_reused = ids_are_reused
        self._read = dict.fromkeys(BOTH, 0)
        self._in_hand: dict[Stream, Chunk | None] = dict.fromkeys(BOTH)
        self._open: list[Sent] = []
        self._free_from: dict[tuple[Stream, bytes], int] = {}
        self._now_ns = 0
        self._serial = 0

    def run(self, steps: int) -> Session:
        for _ in range(steps):
            stream = self._random.choice(BOTH)
            self._random.choice((self._speak, self._speak, self._pump, self._pump, self._pump))(stream)
        while any(self._in_hand.values()) or any(self._read[s] < len(self.session.streams[s]) for s in BOTH):
            for stream in BOTH if self._random.random() < 0.5 else BOTH[::-1]:
                self._pump(stream)
        return self.session

    def _speak(self, stream: Stream) -> None:
        """One side writes a message, perhaps an answer to a request that has reached it."""
        answerable = [r for r in self._open if r.stream is not stream and r.end <= self._read[r.stream]]
        roll = self._random.random()
        if answerable and roll < 0.6:
            self._answer(stream, self._random.choice(answerable))
        elif roll < 0.85:
            self._request(stream)
        else:
            kinds = (b'{"method":"n"}', b"no json", b"", b'{"id":99,"result":{}}', b'[{"method":"m"},{"id":98}]', b"[]")
            payload = self._random.choice(kinds)
            if b"99" in payload:
                self.session.paired[stream, len(self.session.streams[stream])] = None
            self._write(stream, payload)

    def _request(self, stream: Stream) -> None:
        self._serial += 1
        rpc_id = self._random.choice(IDS) if self._ids_are_reused else b"%d" % (1000 + self._serial)
        if self._is_in_use(stream, rpc_id):
            return
        method = f"m{self._serial}"
        self._write(stream, b'{"id":%b,"method":"%b"}' % (rpc_id, method.encode()))
        self._open.append(Sent(stream, len(self.session.streams[stream]), rpc_id, method))

    def _is_in_use(self, stream: Stream, rpc_id: bytes) -> bool:
        """Until its answer has reached the one who asked, an id is not used again."""
        is_open = any((other.stream, other.rpc_id) == (stream, rpc_id) for other in self._open)
        return is_open or self._free_from.get((stream, rpc_id), 0) > self._read[OPPOSITE[stream]]

    def _answer(self, stream: Stream, request: Sent) -> None:
        self._open.remove(request)
        self.session.paired[stream, len(self.session.streams[stream])] = request.answers
        body = self._random.choice((b'"result":{}', b'"error":{"code":-1}', b'"result":{"isError":true}'))
        self._write(stream, b'{"id":%b,%b}' % (request.rpc_id, body))
        self._free_from[request.stream, request.rpc_id] = len(self.session.streams[stream])

    def _write(self, stream: Stream, payload: bytes) -> None:
        self.session.streams[stream] += payload + b"\n"

    def _pump(self, stream: Stream) -> None:
        """Keep what is in hand, else read something."""
        self._now_ns += 10
        if chunk := self._in_hand[stream]:
            self.session.kept.append(chunk)
            self._in_hand[stream] = None
            return
        start, whole = self._read[stream], self.session.streams[stream]
        if start < len(whole):
            end = min(len(whole), start + self._random.choice((1, 7, 30, 30, 500)))
            self._in_hand[stream] = Chunk(stream, start, whole[start:end], self._now_ns)
            self._read[stream] = end


def shuffle(kept: list[Chunk], random: Random) -> list[Chunk]:
    """The chunks in any order that leaves each stream in its own: one pump may lag far behind the other."""
    queues = [deque(chunk for chunk in kept if chunk.stream is stream) for stream in BOTH]
    order = []
    while any(queues):
        order.append(random.choice([queue for queue in queues if queue]).popleft())
    return order
