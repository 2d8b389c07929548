"""
The words that put km in front of a server, and how they are known again. Pure.

What is written is the quick form, `PYTHON -I -S …/kmd/shim/launch.py OPTIONS -- COMMAND ARGS…`, not the
console script `km`. Both are absolute, but an entry's `env` may hold PYTHONPATH or PYTHONHOME for a server
written in Python: with -I they cannot break km's own interpreter, and -S saves the server half its delay.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

ISOLATED = ("-I", "-S")
LAUNCH_TAIL = re.compile(r"[/\\]kmd[/\\]shim[/\\]launch\.py$")
KM = re.compile(r"(?:^|[/\\])km(?:\.exe)?$", re.IGNORECASE)
VALUE_OPTIONS = ("--name", "--home")
FLAG_OPTIONS = ("--stderr", "--strict")
BARE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@-]*")
COMMAND_LINE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@-]*\s+\S")
"""`npx -y server`: some clients hand it to a shell, which km is none of."""
AT_HOME = "~/"
PYTHON = re.compile(r"(?:python|pythonw|py|pip)[0-9.]*")
"""Commands that mean another program in each environment: they stay as they are written."""

NAME_MAX = 200
"""Characters of a server's name that go into the words; status and tables show fewer."""

Find = Callable[[str], str | None]
"""
The absolute path of a command on this user's PATH, or below the home directory for `~/…`.

None when there is none or it may mean another one.
"""


@dataclass(frozen=True, slots=True)
class Launcher:
    """How km is started from here. home: only when it is not the default one."""

    python: str
    launch: str
    home: str | None = None

    def start(self) -> tuple[str, ...]:
        """The words before km's options."""
        return (self.python, *ISOLATED, self.launch)

    def words(self, name: str, options: Sequence[str] = ()) -> tuple[str, ...]:
        """All words before the server's own command; *options* are kept ones, without --name and --home."""
        home = ("--home", self.home) if self.home else ()
        named = ("--name", tidy) if (tidy := tidy_name(name)) else ()
        return (*self.start(), *home, *named, *options, "--")


def tidy_name(name: str) -> str:
    """A server's name as an argument of a process can hold it: no NUL, no lone surrogate, not endless."""
    return name.replace("\0", "").encode("utf-8", "replace").decode("utf-8")[:NAME_MAX]


@dataclass(frozen=True, slots=True)
class Wrapped:
    """What was read from a wrapped entry. own: how many of its words are ours; options: without --name and --home."""

    own: int
    start: tuple[str, ...]
    name: str | None
    home: str | None
    options: tuple[str, ...]

    @property
    def quick(self) -> bool:
        """Whether it is the form that `kmctl install` writes; the other one was written by hand."""
        return len(self.start) > 1

    def is_current(self, launcher: Launcher) -> bool:
        """Whether `kmctl install` would write the same words, whatever name was chosen."""
        return not self.quick or (self.start == launcher.start() and self.home == launcher.home)


def read_wrapped(words: Sequence[str]) -> Wrapped | None:
    """What km does in *words* (command and arguments), None when it is not in front of a server there."""
    start = count_start(words)
    if not start:
        return None
    place = start
    end = list(words).index("--") if start > 1 and "--" in words else None
    options: dict[str, str] = {}
    kept: list[str] = []
    while place < len(words) and words[place].startswith("-") and words[place] != "--":
        option, equals, value = words[place].partition("=")
        place += 1
        if option in VALUE_OPTIONS:
            if not equals:
                value = words[place] if place < len(words) else ""
                place += 1
            options[option] = value
        elif option in FLAG_OPTIONS:
            kept.append(words[place - 1])
        elif end is not None:  # of a newer version: what stands before `--` behind our own file is ours
            kept += words[place - 1 : end]
            place = end
        else:
            return None
    dashes = place < len(words) and words[place] == "--"
    if place + dashes >= len(words) or (start == 1 and not dashes and place == start):
        return None
    return Wrapped(place + dashes, tuple(words[:start]), options.get("--name"), options.get("--home"), tuple(kept))


def count_start(words: Sequence[str]) -> int:
    """How many of *words* start km: `km`, or an interpreter, its flags and launch.py. 0 when they do not."""
    if not words:
        return 0
    if KM.search(words[0]):
        return 1
    flags = 1
    while flags < len(words) and words[flags] in ISOLATED:
        flags += 1
    return flags + 1 if flags < len(words) and LAUNCH_TAIL.search(words[flags]) else 0


def find_obstacle(words: Sequence[str]) -> str:
    """Why km cannot be put in front of *words* so that they go on meaning what they mean, empty when it can."""
    if not words:
        return ""
    if KM.search(words[0]) and read_wrapped(words) is None:
        return "is started by a km without '--'; if that is ours, write '--' before the server's own command"
    if COMMAND_LINE.match(words[0]):
        return "has a whole command line as its command; put all but the first word into args"
    return ""


def resolve_command(command: str, find: Find) -> str:
    """
    *command* as an absolute path where it is a bare name on PATH (npx, uvx) or begins with `~/`, else as it is.

    A client with windows has a poor PATH, and some expand `~` in a command and not in arguments. Other paths, `${…}`
    and `%…%` are the client's to expand.
    """
    if not BARE_NAME.fullmatch(command) and not command.startswith(AT_HOME):
        return command
    return find(command) or command
