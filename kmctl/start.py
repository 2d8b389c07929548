"""With which command the user starts kmd. The one home of that hint, worked out only when it is shown."""

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from kmctl.options import chosen_home, current_places, home_flag
from kmd.errors import KilometersError
from kmd.paths import Places


def start_command() -> str:
    """The words, with the `--home` of this command line, for the shell."""
    from kmctl.supervisors.lifecycle import find_deployment, find_installed  # the usual answer does not need them

    is_installed = is_deaf = False
    with suppress(KilometersError):
        is_installed = bool(find_installed(find_deployment(chosen_home(), os.environ)))
        is_deaf = is_unreachable(current_places())
    return f"{choose(is_installed=is_installed, has_manager=has_manager(), is_deaf=is_deaf)}{home_flag()}"


def is_unreachable(places: Places) -> bool:
    """Whether kmd runs and nobody can ask it: someone has deleted its socket."""
    from kmctl.supervisors.process import holder_pid

    return sys.platform != "win32" and not places.control_socket.exists() and holder_pid(places.lock_file) is not None


def choose(*, is_installed: bool, has_manager: bool, is_deaf: bool = False) -> str:
    """`kmd` itself only where nobody else would start it. is_deaf: it runs, to no avail. Pure."""
    if is_installed:
        return "kmctl service restart" if is_deaf else "kmctl service start"
    return "kmctl service install" if has_manager else "kmd"


def has_manager() -> bool:
    """Whether a service manager could start kmd; a look at a file, and not the question that `install` asks."""
    from kmctl.supervisors.lifecycle import native_kind
    from kmctl.supervisors.plan import Kind
    from kmctl.supervisors.steps import supervisor_environ

    return native_kind(sys.platform) is not Kind.SYSTEMD or runs_systemd(supervisor_environ())


def runs_systemd(environ: Mapping[str, str]) -> bool:
    """Whether this user's systemd runs: it has a socket of its own in the runtime folder."""
    folder = environ.get("XDG_RUNTIME_DIR")
    return bool(folder) and Path(folder or "", "systemd", "private").exists()
