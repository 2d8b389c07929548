"""
`km`, as it is run: the console script, or quicker `python -I -S launch.py`.

What it does is in kmd.shim.start. A script is compiled each time that it is run, which for that would take longer than
everything else it does before the server; a module is compiled once.
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def main() -> None:
    """The `km` command. Never returns."""
    try:
        start = load()
    except (EOFError, ValueError, TypeError):
        from kmd.shim.torn import pass_over_bytecode  # noqa: PLC0415 - the server must start all the same

        pass_over_bytecode()
        start = load()
    start()


def load() -> "Callable[[], None]":
    """What this system starts with. Imported here: as a script this has to say first where it lies."""
    if sys.platform == "win32":
        from kmd.shim.windows.parent import main as start  # noqa: PLC0415
    else:
        from kmd.shim.start import main as start  # noqa: PLC0415
    return start


if __name__ == "__main__":
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__)))))
    main()
