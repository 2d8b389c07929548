"""
A few threads with a read-only connection each: a question never waits for a write, nor a write for a question.
"""

import asyncio
import queue
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from km_server.errors import StoreBusy
from km_server.store.sqlite.driver import sqlite3, translate

T = TypeVar("T")

READERS = 4
WAITING_MAX = 64
"""Questions that may wait for a reader."""

QUESTION_MAX_S = 10.0
"""A question that takes longer is broken off."""

CHECK_EVERY_STEPS = 10_000
"""Virtual machine steps between two looks at the clock: well under a millisecond."""


class Readers:
    """The reading threads. `ask` is for the event loop."""

    def __init__(self, open_connection: Callable[[], sqlite3.Connection]) -> None:
        self._idle: queue.SimpleQueue[sqlite3.Connection] = queue.SimpleQueue()
        for _ in range(READERS):
            self._idle.put(open_connection())
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="km-server-reader")
        self._asked = 0

    async def ask(self, question: Callable[[sqlite3.Connection], T]) -> T:
        """Run *question* in one read transaction. Raises StoreBusy."""
        if self._asked >= READERS + WAITING_MAX:
            raise StoreBusy("too many questions wait for the store", retry_after_s=1)
        self._asked += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, self._answer, question)
        finally:
            self._asked -= 1

    async def aclose(self) -> None:
        """Finish the questions that run, then close."""
        await asyncio.to_thread(self._pool.shutdown)
        while not self._idle.empty():
            self._idle.get_nowait().close()

    def _answer(self, question: Callable[[sqlite3.Connection], T]) -> T:
        """In a reading thread: one snapshot, one question, bounded in time."""
        connection = self._idle.get()
        ends_at = time.monotonic() + QUESTION_MAX_S
        connection.set_progress_handler(lambda: time.monotonic() > ends_at, CHECK_EVERY_STEPS)
        try:
            connection.execute("BEGIN")
            return question(connection)
        except sqlite3.Error as exc:
            raise translate(exc) from exc
        finally:
            connection.set_progress_handler(None, 0)
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            self._idle.put(connection)
