"""
The stage: a probe server is started bare or behind a *wrapper*, played with, and what was seen is a *record*.

A *scenario* plays the client and returns the record; the same scenario on two stages must give equal records.
Every wait has a bound, and what a scenario leaves behind is looked for (and ended) by a mark in its environment.
"""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.processes import LAUNCH, command, wait_for
from tests.transparency.client import WAIT_S, Client, Record

Wrap = Callable[[Path, list[str]], list[str]]
"""(meeting place, the server's words) -> the words that a client would start."""

PROBES = Path(__file__).with_name("probes.py")
LEFT_S = 3.0
"""So soon after both ends are gone nothing of ours may be there any more."""


def bare(home: Path, words: list[str]) -> list[str]:
    """The server itself: what every record is compared with."""
    return words


def km(home: Path, words: list[str]) -> list[str]:
    """km as `kmctl install` writes it."""
    return [sys.executable, "-I", "-S", str(LAUNCH), "--home", str(home), "--", *words]


def km_stderr(home: Path, words: list[str]) -> list[str]:
    """km that captures stderr, too."""
    return [sys.executable, "-I", "-S", str(LAUNCH), "--home", str(home), "--stderr", "--", *words]


def km_strict(home: Path, words: list[str]) -> list[str]:
    """km as an auditor wants it."""
    return [sys.executable, "-I", "-S", str(LAUNCH), "--home", str(home), "--strict", "--", *words]


def km_script(home: Path, words: list[str]) -> list[str]:
    """km as a person types it."""
    return [command("km"), "--home", str(home), "--", *words]


@dataclass(frozen=True, slots=True)
class Scenario:
    """`act` plays the client on a stage and returns the record."""

    name: str
    act: Callable[["Stage"], Record]


SCENARIOS: dict[str, Scenario] = {}
"""All of them, by name; the modules of `scenarios` fill it."""


def scenario(act: Callable[["Stage"], Record]) -> Callable[["Stage"], Record]:
    """Register *act* under its function's name."""
    name = act.__name__
    SCENARIOS[name] = Scenario(name, act)
    return act


def cases(**arguments: Any) -> Callable[[Callable[["Stage", Any], Record]], Callable[["Stage", Any], Record]]:  # noqa: ANN401
    """Register one scenario per keyword, `name[keyword]`; the function gets the keyword's value."""

    def register(act: Callable[["Stage", Any], Record]) -> Callable[["Stage", Any], Record]:
        for label, argument in arguments.items():
            name = f"{act.__name__}[{label}]"
            SCENARIOS[name] = Scenario(name, partial(act_on, act, argument))
        return act

    return register


def act_on(act: Callable[["Stage", Any], Record], argument: object, stage: "Stage") -> Record:
    return act(stage, argument)


def observe(act: Callable[["Stage"], Record], wrap: Wrap, folder: Path) -> Record:
    """Play one scenario behind *wrap* (`bare`: in front of nothing) in a folder of its own."""
    place = folder / wrap.__name__
    place.mkdir()
    with Stage(place, wrap) as stage:
        return {**act(stage), "left": stage.left()}


@dataclass(slots=True)
class Stage:
    """Where scenarios start their servers. `folder` is empty and theirs; `home` is where km looks for kmd."""

    folder: Path
    wrap: Wrap
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    _clients: list[Client] = field(default_factory=list)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def environ(self) -> dict[str, str]:
        """What MCP clients pass, more or less: no LANG, nothing of the virtual environment."""
        return {"PATH": os.environ["PATH"], "HOME": str(self.folder), "MARK": self.mark}

    def probe(self, name: str, *args: object, setup: str = "", **options: Any) -> Client:  # noqa: ANN401
        """Start a probe server."""
        return self.start([*probe_words(name), *map(str, args)], setup=setup, **options)

    def start(self, words: list[str], setup: str = "", **options: Any) -> Client:  # noqa: ANN401
        """Start *words* as a client does; *setup* is a shell's preparation of the process (ulimit, trap, …)."""
        wrapped = self.wrap(self.home, words)
        if setup:
            wrapped = ["/bin/sh", "-c", f'{setup}; exec "$@"', "sh", *wrapped]
        return self.start_bare(wrapped, **options)

    def start_bare(self, words: list[str], **options: Any) -> Client:  # noqa: ANN401
        """Start exactly *words*, on pipes and with a client's environment unless *options* say otherwise."""
        given = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": self.environ}
        client = Client(subprocess.Popen(words, bufsize=0, **{**given, **options}))
        self._clients.append(client)
        return client

    def left(self, wait_s: float = LEFT_S) -> list[str]:
        """What is still there of this stage after *wait_s*, by name and state; empty is what should be."""
        deadline = time.monotonic() + wait_s
        while (found := self.running()) and time.monotonic() < deadline:
            time.sleep(0.005)
        return sorted(found.values())

    def running(self) -> dict[int, str]:
        """Processes that were started here, ours to reap or not: pid -> name and state."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid() and self._is_ours(entry):
                found[int(entry.name)] = name_and_state(int(entry.name))
        return found

    def _is_ours(self, process: Path) -> bool:
        try:
            words = process.joinpath("cmdline").read_bytes()
            return self.mark.encode() in process.joinpath("environ").read_bytes() or bytes(self.home) in words
        except OSError:
            return False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pid in self.running():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for client in self._clients:
            client.process.kill()
            client.process.wait(WAIT_S)
            client.close()


def probe_words(name: str) -> list[str]:
    """The words that start a probe server, bare."""
    return [sys.executable, "-I", "-S", str(PROBES), name]


def name_and_state(pid: int) -> str:
    """`name state`, as ps shows it."""
    try:
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
    except OSError:
        return "gone"
    return f"{name} {rest.split()[0]}"


def wait_state(pid: int, letter: str) -> str:
    """Wait until the process is in a state such as T (stopped) or Z (dead, not reaped)."""

    def state() -> str | None:
        now = name_and_state(pid).rpartition(" ")[2]
        return now if now == letter else None

    return wait_for(state, f"state {letter}", WAIT_S)
