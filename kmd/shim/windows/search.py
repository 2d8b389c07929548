r"""
Finding the program that a client's configuration names, as Windows users expect it: on PATH, with the extensions of
PATHEXT. Pure: what is on the disk is asked through *is_file*.

A name without a folder is looked up in the folders of PATH, then in the current one (unless
NoDefaultCurrentDirectoryInExePath is set, as cmd.exe has it). cmd.exe looks in the current one first; a project must
not put its own `npx.cmd` before the user's. A name without an extension is never taken as it is when it is looked up:
beside `npx.cmd` lies `npx`, a script for another system.
"""

import ntpath
from collections.abc import Callable, Mapping

PROGRAMS, BATCHES = (".com", ".exe"), (".bat", ".cmd")
"""What Windows starts by itself, and what cmd.exe runs. The rest of PATHEXT (.js, .vbs, .msc) opens by association."""
DEFAULT_PATHEXT = ".COM;.EXE;.BAT;.CMD"
NO_CURRENT_FOLDER = "NODEFAULTCURRENTDIRECTORYINEXEPATH"


def find_program(name: str, environ: Mapping[str, str], folder: str, is_file: Callable[[str], bool]) -> str | None:
    """
    The absolute path of what *name* starts, or None.

    environ: with names in capitals, as os.environ has them on Windows. folder: the current one.
    """
    return next((path for path in list_candidates(name, environ, folder) if is_file(path)), None)


def list_candidates(name: str, environ: Mapping[str, str], folder: str) -> list[str]:
    """Where it could be, best first."""
    name = strip_end(name.replace("/", "\\"))
    drive, rest = ntpath.splitdrive(name)
    if not rest.strip("\\") or ":" in rest or not is_drive(drive):
        return []  # a drive alone; a second stream of a file; no path at all
    extensions = list_extensions(environ)
    if drive or "\\" in rest:
        path = absolute(name, folder)
        return with_extensions(path, extensions, is_path=True) if is_rooted(path) else []
    folders = list_folders(environ.get("PATH", ""), folder)
    if NO_CURRENT_FOLDER not in environ:
        folders.append(folder)
    return [path for place in folders for path in with_extensions(ntpath.join(place, name), extensions, is_path=False)]


def list_extensions(environ: Mapping[str, str]) -> list[str]:
    """Those that can be started, in PATHEXT's order."""
    listed = [entry.strip().lower() for entry in (environ.get("PATHEXT") or DEFAULT_PATHEXT).split(";")]
    return [entry for entry in dict.fromkeys(listed) if entry in PROGRAMS or entry in BATCHES]


def list_folders(path: str, folder: str) -> list[str]:
    """Those of PATH, without the quotation marks that some have there; relative ones belong to *folder*."""
    stripped = (entry.strip().strip('"') for entry in path.split(";"))
    return [path for entry in stripped if entry and is_rooted(path := absolute(entry, folder))]


def with_extensions(path: str, extensions: list[str], *, is_path: bool) -> list[str]:
    """*path* itself when it says what it is, else with each extension; a full path may be a program of any name."""
    own = ntpath.splitext(path)[1].lower()
    if own in PROGRAMS or own in BATCHES:
        return [path]
    return [path + extension for extension in extensions] + ([path] if own or is_path else [])


def absolute(path: str, folder: str) -> str:
    return ntpath.normpath(ntpath.join(folder, path))


def is_rooted(path: str) -> bool:
    """Not so is what belongs to the current folder of another drive, which only the system knows."""
    return ntpath.splitdrive(path)[1].startswith("\\")


def is_drive(drive: str) -> bool:
    """None, a letter, or a share."""
    return not drive.endswith(":") or drive.startswith("\\\\") or (drive[:-1].isascii() and drive[:-1].isalpha())


def strip_end(path: str) -> str:
    """Windows passes over dots and blanks at the end of a name: `x.cmd. .` is a batch file (CVE-2024-43402)."""
    return path.rstrip(". ")


def is_batch(path: str) -> bool:
    """Whether cmd.exe runs it."""
    return strip_end(path).lower().endswith(BATCHES)
