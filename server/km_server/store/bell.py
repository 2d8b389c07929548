"""The bell that rings in this process after a commit, for those who follow what comes in (`/api/v1/live`)."""

import asyncio


class Bell:
    """
    Wakes everybody who waits at the moment that it rings; who comes later waits for the next time.

    polled_s: a wait ends after this many seconds at the latest: other processes commit too, and cannot ring here.
    """

    def __init__(self, polled_s: float) -> None:
        self._polled_s = polled_s
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Something was committed."""
        self._rung.set()
        self._rung = asyncio.Event()

    async def wait(self, timeout_s: float) -> None:
        """Return when it rings, at the latest after *timeout_s*."""
        try:
            async with asyncio.timeout(min(timeout_s, self._polled_s)):
                await self._rung.wait()
        except TimeoutError:
            pass
