"""
Installing, starting, stopping and removing kmd as a service: what `kmctl service` and `kmctl install` do.

    one = find_deployment(home, os.environ)
    outcome = install_service(one)      # writes what is needed, starts kmd, waits until it answers
    outcome = remove_service(one)       # stops it and takes all of that away again; data stays

Both may be called any number of times: when there is nothing to do, `outcome.changed` is False.
"""

import getpass
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kmctl.supervisors.by_km import ByKm
from kmctl.supervisors.launchd import Launchd
from kmctl.supervisors.plan import Answered, Deployment, Kind, State, Supervisor, WriteFile, pick_environ, pick_label
from kmctl.supervisors.process import holder_pid, stop_daemon, wait_until_up
from kmctl.supervisors.steps import carry_out, run_words
from kmctl.supervisors.systemd import SYSTEMCTL, Systemd
from kmctl.supervisors.templates import read_template
from kmctl.supervisors.windows_task import WindowsTask
from kmd.config import load_config
from kmd.errors import KilometersError
from kmd.paths import MEETING_DIR, find_places

INSTALL_HINT = "'kmctl service install' sets one up; 'kmd' alone runs it in the foreground"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was done. pid: of the kmd that runs now. stopped_pid: of one that was ended."""

    kind: Kind
    changed: bool
    files: tuple[Path, ...] = ()
    pid: int | None = None
    stopped_pid: int | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """How things are: who keeps kmd running (None: nobody), what that one says, and the kmd that runs."""

    kind: Kind | None
    state: State
    pid: int | None
    log_file: Path | None


def find_deployment(home: Path | None, environ: Mapping[str, str]) -> Deployment:
    """The deployment that `--home` and *environ* mean, run by this interpreter. Raises KilometersError."""
    places = find_places(home, environ)
    has_home = bool(home or environ.get("KM_HOME"))
    if not sys.executable:
        raise KilometersError("this interpreter does not know its own path", hint="run kmctl by its full path")
    user_home = Path.home()
    program = (sys.executable, "-P", "-m", "kmd", *(("--home", str(places.meeting_dir)) if has_home else ()))
    return Deployment(
        places=places,
        label=pick_label(places, user_home / MEETING_DIR),
        program=program,
        environ=pick_environ(environ, has_home=has_home),
        user_home=user_home,
        user=read_user(environ, sys.platform),
        uid=os.geteuid() if hasattr(os, "geteuid") else 0,
    )


def read_user(environ: Mapping[str, str], platform: str) -> str:
    """This user's name; on Windows with the domain, as a local account may have the same name."""
    name, domain = environ.get("USERNAME") or getpass.getuser(), environ.get("USERDOMAIN")
    return f"{domain}\\{name}" if domain and platform == "win32" else name


def open_supervisor(kind: Kind) -> Supervisor:
    """The supervisor of this kind, with its templates. Raises KilometersError: a template is missing."""
    match kind:
        case Kind.SYSTEMD:
            return Systemd(read_template("systemd/kmd.socket"), read_template("systemd/kmd.service"))
        case Kind.LAUNCHD:
            return Launchd(read_template("launchd/kmd.plist"))
        case Kind.TASK:
            return WindowsTask(read_template("windows/kmd.xml"))
        case Kind.KM:
            return ByKm()


def native_kind(platform: str) -> Kind:
    """The service manager that *platform* (`sys.platform`) has, where it runs."""
    return {"darwin": Kind.LAUNCHD, "win32": Kind.TASK}.get(platform, Kind.SYSTEMD)


def detect_kind(platform: str, ask: Callable[[Sequence[str]], Answered]) -> Kind:
    """Who can keep kmd running here: the platform's own, or km where no service manager of this user answers."""
    kind = native_kind(platform)
    if kind is Kind.SYSTEMD and ask((*SYSTEMCTL, "show", "--property=Version")).code != 0:
        return Kind.KM
    return kind


def check_kind(kind: Kind, platform: str) -> Kind:
    """*kind*, which the user has chosen. Raises KilometersError: it cannot start kmd on *platform*. Pure."""
    if kind is Kind.KM and platform == "win32":
        hint = "without --manager the task scheduler does"
        raise KilometersError("km does not start kmd on Windows", hint=hint)
    return kind


