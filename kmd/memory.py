"""Memory that is free within the process, given back to the system. glibc keeps it, and the most of it, for ever."""

import ctypes
from collections.abc import Callable


def find_trim() -> Callable[[int], int] | None:
    """glibc's malloc_trim(3); None where the C library has none (musl, macOS) and gives back by itself."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    return lambda pad: int(trim(pad))


_TRIM = find_trim()


def give_back_memory() -> bool:
    """Takes a few milliseconds. Returns whether there was any to give back."""
    return _TRIM is not None and bool(_TRIM(0))
