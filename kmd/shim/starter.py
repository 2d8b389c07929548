"""
Starting kmd where no service manager does: each relay that finds kmd away looks here, and one of them starts it.

The *autostart file* in the meeting place is the user's leave, and holds the words (`kmctl service install` writes
it); without it nothing is ever started. The *lock* beside it is handed on to the kmd that is started, so it is held
for as long as that kmd lives: of twenty relays exactly one starts it, and none while it runs. What the lock's file
says, when and how often kmd was started, makes a kmd that always fails wait longer each time.
"""

import os
import time

AUTOSTART = "kmd.autostart"
LOCK = "kmd.autostart.lock"
AUTOSTART_MAX_BYTES = 64 << 10
"""A few paths and variables."""
BACKOFF_FIRST_S, BACKOFF_MAX_S = 1.0, 300.0
CALM_S = 600.0
"""A kmd that lived that long has not failed at its start: counting begins anew."""
NAMES_OF_USER = ("HOME", "PATH", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR")
"""What goes along of the environment. The rest may hold the wrapped server's keys, and kmd outlives it."""
OTHERS_MAY_WRITE = 0o022


def start_kmd(meeting: str) -> bool:
    """
    Start kmd if the user wants that and nobody has. Returns whether this call did. Never waits, never raises.

    Takes: the meeting place. Called in the main thread of a process without children: it ignores SIGCHLD from then
    on, so that a kmd that ends leaves no zombie.
    """
    try:
        text = read_private(os.path.join(meeting, AUTOSTART))
        words, environ = parse_autostart(text)
        return bool(words) and start_once(os.path.join(meeting, LOCK), words, environ)
    except (OSError, ValueError):
        return False


def read_private(path: str) -> str:
    """The text of this user's file at *path*. Raises OSError: there is none, or others may write to it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid() or status.st_mode & OTHERS_MAY_WRITE:
            raise PermissionError(path)
        return os.fsdecode(os.read(descriptor, AUTOSTART_MAX_BYTES))
    finally:
        os.close(descriptor)


def parse_autostart(text: str) -> tuple[list[str], dict[str, str]]:
    """The words and the variables, from lines `word …` and `env NAME=…`; others are comments. Pure."""
    words: list[str] = []
    environ: dict[str, str] = {}
    for line in text.splitlines():
        kind, _, value = line.partition(" ")
        if kind == "word":
            words.append(value)
        elif kind == "env":
            name, _, environ[name] = value.partition("=")
    return words, environ


def start_once(lock: str, words: list[str], environ: dict[str, str]) -> bool:
    """Start *words* unless a kmd that was started so lives, or has failed just now. Raises OSError."""
    import fcntl  # noqa: PLC0415 - only where km is to start kmd

    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        now_s = time.time()
        tries, started_s = parse_tries(os.pread(descriptor, 100, 0))
        since_s = now_s - started_s
        if since_s > CALM_S or since_s < 0:  # a clock that was set back must not mean for ever
            tries = 0
        elif since_s < delay_s(tries):
            return False
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d %.3f\n" % (tries + 1, now_s), 0)
        launch(words, environ, descriptor)
        return True
    finally:
        os.close(descriptor)


def parse_tries(text: bytes) -> tuple[int, float]:
    """How often kmd was started lately, and when last (seconds since the epoch); nothing sensible is never."""
    try:
        tries, started_s = text.split()
        return min(max(int(tries), 0), 32), float(started_s)
    except ValueError:
        return 0, 0.0


def delay_s(tries: int) -> float:
    """How long after the last of *tries* starts the next one may come."""
    return 0.0 if tries == 0 else float(min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** (tries - 1)))


def launch(words: list[str], environ: dict[str, str], lock: int) -> None:
    """
    Start *words* in a session of its own, with nothing of ours open but *lock*. Raises OSError.

    posix_spawn and not fork: the relay has threads, and a copy of its page tables would cost the traffic.
    """
    import _signal  # noqa: PLC0415

    known = {name: os.environ[name] for name in NAMES_OF_USER if name in os.environ}
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        actions = [(os.POSIX_SPAWN_DUP2, null, target) for target in (0, 1, 2)]
        # To another descriptor: the copy lacks close-on-exec. Whatever else the relay has is closed by exec.
        actions.append((os.POSIX_SPAWN_DUP2, lock, null))
        _signal.signal(_signal.SIGCHLD, _signal.SIG_IGN)
        defaults = _signal.valid_signals() - {_signal.SIGKILL, _signal.SIGSTOP}  # a relay ignores nearly all
        os.posix_spawn(words[0], words, {**known, **environ}, file_actions=actions, setsid=True, setsigdef=defaults)
    finally:
        os.close(null)