def find_installed(one: Deployment) -> list[Supervisor]:
    """Those whose files are there: at most one, unless somebody has put them there by hand."""
    kinds = dict.fromkeys((native_kind(sys.platform), Kind.KM))
    return [supervisor for kind in kinds if (supervisor := open_supervisor(kind)).is_installed(one)]


def install_service(one: Deployment, kind: Kind | None = None) -> Outcome:
    """
    Have kmd started at login (or by km), and now. A kmd that already runs is ended and started anew by its
    supervisor. *kind* None: whatever this machine has. Raises KilometersError.
    """
    check_config(one)
    chosen = open_supervisor(check_kind(kind, sys.platform) if kind else detect_kind(sys.platform, run_words))
    plan = chosen.plan_install(one)
    others = [other for other in find_installed(one) if other.kind != chosen.kind]
    pid = holder_pid(one.places.lock_file)
    if pid and not others and all(is_written(step) for step in plan if isinstance(step, WriteFile)):
        return Outcome(chosen.kind, changed=False, files=chosen.files(one), pid=pid)
    for other in others:
        carry_out(other.plan_remove(one))
    if chosen.is_installed(one):
        carry_out(chosen.plan_stop(one))
    stopped = stop_daemon(one.places)
    carry_out(plan)
    return Outcome(
        chosen.kind, changed=True, files=chosen.files(one), pid=wait_until_up(one.places), stopped_pid=stopped
    )


def check_config(one: Deployment) -> None:
    """Raises ConfigError: kmd could not start with this configuration, and nobody would see why."""
    load_config(one.places.config_file, {})


def is_written(step: WriteFile) -> bool:
    """Whether the file says that already."""
    try:
        return step.path.read_text(encoding=step.encoding) == step.text
    except (OSError, UnicodeError):
        return False


def remove_service(one: Deployment) -> Outcome:
    """Take away whatever starts kmd, and end it. Configuration and data stay. Raises KilometersError."""
    installed = find_installed(one)
    pid = holder_pid(one.places.lock_file)
    for supervisor in installed:
        carry_out(supervisor.plan_remove(one))
    if installed:
        stop_daemon(one.places)
    kind = installed[0].kind if installed else native_kind(sys.platform)
    files = tuple(path for supervisor in installed for path in supervisor.files(one))
    return Outcome(kind, changed=bool(installed), files=files, stopped_pid=pid if installed else None)


def start_service(one: Deployment) -> Outcome:
    """Start kmd through its supervisor, unless it runs. Raises KilometersError: none is installed, or it fails."""
    supervisor = installed_one(one)
    if pid := holder_pid(one.places.lock_file):
        return Outcome(supervisor.kind, changed=False, pid=pid)
    check_config(one)
    carry_out(supervisor.plan_start(one))
    return Outcome(supervisor.kind, changed=True, pid=wait_until_up(one.places))


def stop_service(one: Deployment) -> Outcome:
    """End kmd, and have nobody start it before `start_service` or, with a service manager, the next login."""
    installed = find_installed(one)
    pid = holder_pid(one.places.lock_file)
    for supervisor in installed:
        carry_out(supervisor.plan_stop(one))
    stop_daemon(one.places)
    kind = installed[0].kind if installed else Kind.KM
    return Outcome(kind, changed=pid is not None, stopped_pid=pid)


def restart_service(one: Deployment) -> Outcome:
    """End kmd and start it again. Raises KilometersError: no service is installed, or it fails."""
    installed_one(one)
    check_config(one)
    stopped = stop_service(one)
    started = start_service(one)
    return Outcome(started.kind, changed=True, pid=started.pid, stopped_pid=stopped.stopped_pid)


def installed_one(one: Deployment) -> Supervisor:
    """The supervisor that is installed. Raises KilometersError: there is none."""
    installed = find_installed(one)
    if not installed:
        raise KilometersError("kmd is not installed as a service", hint=INSTALL_HINT)
    return installed[0]


def read_service(one: Deployment) -> Report:
    """How things are. Raises KilometersError."""
    pid = holder_pid(one.places.lock_file)
    installed = find_installed(one)
    if not installed:
        return Report(None, State(installed=False), pid, None)
    supervisor = installed[0]
    question = supervisor.question(one)
    answer = run_words(question) if question else Answered(0, "", "")
    has_journal = bool(supervisor.log_words(one, 1, follow=False))
    return Report(supervisor.kind, supervisor.parse_state(one, answer), pid, None if has_journal else one.log_file)
