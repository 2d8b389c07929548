"""
Bytecode that was cut off: the interpreter stores what it has compiled without looking whether all of it fitted.

A full disk or a limit on file sizes at a first start leaves half a file, and every start after that would fail.
"""

import os
import sys

TORN = (EOFError, ValueError, TypeError)
"""What the import of such a module raises."""


def pass_over_bytecode() -> None:
    """Have this process import from source alone, and the next one compile anew."""
    sys.pycache_prefix = os.devnull
    sys.dont_write_bytecode = True
    shim = os.path.dirname(os.path.realpath(__file__))
    for folder in (shim, os.path.dirname(shim)):
        cache = os.path.join(folder, "__pycache__")
        try:
            for name in os.listdir(cache):
                os.unlink(os.path.join(cache, name))
        except OSError:
            pass  # not ours to mend
