"""
kmd as systemd user units: a socket unit that is there from login on, and the service behind it. Pure.

Sources: systemd.socket(5), systemd.service(5), systemd.syntax(7) for quoting, systemd.unit(5) for `%`.
"""

from dataclasses import dataclass
from pathlib import Path

from kmctl.supervisors.plan import Answered, Deployment, Kind, Plan, RemoveFile, Run, State, WriteFile, check_lines
from kmd.errors import KilometersError

SYSTEMCTL = ("systemctl", "--user")
SOCKET_PATH_MAX_BYTES = 107
"""sockaddr_un has 108 bytes, and systemd wants the whole path and its final NUL in it."""
PROPERTIES = "Id,LoadState,ActiveState,UnitFileState"


@dataclass(frozen=True, slots=True)
class Systemd:
    """The user's own service manager. Takes the texts of packaging/systemd/."""

    socket_template: str
    service_template: str
    kind: Kind = Kind.SYSTEMD

    def files(self, one: Deployment) -> tuple[Path, ...]:
        folder = one.user_home / ".config" / "systemd" / "user"
        return tuple(folder / unit for unit in units(one))

    def is_installed(self, one: Deployment) -> bool:
        return any(path.exists() for path in self.files(one))

    def plan_install(self, one: Deployment) -> Plan:
        """Raises KilometersError: a path that no unit can hold."""
        check_lines(one)
        socket_file, service_file = self.files(one)
        return (
            WriteFile(socket_file, self.render_socket(one)),
            WriteFile(service_file, self.render_service(one)),
            Run((*SYSTEMCTL, "daemon-reload")),
            Run((*SYSTEMCTL, "enable", *units(one))),
            *self.plan_start(one),
        )

    def plan_remove(self, one: Deployment) -> Plan:
        return (
            Run((*SYSTEMCTL, "disable", "--now", *units(one)), may_fail=True),
            *(RemoveFile(path) for path in self.files(one)),
            Run((*SYSTEMCTL, "daemon-reload"), may_fail=True),
            Run((*SYSTEMCTL, "reset-failed", *units(one)), may_fail=True),
        )

    def plan_start(self, one: Deployment) -> Plan:
        return (
            Run((*SYSTEMCTL, "reset-failed", *units(one)), may_fail=True),
            Run((*SYSTEMCTL, "start", *units(one))),
        )

    def plan_stop(self, one: Deployment) -> Plan:
        return (Run((*SYSTEMCTL, "stop", *units(one))),)

    def question(self, one: Deployment) -> tuple[str, ...]:
        return (*SYSTEMCTL, "show", f"--property={PROPERTIES}", *units(one))

    def parse_state(self, one: Deployment, answer: Answered) -> State:
        """From the two blocks of `systemctl show`, one per unit."""
        blocks = [parse_block(block) for block in answer.out.split("\n\n")]
        by_unit = {block.get("Id", ""): block for block in blocks}
        socket_unit, service_unit = (by_unit.get(unit, {}) for unit in units(one))
        return State(
            installed=service_unit.get("LoadState") == "loaded",
            starts_at_login=socket_unit.get("UnitFileState") == "enabled",
            runs=service_unit.get("ActiveState") in ("active", "reloading", "activating"),
            files=self.files(one),
        )

    def log_words(self, one: Deployment, lines: int, *, follow: bool) -> tuple[str, ...]:
        words = ("journalctl", "--user", f"--unit={one.label}.service", "--output=cat", f"--lines={lines}")
        return (*words, "--follow") if follow else (*words, "--no-pager")

    def render_socket(self, one: Deployment) -> str:
        """The socket unit. Raises KilometersError: a socket's path is longer than systemd can listen on."""
        text = self.socket_template
        for mark, path in (("@INTAKE@", one.places.socket), ("@CONTROL@", one.places.control_socket)):
            if len(str(path).encode("utf-8", "surrogateescape")) > SOCKET_PATH_MAX_BYTES:
                hint = "choose a shorter --home, or let km start kmd: kmctl service install --manager km"
                raise KilometersError(f"{path}: too long a path for a socket of systemd", hint=hint)
            text = text.replace(mark, escape_specifiers(str(path)))
        return text

    def render_service(self, one: Deployment) -> str:
        """The service unit."""
        environ = "\n".join(f"Environment={quote(f'{name}={value}')}" for name, value in one.environ)
        return (
            self.service_template.replace("@LABEL@", one.label)
            .replace("@COMMAND@", " ".join(quote(word).replace("$", "$$") for word in one.program))
            .replace("@ENVIRONMENT@\n", f"{environ}\n" if environ else "")
        )


def units(one: Deployment) -> tuple[str, str]:
    """The socket unit and the service unit."""
    return f"{one.label}.socket", f"{one.label}.service"


def escape_specifiers(text: str) -> str:
    """systemd reads `%` as the start of a specifier."""
    return text.replace("%", "%%")


def quote(word: str) -> str:
    """A word in double quotes, as systemd.syntax(7) reads it back."""
    return '"' + escape_specifiers(word).replace("\\", "\\\\").replace('"', '\\"') + '"'


def parse_block(block: str) -> dict[str, str]:
    """`Name=value` lines."""
    pairs = (line.partition("=") for line in block.splitlines())
    return {name: value for name, _, value in pairs}
