"""
Latency as counts in logarithmic buckets, which add up over any range and merge in any order.

With g = GAMMA: bucket 0 is zero, bucket i > 0 holds the values in (g^(i-2), g^(i-1)] ns. A bucket's value has
the same relative distance to both of its ends, so it is at most (g-1)/(g+1) = 2.44 % off. Pure.
Source: Masson, Rim, Lee, "DDSketch" (VLDB 2019), section 2.
"""

import math
from collections.abc import Mapping

GAMMA = 1.05
_LOG_GAMMA = math.log(GAMMA)


def bucket_of(took_ns: int) -> int:
    """The bucket of a duration of 0 ns or more."""
    if took_ns <= 0:
        return 0
    return math.ceil(math.log(took_ns) / _LOG_GAMMA) + 1


def bucket_value_ns(bucket: int) -> float:
    """The duration that stands for every one in *bucket*."""
    if bucket <= 0:
        return 0.0
    return 2.0 * GAMMA ** (bucket - 1) / (GAMMA + 1.0)


def quantile_ns(counts: Mapping[int, int], quantile: float) -> float | None:
    """
    The nearest-rank quantile of what was counted.

    Takes: bucket → how many, and 0 < quantile <= 1.
    Returns: nanoseconds, at most 2.5 % off the sample at that rank; None when nothing was counted.
    """
    total = sum(counts.values())
    if total <= 0:
        return None
    rank = max(1, math.ceil(quantile * total))
    seen = 0
    for bucket in sorted(counts):
        seen += counts[bucket]
        if seen >= rank:
            return bucket_value_ns(bucket)
    return None
