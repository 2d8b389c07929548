"""
`km`, as it is run: the console script, or quicker `python -I -S launch.py`.

What it does is in kmd.shim.start. A script is compiled each time that it is run, which for that would take longer than
everything else it does before the server; a module is compiled once.
"""

import os
import sys


def main() -> None:
    """The `km` command. Never returns."""
    if sys.platform == "win32":
        from kmd.shim.windows.parent import main as start  # noqa: PLC0415 - as a script this has to say first where it lies
    else:
        from kmd.shim.start import main as start  # noqa: PLC0415
    start()


if __name__ == "__main__":
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__)))))
    main()
