"""
Which signals kmd heeds, on this system. On Windows there is neither SIGTERM nor SIGHUP from others: there `kmctl` asks
kmd to end over the control pipe, which it may do anywhere.
"""

import signal
import sys
from collections.abc import Awaitable, Callable

import trio

if sys.platform == "win32":
    END = (signal.SIGINT, signal.SIGBREAK)
    READ_AGAIN: tuple[signal.Signals, ...] = ()
else:
    END = (signal.SIGINT, signal.SIGTERM)
    READ_AGAIN = (signal.SIGHUP,)


async def heed_signals(end: Callable[[], None], read_again: Callable[[], Awaitable[None]]) -> None:
    """Until a signal means the end, which calls *end*; SIGHUP calls *read_again*."""
    with trio.open_signal_receiver(*END, *READ_AGAIN) as signals:
        async for number in signals:
            if number in END:
                end()
                return
            await read_again()
