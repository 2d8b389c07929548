"""
What bytes cost: a rate per KB, applied when somebody reads, never stored.

A KB is 1024 bytes. Pure.
"""

USD_PER_KB = 0.001
"""The default rate, in US dollars per 1024 bytes."""

BYTES_PER_KB = 1024


def cost_usd(size_bytes: int, usd_per_kb: float = USD_PER_KB) -> float:
    """
    What *size_bytes* cost in US dollars.

    Takes: a length of 0 or more, and a rate of 0 or more per 1024 bytes.
    Raises ValueError: either is negative.
    """
    if size_bytes < 0 or usd_per_kb < 0:
        raise ValueError("sizes and rates are 0 or more")
    return size_bytes / BYTES_PER_KB * usd_per_kb
