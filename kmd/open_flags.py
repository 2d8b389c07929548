"""Flags for `os.open` that not every system has; where one lacks, it is 0 and does nothing."""

import os

NO_LINKS = getattr(os, "O_NOFOLLOW", 0)
"""A symbolic link in the place of our file is an error. Windows does without: only administrators make links there."""
NO_WAIT = getattr(os, "O_NONBLOCK", 0)
"""A FIFO in the place of our file must not hold us."""
BINARY = getattr(os, "O_BINARY", 0)
"""On Windows: bytes are what they are, and no line end is changed."""
