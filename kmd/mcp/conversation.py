"""A session's two streams together: chunks in, complete messages out, and how far each stream is settled."""

from collections.abc import Iterable, Mapping

from kmd.mcp.exchange import Exchanges, Position
from kmd.mcp.line import LineAssembler
from kmd.mcp.message import Message, parse_line
from kmd.mcp.names import Kind, Stream
from kmd.record import POSITION_MAX


class Conversation:
    """
    Follows one session from the offsets that are already durable.

    `settled(stream)` is the offset below which every message has been handed out; committing those messages
    together with that offset is what makes an acknowledgement true.
    """

    def __init__(self, durable: Mapping[Stream, int], max_message_bytes: int) -> None:
        self._assemblers = {s: LineAssembler(durable.get(s, 0), max_message_bytes) for s in Stream}
        self._exchanges = Exchanges()

    @property
    def open_requests(self) -> int:
        return self._exchanges.open_count

    @property
    def has_parked(self) -> bool:
        return self._exchanges.has_parked

    @property
    def gap_bytes(self) -> int:
        """Bytes that were never captured, or belong to a line with such a hole."""
        return sum(assembler.gap_bytes for assembler in self._assemblers.values())

    def settled(self, stream: Stream) -> int:
        complete = self._assemblers[stream].complete_offset
        parked = self._exchanges.parked_offset(stream)
        return complete if parked is None else min(parked, complete)

    def restore(self, requests: Iterable[Message]) -> None:
        """Take up the requests that were open when kmd or the relay's connection ended, oldest first."""
        for request in requests:
            self._exchanges.restore(request)

    def open_positions(self) -> dict[Stream, list[Position]]:
        """Where the open requests of each stream stand, for a later `restore`."""
        return {s: self._exchanges.open_positions(s) for s in (Stream.TO_SERVER, Stream.TO_CLIENT)}

    def take_chunk(self, stream: Stream, offset: int, chunk: bytes, at_ns: int) -> list[Message]:
        """The messages that this chunk completes."""
        messages: list[Message] = []
        observe = self._exchanges.observe
        for line in self._assemblers[stream].feed(offset, chunk, at_ns):
            for message in parse_line(stream, line):
                messages += [message] if message.kind is Kind.NOT_JSON else observe(message)
        return messages

    def take_gap(self, stream: Stream, offset: int, length: int) -> None:
        self._assemblers[stream].skip(offset, length)

    def release(self) -> list[Message]:
        """Nothing more comes for now: hand out the answers whose request did not show up."""
        return self._exchanges.release()

    def abandon(self) -> list[Message]:
        """The relay was killed: hand out what is complete. A cut line is no message; it counts as a gap."""
        for assembler in self._assemblers.values():
            assembler.abandon()
        return self.release()

    def finish(self, lengths: Mapping[Stream, int]) -> list[Message]:
        """
        Both streams have ended: hand out what is left, last lines without a newline included.

        lengths: how long the streams were, where that is known; what is missing at an end counts as a gap. One
        that no stream can have says nothing.
        """
        messages: list[Message] = []
        for stream, assembler in self._assemblers.items():
            missing = lengths.get(stream, 0) - assembler.next_offset
            if 0 < missing <= POSITION_MAX:
                assembler.skip(assembler.next_offset, missing)
            for line in assembler.finish():
                for message in parse_line(stream, line):
                    messages += self._exchanges.observe(message)
        return messages + self.release()
