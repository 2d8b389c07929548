"""The edge: carrying out a plan's steps. Everything that a supervisor does to the machine happens here."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import assert_never

from kmctl.supervisors.plan import Answered, Plan, RemoveFile, Run, Spawn, Step, WriteFile
from kmd.config import write_private
from kmd.errors import KilometersError

RUN_TIMEOUT_S = 120.0
"""systemctl waits until kmd is ready, and that may include a look through the outbox."""
NOT_FOUND = 127
NAMES_OF_USER: tuple[str, ...] = ("HOME", "PATH", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR")
if sys.platform == "win32":
    NAMES_OF_USER += ("USERPROFILE", "USERNAME", "USERDOMAIN", "APPDATA", "LOCALAPPDATA", "SYSTEMROOT", "TEMP", "TMP")
LET_GO = '"$@" </dev/null >/dev/null 2>&1 &'
"""For sh: the process belongs to nobody here, and holds nothing of ours."""


def carry_out(plan: Plan) -> None:
    """Do *plan*'s steps in order. Raises KilometersError at the first that cannot be done."""
    for step in plan:
        carry_out_step(step)


def carry_out_step(step: Step) -> None:
    """Do one step. Raises KilometersError."""
    match step:
        case WriteFile(path, text, encoding):
            try:
                write_private(path, text, encoding)
            except OSError as exc:
                hint = "check who owns its folder"
                raise KilometersError(f"{path}: cannot be written ({exc.strerror})", hint=hint) from exc
        case RemoveFile(path):
            try:
                path.unlink(missing_ok=True)
            except OSError as exc:
                raise KilometersError(f"{path}: cannot be removed ({exc.strerror})", hint="remove it by hand") from exc
        case Run(words, may_fail):
            answer = run_words(words)
            if answer.code and not may_fail:
                raise refused(words, answer)
        case Spawn(words, environ):
            spawn(words, environ)
        case _:
            assert_never(step)


def run_words(words: Sequence[str]) -> Answered:
    """Run *words* and wait. Raises KilometersError when it takes longer than RUN_TIMEOUT_S."""
    try:
        done = subprocess.run(  # noqa: S603 - words of ours, and no shell
            list(words),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=RUN_TIMEOUT_S,
            env=supervisor_environ(),
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        hint = "see 'kmctl service logs'"
        raise KilometersError(f"'{' '.join(words[:3])}' has not ended in {RUN_TIMEOUT_S:.0f} s", hint=hint) from exc
    except OSError as exc:
        return Answered(NOT_FOUND, "", exc.strerror or type(exc).__name__)
    return Answered(done.returncode, done.stdout, done.stderr)


def supervisor_environ() -> dict[str, str]:
    """The environment, with the place of the user's service manager, which a bare ssh or sudo leaves out."""
    environ = dict(os.environ)
    if "XDG_RUNTIME_DIR" not in environ and sys.platform != "win32":
        folder = f"/run/user/{os.geteuid()}"
        if os.path.isdir(folder):  # noqa: PTH112 - one look, no object
            environ["XDG_RUNTIME_DIR"] = folder
    return environ


def refused(words: Sequence[str], answer: Answered) -> KilometersError:
    """The error for a program that ended with another code than 0: its own first line."""
    lines = [line.strip() for line in (answer.err or answer.out).splitlines() if line.strip()]
    said = f": {lines[0]}" if lines else ""
    hint = "see 'kmctl service logs'"
    if sys.platform != "win32":
        hint += "; 'kmctl service install --manager km' does without a service manager"
    return KilometersError(f"'{' '.join(words)}' failed ({answer.code}){said}", hint=hint)


def spawn(words: Sequence[str], environ: Sequence[tuple[str, str]]) -> None:
    """Start *words* on their own: with nothing of ours open, in no folder of ours. Raises KilometersError."""
    known = {name: os.environ[name] for name in NAMES_OF_USER if name in os.environ}
    try:
        let_go(words, {**known, **dict(environ)})
    except (OSError, subprocess.SubprocessError) as exc:
        raise KilometersError(f"kmd could not be started ({type(exc).__name__})", hint="try 'kmd' by hand") from exc


if sys.platform == "win32":

    def let_go(words: Sequence[str], environ: Mapping[str, str]) -> None:
        """Without a console, and in no job that would end it. Raises OSError."""
        flags = subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP
        null = subprocess.DEVNULL
        subprocess.Popen(  # noqa: S603 - words of ours, and no shell
            list(words), cwd=Path.home(), env=environ, stdin=null, stdout=null, stderr=null, creationflags=flags
        )

else:

    def let_go(words: Sequence[str], environ: Mapping[str, str]) -> None:
        """In a session of its own, with `/` as its folder. Raises OSError, SubprocessError."""
        subprocess.run(  # noqa: S603 - the words are arguments of a fixed line
            ["/bin/sh", "-c", LET_GO, "sh", *words],
            cwd="/",
            env=environ,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            check=True,
            timeout=RUN_TIMEOUT_S,
        )
