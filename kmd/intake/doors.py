"""
The doors of kmd, one for each Role: Unix sockets, which a service manager may have opened, or named pipes on Windows.

The one place that chooses. Both sides give `take_passed` and `open_doors`; whoever comes in is a kmd.intake.peer.Peer.
"""

import sys

if sys.platform == "win32":
    from kmd.intake.named_pipe import open_doors, take_passed
else:
    from kmd.intake.local_socket import open_doors, take_passed

__all__ = ["open_doors", "take_passed"]
