"""
Messages to exchanges: each answer gets its request's method and target, and how long it took.

Each direction reaches kmd by itself, so an answer may overtake its request by a moment. Such an
answer is *parked* until its request comes, or until the other stream shows that none will. No clock here:
times are those of the messages.
"""

from collections import OrderedDict
from itertools import islice
from typing import NamedTuple

import msgspec

from kmd.mcp.message import Message
from kmd.mcp.names import Kind, Outcome, Stream

OPEN_MAX = 10_000
"""Requests that may wait for an answer; beyond it the oldest is given up, as its session is ill anyway."""
PARKED_MAX = 64
PARKED_MAX_BYTES = 1 << 20
PARKED_MAX_NS = 250_000_000
"""Answers that may wait for their request, what they may hold, and how long; beyond it the oldest goes on unpaired."""

OPEN_REMEMBERED = 512
"""Open requests of one direction, the newest ones, that outlive a restart of kmd: 8 KiB a commit at the worst."""

ANSWERS = (Kind.RESPONSE, Kind.ERROR)
PROBE_METHOD = "server/discover"


Position = tuple[int, int]
"""Where a message stands in its stream: offset and index."""


class OpenRequest(NamedTuple):
    """What an answer needs of its request. earlier: an unanswered one of the same id, should it still be answered."""

    method: str | None
    target: str | None
    at_ns: int
    position: Position
    earlier: "OpenRequest | None" = None


class Exchanges:
    """Pairs the answers of one session. Ids compare as raw JSON text, per direction: `1` is not `"1"`."""

    __slots__ = ("_open_to_client", "_open_to_server", "_parked")

    def __init__(self) -> None:
        # Two id spaces, one per direction; plain dicts by id, because an enum in a key is hashed in Python.
        self._open_to_server: OrderedDict[str, OpenRequest] = OrderedDict()
        self._open_to_client: OrderedDict[str, OpenRequest] = OrderedDict()
        self._parked: list[Message] = []

    @property
    def open_count(self) -> int:
        """Requests without an answer so far."""
        return len(self._open_to_server) + len(self._open_to_client)

    @property
    def has_parked(self) -> bool:
        """Whether answers wait for their request; then `release` must be called when nothing more comes."""
        return bool(self._parked)

    def parked_offset(self, stream: Stream) -> int | None:
        """Where the first parked answer of *stream* begins: nothing from there on is settled."""
        return min((message.offset for message in self._parked if message.stream is stream), default=None)

    def observe(self, message: Message) -> list[Message]:
        """The messages that are complete now that *message* has come, in order; often just that one."""
        if not self._parked:
            if message.kind in ANSWERS:
                return self._answer(message)
            if message.kind is Kind.REQUEST:
                self._register(message)
            return [message]
        return [*self._release_overtaken(message), *self._observe_parked(message)]

    def release(self) -> list[Message]:
        """Give up waiting: hand out what is parked, unpaired."""
        parked, self._parked = self._parked, []
        return parked

    def restore(self, request: Message) -> None:
        """Take up a request that was handed out before kmd restarted, and that nobody has answered since."""
        if request.kind is Kind.REQUEST:
            self._register(request)

    def open_positions(self, stream: Stream) -> list[Position]:
        """Where the open requests of *stream* stand, in the order in which they are to be restored."""
        requests = self._open_to_server if stream is Stream.TO_SERVER else self._open_to_client
        newest = list(islice(reversed(requests.values()), OPEN_REMEMBERED))
        newest.reverse()
        positions = [request.position for request in newest]
        earlier = [request.earlier.position for request in newest if request.earlier]
        return earlier + positions

    def _observe_parked(self, message: Message) -> list[Message]:
        if message.kind in ANSWERS:
            return self._answer(message)
        if message.kind is not Kind.REQUEST:
            return [message]
        self._register(message)
        ready = [message]
        for answer in [parked for parked in self._parked if is_answer(parked, message)]:
            self._parked.remove(answer)
            ready += self._answer(answer)
        return ready

    def _release_overtaken(self, message: Message) -> list[Message]:
        """Answers that are older than *message* on the other stream, or old: had they a request, it would have come."""
        overtaken = [
            parked
            for parked in self._parked
            if parked.at_ns < message.at_ns - (PARKED_MAX_NS if parked.stream is message.stream else 0)
        ]
        for parked in overtaken:
            self._parked.remove(parked)
        return overtaken

    def _register(self, message: Message) -> None:
        rpc_id = message.rpc_id
        if rpc_id is None or rpc_id == "null":
            return
        requests = self._open_to_server if message.stream is Stream.TO_SERVER else self._open_to_client
        earlier = requests.pop(rpc_id, None)
        if earlier is not None and earlier.earlier is not None:
            earlier = earlier._replace(earlier=None)
        requests[rpc_id] = OpenRequest(
            message.method, message.target, message.at_ns, (message.offset, message.index), earlier
        )
        if len(requests) > OPEN_MAX:
            requests.popitem(last=False)

    def _close(self, rpc_id: str, answer: Message) -> OpenRequest | None:
        """
        Take out the request that *answer* answers: the newest of its id that is not younger than the answer.

        A client may use an id again before the pump that has passed the answer on could tell kmd of it.
        """
        requests = self._open_to_client if answer.stream is Stream.TO_SERVER else self._open_to_server
        request = requests.pop(rpc_id, None)
        if request is None or request.earlier is None or request.at_ns <= answer.at_ns:
            return request
        requests[rpc_id] = request._replace(earlier=None)
        return request.earlier

    def _answer(self, message: Message) -> list[Message]:
        if message.rpc_id is None or message.rpc_id == "null":
            return [message]
        request = self._close(message.rpc_id, message)
        if request is not None:
            return [pair(request, message)]
        self._parked.append(message)
        held_bytes = sum(len(parked.payload or b"") for parked in self._parked)
        ready: list[Message] = []
        while len(self._parked) > PARKED_MAX or (held_bytes > PARKED_MAX_BYTES and len(self._parked) > 1):
            ready.append(self._parked.pop(0))
            held_bytes -= len(ready[-1].payload or b"")
        return ready


def is_answer(answer: Message, request: Message) -> bool:
    """Whether *answer* belongs to *request*, which came after it."""
    return answer.stream is not request.stream and answer.rpc_id == request.rpc_id


def pair(request: OpenRequest, answer: Message) -> Message:
    """The answer with its request's names and the time between the two."""
    outcome = answer.outcome
    if outcome is Outcome.RPC_ERROR and request.method == PROBE_METHOD:
        outcome = Outcome.PROBE
    return msgspec.structs.replace(
        answer,
        method=request.method,
        target=request.target,
        took_ns=max(0, answer.at_ns - request.at_ns),
        outcome=outcome,
    )
