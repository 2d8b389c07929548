"""What several sections measure with: jobs that run side by side, and the spread of a contender's rounds."""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

SPREAD = ("", "min", "median", "max")
"""The columns of a table whose rows `spread` makes."""


def time_together(jobs: Iterable[Callable[[], None]]) -> float:
    """
    Run every job in a thread of its own; seconds from the first one's start to the last one's end.

    Raises what a job raised: a rate that leaves out what has failed would be too good.
    """
    waiting = list(jobs)
    with ThreadPoolExecutor(len(waiting)) as threads:
        began = time.perf_counter()
        for running in [threads.submit(job) for job in waiting]:
            running.result()
        return time.perf_counter() - began


def spread(contender: str, values: Sequence[float]) -> tuple[str | float, ...]:
    """A row of SPREAD."""
    return contender, min(values), statistics.median(values), max(values)


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of ours / theirs, round by round: what slows the machine down meets both of a round."""
    return statistics.median(our / their for our, their in zip(ours, theirs, strict=True))
