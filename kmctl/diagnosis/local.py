"""Is kmd well on this machine? It runs, is of our version, has its files to itself, room, and a sound outbox."""

import os
import shutil
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kmctl.answers import Answer, Status, parse_part
from kmctl.daemon import ask
from kmctl.diagnosis.finding import Check, Finding, bad, note, ok
from kmctl.options import quote
from kmctl.supervisors.lifecycle import Report
from kmctl.supervisors.plan import Kind
from kmctl.supervisors.process import holder_pid
from kmctl.text import format_count, format_size
from kmd.config import Config, load_config
from kmd.errors import ConfigError, DaemonUnavailable, KilometersError
from kmd.keys import key_file
from kmd.paths import Places
from kmd.sqlite_release import is_safe, parse_version

LITTLE_ROOM_BYTES = 256 << 20
"""Below this other programs fail, too; kmd then keeps nothing new."""
LOG_LINES = 3
LOG_LOOK_BYTES = 16 << 10
OTHERS = 0o077


@dataclass(frozen=True, slots=True)
class Seen:
    """A file or folder as it was found. mode: None when it is not there."""

    path: Path
    mode: int | None
    uid: int

    @property
    def others_may(self) -> bool:
        return self.mode is not None and bool(stat.S_IMODE(self.mode) & OTHERS)


def look(path: Path) -> Seen:
    """Who may do what with *path*."""
    try:
        found = path.stat()
    except OSError:
        return Seen(path, None, -1)
    return Seen(path, found.st_mode, found.st_uid)


def check_config(places: Places, environ: Mapping[str, str]) -> tuple[Config | None, list[Finding]]:
    """The configuration, None when kmd could not use it, and what was found."""
    try:
        config = load_config(places.config_file, environ)
    except ConfigError as exc:
        return None, [bad(Check.CONFIG, str(exc), f"{exc.hint}; 'kmctl config edit' opens the file")]
    return config, [ok(Check.CONFIG, f"{places.config_file} can be used")]


if sys.platform == "win32":
    from kmd.private_dir import others_in

    def check_modes(places: Places) -> Iterator[Finding]:
        """Whether everything private is this user's alone: folders hand their access list on to what is in them."""
        faults = []
        for folder in dict.fromkeys((places.meeting_dir, places.state_dir, places.config_file.parent)):
            if folder.exists() and (others := others_in(folder)):
                faults.append(judge_access(folder, others))
        yield from faults or [ok(Check.MODES, "files and pipes are yours alone")]

else:

    def check_modes(places: Places) -> Iterator[Finding]:
        """Whether everything private is this user's alone."""
        return judge_modes(places, os.geteuid())


def judge_access(folder: Path, others: Sequence[str]) -> Finding:
    """A folder on Windows that *others* may get at. Pure."""
    what = f"{folder} is open to other users ({', '.join(others)})"
    return bad(Check.MODES, what, f'icacls "{folder}" /inheritance:r /grant:r "%USERNAME%:(OI)(CI)F"')


def judge_modes(places: Places, uid: int) -> Iterator[Finding]:
    """Whether owner and mode of everything private are as they should be for the user *uid*."""
    folders = [look(path) for path in (places.meeting_dir, places.state_dir)]
    names = (places.socket, places.control_socket, places.outbox_file, places.config_file, key_file(places.config_file))
    found = [*dict.fromkeys(folders), *(look(path) for path in names)]
    faults = [finding for seen in found if (finding := judge_mode(seen, uid))]
    yield from faults
    if not faults:
        yield ok(Check.MODES, "files and sockets are yours alone")


def judge_mode(seen: Seen, uid: int) -> Finding | None:
    """What is wrong with who may get at a file. Pure."""
    if seen.mode is None:
        return None
    if seen.uid != uid:
        return bad(Check.MODES, f"{seen.path} belongs to another user", f"sudo chown {uid} {quote(str(seen.path))}")
    if seen.others_may:
        wanted = "700" if stat.S_ISDIR(seen.mode) else "600"
        shown = f"{stat.S_IMODE(seen.mode):03o}"
        fix = f"chmod {wanted} {quote(str(seen.path))}"
        return bad(Check.MODES, f"{seen.path} is open to other users ({shown})", fix)
    return None


def ask_status(places: Places) -> tuple[Status | None, KilometersError | None]:
    """kmd's own report; else why there is none."""
    try:
        answer: Answer = ask(places.control_socket, {"op": "status"})
        return parse_part(answer, "status", Status), None
    except KilometersError as exc:
        return None, exc


def check_daemon(places: Places, report: Report, own_version: str) -> tuple[Status | None, list[Finding]]:
    """kmd's report, None when it does not answer, and what was found about the process."""
    status, trouble = ask_status(places)
    if status is None:
        assert trouble is not None  # noqa: S101 - one of the two
        pid = holder_pid(places.lock_file)
        if pid is not None and sys.platform != "win32" and not places.control_socket.exists():
            trouble = KilometersError(f"{places.control_socket} is gone")
        return None, [judge_silence(trouble, pid, report, last_log_lines(report.log_file))]
    findings = [ok(Check.KMD, f"kmd {status.daemon.version} runs (pid {status.daemon.pid})")]
    if sys.platform != "win32" and not places.socket.exists():  # a pipe is there as long as kmd is
        what = f"kmd runs, but km cannot find it: {places.socket} is gone"
        findings.append(bad(Check.KMD, what, "kmctl service restart"))
    return status, [*findings, *judge_daemon(status, own_version)]


