"""
kmd as a scheduled task: started at log-on, and again when it fails. Pure.

Sources: Microsoft's Task Scheduler schema ([MS-TSCH]) and schtasks. Not run on Windows yet (docs/service.md).
"""

import csv
import subprocess
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

from kmctl.supervisors.plan import Answered, Deployment, Kind, Plan, RemoveFile, Run, State, WriteFile, check_lines

FOLDER = "Kilometers"
NAMESPACE = "http://schemas.microsoft.com/windows/2004/02/mit/task"


@dataclass(frozen=True, slots=True)
class WindowsTask:
    """Windows' task scheduler. Takes the text of packaging/windows/kmd.xml."""

    template: str
    kind: Kind = Kind.TASK

    def files(self, one: Deployment) -> tuple[Path, ...]:
        return (one.places.state_dir / f"{one.label}.task.xml",)

    def is_installed(self, one: Deployment) -> bool:
        return self.files(one)[0].exists()

    def plan_install(self, one: Deployment) -> Plan:
        check_lines(one)
        (path,) = self.files(one)
        return (
            WriteFile(path, self.render(one), encoding="utf-16"),  # the only encoding that every schtasks reads
            Run(("schtasks", "/Create", "/TN", task_name(one), "/XML", str(path), "/F")),
            *self.plan_start(one),
        )

    def plan_remove(self, one: Deployment) -> Plan:
        (path,) = self.files(one)
        return (
            Run(("schtasks", "/Delete", "/TN", task_name(one), "/F"), may_fail=True),
            RemoveFile(path),
        )

    def plan_start(self, one: Deployment) -> Plan:
        return (Run(("schtasks", "/Run", "/TN", task_name(one))),)

    def plan_stop(self, _one: Deployment) -> Plan:
        """Nothing: `schtasks /End` would kill kmd. It is asked to end, does so with 0, and is not started again."""
        return ()

    def question(self, one: Deployment) -> tuple[str, ...]:
        return ("schtasks", "/Query", "/TN", task_name(one), "/FO", "CSV", "/NH")

    def parse_state(self, one: Deployment, answer: Answered) -> State:
        """From `"\\Kilometers\\kmd","N/A","Running"`; the words are the system's language, so only English counts."""
        rows = list(csv.reader(answer.out.splitlines()))
        there = answer.code == 0
        runs = bool(there and rows and rows[0] and rows[0][-1] == "Running") or None
        return State(installed=there, starts_at_login=there, runs=runs, files=self.files(one))

    def log_words(self, _one: Deployment, _lines: int, *, follow: bool) -> tuple[str, ...]:  # noqa: ARG002
        return ()

    def render(self, one: Deployment) -> str:
        """The task's XML with the user, the program and its arguments."""
        ET.register_namespace("", NAMESPACE)
        task = ET.fromstring(self.template.partition("?>")[2])  # noqa: S314 - our own template
        for user in task.iter(f"{{{NAMESPACE}}}UserId"):
            user.text = one.user
        command = task.find(f".//{{{NAMESPACE}}}Command")
        arguments = task.find(f".//{{{NAMESPACE}}}Arguments")
        if command is None or arguments is None:
            raise ValueError("the template has no Command and Arguments")
        command.text = windowless(one.program[0])
        # A task has no environment of its own; what kmd needs of it is in the registry's, which it gets.
        arguments.text = subprocess.list2cmdline([*one.program[1:], "--log-file", str(one.log_file)])
        return '<?xml version="1.0" encoding="UTF-16"?>\n' + ET.tostring(task, encoding="unicode") + "\n"


def windowless(python: str) -> str:
    """`pythonw.exe` beside `python.exe`: no console window stands open for as long as the user is logged on."""
    stem, dot, suffix = python.rpartition(".")
    return f"{stem}w.{suffix}" if dot and suffix.lower() == "exe" and stem.lower().endswith("python") else python


def task_name(one: Deployment) -> str:
    """The task's path in the scheduler's library."""
    return f"\\{FOLDER}\\{one.label}"
