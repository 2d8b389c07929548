"""Answers that go on: bounded in number, and cut off visibly when they cannot be finished."""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog
from aiohttp import web

from km_server.errors import ApiError
from km_server.refusals import translate

PLACE_RETRY_S = 5

log = structlog.get_logger("km_server.http")


@dataclass(slots=True)
class Places:
    """How many answers of a kind may go on at once, in one process."""

    limit: int
    what: str
    taken: int = 0

    @contextmanager
    def take(self) -> Iterator[None]:
        """A place for as long as the block runs. Raises ApiError 503: there is none."""
        if self.taken >= self.limit:
            raise ApiError(
                503,
                "server_busy",
                f"this server has {self.limit} {self.what} going on",
                hint="come again later",
                headers={"Retry-After": str(PLACE_RETRY_S)},
            )
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1


async def send(request: web.Request, response: web.StreamResponse, pieces: AsyncIterator[bytes]) -> web.StreamResponse:
    """
    Send *pieces* as the body. When one cannot be made the connection is cut without the body's end; a reader that goes
    is no fault: feeds end so.

    Raises ApiError, StoreError: before the first piece, so that they can still be answered.
    """
    first = await anext(pieces, b"")
    try:
        await response.prepare(request)
        await response.write(first)
        async for piece in pieces:
            await response.write(piece)
    except ConnectionError:
        log.info("reader_gone")
    except Exception as exc:  # noqa: BLE001 - the answer has begun: nobody else can say it any more
        log.warning("cut_short", code=translate(exc).code)
        cut(request)
    else:
        await response.write_eof()
    return response


def cut(request: web.Request) -> None:
    """Hang up at once, so that the reader sees that something is missing."""
    if request.transport is not None:
        request.transport.abort()