def judge_silence(trouble: KilometersError, pid: int | None, report: Report, log: Sequence[str]) -> Finding:
    """A kmd that says nothing about itself. pid: of the one that holds the lock, None when none does. Pure."""
    fix = "kmctl service start" if report.state.installed else "kmctl service install"
    if pid is None and isinstance(trouble, DaemonUnavailable):
        return bad(Check.KMD, str(trouble), fix, log)
    if report.state.installed:
        fix = "kmctl service restart"
    elif pid:
        fix = f"kill {pid} && {fix}"
    return bad(Check.KMD, f"kmd runs{f' (pid {pid})' if pid else ''}, but cannot be asked: {trouble}", fix, log)


def last_log_lines(path: Path | None) -> list[str]:
    """What kmd said last, where it has a log file."""
    if path is None:
        return []
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_LOOK_BYTES))
            return file.read().decode("utf-8", "replace").splitlines()[-LOG_LINES:]
    except OSError:
        return []


def judge_daemon(status: Status, own_version: str) -> Iterator[Finding]:
    """What kmd says of itself. Pure."""
    if status.daemon.version != own_version:
        what = f"kmd is {status.daemon.version}, kmctl and km are {own_version}"
        yield bad(Check.VERSION, what, "kmctl service restart")
    else:
        yield ok(Check.VERSION, "kmd, km and kmctl are of one version")
    sqlite = status.daemon.sqlite
    try:
        safe = sqlite is None or is_safe(parse_version(sqlite))
    except ValueError:
        safe = True  # a newer kmd may say more than numbers
    if not safe:
        what = f"SQLite {sqlite} can lose committed transactions (the WAL-reset bug)"
        yield bad(Check.SQLITE, what, "pip install --upgrade pysqlite3, then kmctl service restart")
    else:
        yield ok(Check.SQLITE, f"SQLite {sqlite} is sound")


def judge_outbox(status: Status) -> Iterator[Finding]:
    """What kmd says of its outbox. Pure."""
    outbox = status.outbox
    if outbox.last_error:
        fix = "free some disk space; if there is enough, look for disk errors in the system's log"
        yield bad(Check.OUTBOX, f"the outbox cannot be written: {outbox.last_error}", fix)
    else:
        yield ok(Check.OUTBOX, f"{format_count(outbox.events, 'event')} in the outbox")
    if outbox.gap_bytes:
        what = f"{outbox.gap_bytes:,} bytes of traffic were not captured"
        fix = "give it more room (kmctl config set outbox.max_bytes N) or find out why kmd was away: kmctl service logs"
        yield bad(Check.CAPTURE, what, fix)
    refused = sum(one.quarantined for one in status.destinations)
    if refused:
        what = f"{format_count(refused, 'event')} refused by a server"
        yield bad(Check.QUARANTINE, what, "kmctl quarantine list")


def check_disk(places: Places, config: Config, outbox_bytes: int) -> Finding:
    """Whether there is room for all that the outbox may take."""
    folder = places.state_dir
    while not folder.exists():
        folder = folder.parent
    return judge_room(shutil.disk_usage(folder).free, config.outbox_max_bytes - outbox_bytes)


def judge_room(free_bytes: int, wanted_bytes: int) -> Finding:
    """free: on the disk. wanted: what the outbox may still take. Pure."""
    if free_bytes < LITTLE_ROOM_BYTES:
        return bad(Check.DISK, f"only {format_size(free_bytes)} are free on the disk", "free some disk space")
    if free_bytes < wanted_bytes:
        what = f"the outbox may take {format_size(wanted_bytes)} more, but only {format_size(free_bytes)} are free"
        return bad(Check.DISK, what, "free some disk space, or: kmctl config set outbox.max_bytes N")
    return ok(Check.DISK, f"{format_size(free_bytes)} are free")


def judge_service(report: Report) -> Finding:
    """Whether kmd will be there after the next login. Pure."""
    if report.kind is None:
        return note(Check.SERVICE, "nobody starts kmd", "kmctl service install")
    if report.kind is not Kind.KM and not report.state.starts_at_login:
        return bad(Check.SERVICE, f"{report.kind} does not start kmd at login", "kmctl service install")
    if report.kind is Kind.KM and not report.state.files:
        return note(Check.SERVICE, "kmd was stopped, and km does not start it", "kmctl service start")
    return ok(Check.SERVICE, f"kmd is started by {report.kind}")


def check_local(
    places: Places, environ: Mapping[str, str], report: Report, own_version: str
) -> tuple[Config | None, Status | None, Sequence[Finding]]:
    """Everything about kmd: its configuration and report, where they can be had, and what was found."""
    config, findings = check_config(places, environ)
    status, more = check_daemon(places, report, own_version)
    findings += [*more, judge_service(report), *check_modes(places)]
    if status is not None:
        findings += judge_outbox(status)
    if config is not None:
        findings.append(check_disk(places, config, status.outbox.bytes if status else 0))
    return config, status, findings
