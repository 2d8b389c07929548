"""
kmd as a LaunchAgent: started at login, and again whenever it fails. Pure.

Sources: launchd.plist(5), launchctl(1). Not run on a Mac yet (docs/service.md).
"""

import plistlib
import re
from dataclasses import dataclass
from pathlib import Path

from kmctl.supervisors.plan import Answered, Deployment, Kind, Plan, RemoveFile, Run, State, WriteFile, check_lines

DOMAIN = "dev.kilometers"
RUNNING = re.compile(r"^\s*state = running$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Launchd:
    """macOS's own. Takes the text of packaging/launchd/kmd.plist."""

    template: str
    kind: Kind = Kind.LAUNCHD

    def files(self, one: Deployment) -> tuple[Path, ...]:
        return (one.user_home / "Library" / "LaunchAgents" / f"{DOMAIN}.{one.label}.plist",)

    def is_installed(self, one: Deployment) -> bool:
        return self.files(one)[0].exists()

    def plan_install(self, one: Deployment) -> Plan:
        check_lines(one)
        (path,) = self.files(one)
        return (
            Run(("launchctl", "bootout", target(one)), may_fail=True),  # a loaded one keeps its old words
            WriteFile(path, self.render(one)),
            Run(("launchctl", "enable", target(one))),
            Run(("launchctl", "bootstrap", f"gui/{one.uid}", str(path))),
        )

    def plan_remove(self, one: Deployment) -> Plan:
        (path,) = self.files(one)
        return (Run(("launchctl", "bootout", target(one)), may_fail=True), RemoveFile(path))

    def plan_start(self, one: Deployment) -> Plan:
        (path,) = self.files(one)
        return (
            Run(("launchctl", "bootstrap", f"gui/{one.uid}", str(path)), may_fail=True),  # it may be loaded
            Run(("launchctl", "kickstart", target(one))),
        )

    def plan_stop(self, one: Deployment) -> Plan:
        # It ends with 0 on SIGTERM, and KeepAlive then leaves it be until the next login.
        return (Run(("launchctl", "kill", "SIGTERM", target(one)), may_fail=True),)

    def question(self, one: Deployment) -> tuple[str, ...]:
        return ("launchctl", "print", target(one))

    def parse_state(self, one: Deployment, answer: Answered) -> State:
        loaded = answer.code == 0
        runs = loaded and RUNNING.search(answer.out) is not None
        return State(installed=self.is_installed(one), starts_at_login=loaded, runs=runs, files=self.files(one))

    def log_words(self, _one: Deployment, _lines: int, *, follow: bool) -> tuple[str, ...]:  # noqa: ARG002
        return ()

    def render(self, one: Deployment) -> str:
        """The property list: the template's keys and what is this user's own."""
        agent = plistlib.loads(self.template.encode("utf-8"))
        agent |= {
            "Label": f"{DOMAIN}.{one.label}",
            "ProgramArguments": [*one.program, "--log-file", str(one.log_file)],
            "StandardErrorPath": str(one.log_file),  # what the interpreter says before kmd runs
        }
        if one.environ:
            agent["EnvironmentVariables"] = dict(one.environ)
        return plistlib.dumps(agent, sort_keys=False).decode("utf-8")


def target(one: Deployment) -> str:
    """How launchctl names it: in the login session of this user."""
    return f"gui/{one.uid}/{DOMAIN}.{one.label}"
