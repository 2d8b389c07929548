"""
What keeps kmd running, as values. Pure.

A *supervisor* is whoever starts kmd at login: systemd, launchd, Windows' task scheduler, or, where there is none of
them, `km` itself. A *deployment* says what is to be kept running. A *plan* is a list of *steps*, made by pure
code; only kmctl.supervisors.steps carries them out.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from kmd.errors import KilometersError
from kmd.paths import Places

ENVIRONMENT = ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "SSL_CERT_FILE", "SSL_CERT_DIR")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
"""What kmd must know of the user's environment: where its files are and how to get out. Nothing else goes along."""
LABEL = "kmd"
LABEL_HASH_CHARS = 8
"""Of the home's hash in the label of a service that is not the default one."""


class Kind(StrEnum):
    """Who starts kmd. `km`: each relay looks, and starts it when it is away."""

    SYSTEMD = "systemd"
    LAUNCHD = "launchd"
    TASK = "task"
    KM = "km"


@dataclass(frozen=True, slots=True)
class Deployment:
    """
    What is to be kept running.

    program: the words that start kmd, absolute. environ: what it needs of the user's environment. label: the
    service's name; the default home has `kmd`, another one a name of its own.
    """

    places: Places
    label: str
    program: tuple[str, ...]
    environ: tuple[tuple[str, str], ...]
    user_home: Path
    user: str
    uid: int

    @property
    def log_file(self) -> Path:
        """Where kmd writes what it has to say, where no journal takes it."""
        return self.places.state_dir / "kmd.log"


@dataclass(frozen=True, slots=True)
class WriteFile:
    """Put *text* at *path*, in one step, for this user alone."""

    path: Path
    text: str
    encoding: str = "utf-8"


@dataclass(frozen=True, slots=True)
class RemoveFile:
    """Take *path* away, if it is there."""

    path: Path


@dataclass(frozen=True, slots=True)
class Run:
    """Run *words*. may_fail: it only tidies up, or undoes what may not be done."""

    words: tuple[str, ...]
    may_fail: bool = False


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start *words* as a process of its own, with only *environ*, PATH and what names the user."""

    words: tuple[str, ...]
    environ: tuple[tuple[str, str], ...]


Step = WriteFile | RemoveFile | Run | Spawn
Plan = tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Answered:
    """How a program ended. code: 127 when there is no such program."""

    code: int
    out: str
    err: str


@dataclass(frozen=True, slots=True)
class State:
    """What a supervisor says of kmd. starts_at_login, runs: None where it cannot say."""

    installed: bool
    starts_at_login: bool | None = None
    runs: bool | None = None
    files: tuple[Path, ...] = field(default=())


class Supervisor(Protocol):
    """One way to keep kmd running. Everything is a plan or a question; `files` are those that it would write."""

    @property
    def kind(self) -> Kind: ...
    def files(self, one: Deployment) -> tuple[Path, ...]: ...
    def is_installed(self, one: Deployment) -> bool:
        """Whether its files are there (the one question that looks at the disk)."""
        ...

    def plan_install(self, one: Deployment) -> Plan: ...
    def plan_remove(self, one: Deployment) -> Plan: ...
    def plan_start(self, one: Deployment) -> Plan: ...
    def plan_stop(self, one: Deployment) -> Plan: ...
    def question(self, one: Deployment) -> tuple[str, ...]:
        """The words that ask for the state; empty where nothing needs to be asked."""
        ...

    def parse_state(self, one: Deployment, answer: Answered) -> State: ...
    def log_words(self, one: Deployment, lines: int, *, follow: bool) -> tuple[str, ...]:
        """The words that show what kmd has said; empty where it is in the deployment's log file."""
        ...


def pick_label(places: Places, default_meeting_dir: Path) -> str:
    """The service's name: `kmd`, or one that says which home."""
    if places.meeting_dir == default_meeting_dir:
        return LABEL
    digest = hashlib.sha256(str(places.meeting_dir).encode("utf-8", "surrogateescape")).hexdigest()
    return f"{LABEL}-{digest[:LABEL_HASH_CHARS]}"


def pick_environ(environ: Mapping[str, str], *, has_home: bool) -> tuple[tuple[str, str], ...]:
    """What of *environ* kmd is to have. With a home of its own (`--home`) the places do not depend on XDG_*."""
    names = [name for name in ENVIRONMENT if not (has_home and name.startswith("XDG_"))]
    for proxy in PROXIES:
        names += [proxy, proxy.lower()]
    return tuple((name, environ[name]) for name in names if environ.get(name))


def check_lines(one: Deployment) -> None:
    """Raises KilometersError: a path holds a line end, which no unit file can hold."""
    texts = [*one.program, str(one.places.meeting_dir), *(value for _, value in one.environ)]
    if any(not text.isprintable() for text in texts):
        hint = "choose a --home without line ends and control characters"
        raise KilometersError("a path or variable that kmd needs cannot stand in a service's file", hint=hint)
