"""
kmd without a service manager: `km` starts it when it is away. Pure, but for the look whether the file is there.

The *autostart file* in the meeting place is the user's leave to do so, and says with which words; kmd.shim.starter
reads it. Without it, km never starts anything. `kmctl service stop` puts it aside, so that km does not undo that.
"""

from dataclasses import dataclass
from pathlib import Path

from kmctl.supervisors.plan import Answered, Deployment, Kind, Plan, RemoveFile, Spawn, State, WriteFile, check_lines

AUTOSTART = "kmd.autostart"
STOPPED = "kmd.autostart.off"
"""Both are known to kmd.shim.starter; a test holds the two together."""
HEAD = "# With this km starts kmd when it is away. 'kmctl service stop' puts it aside, 'remove' takes it away."


@dataclass(frozen=True, slots=True)
class ByKm:
    """No supervisor: each relay looks."""

    kind: Kind = Kind.KM

    def files(self, one: Deployment) -> tuple[Path, ...]:
        return (one.places.meeting_dir / AUTOSTART,)

    def is_installed(self, one: Deployment) -> bool:
        return any((one.places.meeting_dir / name).exists() for name in (AUTOSTART, STOPPED))

    def plan_install(self, one: Deployment) -> Plan:
        return self.plan_start(one)

    def plan_remove(self, one: Deployment) -> Plan:
        return tuple(RemoveFile(one.places.meeting_dir / name) for name in (AUTOSTART, STOPPED))

    def plan_start(self, one: Deployment) -> Plan:
        check_lines(one)
        folder = one.places.meeting_dir
        return (
            WriteFile(folder / AUTOSTART, render_autostart(one)),
            RemoveFile(folder / STOPPED),
            Spawn(program(one), one.environ),
        )

    def plan_stop(self, one: Deployment) -> Plan:
        folder = one.places.meeting_dir
        return (WriteFile(folder / STOPPED, f"{HEAD}\n"), RemoveFile(folder / AUTOSTART))

    def question(self, _one: Deployment) -> tuple[str, ...]:
        return ()

    def parse_state(self, one: Deployment, _answer: Answered) -> State:
        (path,) = self.files(one)
        return State(installed=self.is_installed(one), starts_at_login=None, files=(path,) if path.exists() else ())

    def log_words(self, _one: Deployment, _lines: int, *, follow: bool) -> tuple[str, ...]:  # noqa: ARG002
        return ()


def program(one: Deployment) -> tuple[str, ...]:
    """kmd with a file to log to: nobody reads its stderr."""
    return (*one.program, "--log-file", str(one.log_file))


def render_autostart(one: Deployment) -> str:
    """One line for each variable and each word of the command."""
    lines = [HEAD, *(f"env {name}={value}" for name, value in one.environ), *(f"word {word}" for word in program(one))]
    return "\n".join(lines) + "\n"
