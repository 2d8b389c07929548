"""
Adoption: kmd takes in the spools that relays left behind, and removes each once it is durable.

A relay holds the lock of its spool while it lives, so a spool that can be locked has nobody else.
A torn or altered record costs at most itself: the reader looks for the next one that holds together.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path

import structlog
import trio

from kmd.errors import KilometersError, OutboxCorrupt
from kmd.intake.session_intake import UNNAMED, SessionIntake, is_session_id, parse_hello
from kmd.intake.sessions import Sessions
from kmd.lock_file import take_to_read
from kmd.mcp.row import SessionStart
from kmd.private_dir import is_own
from kmd.record import HELLO, Record, RecordError, RecordReader, parse_fields

LOOK_EARLY_S = (2.0, 5.0, 10.0)
LOOK_EVERY_S = 20.0
"""A relay that ends while kmd is ill or restarting leaves its spool: some looks at the start, then three a minute."""
GATHER_S = 0.5
"""Between the sign that a spool may have been left and the look: the relay may still be about to remove it."""
RETRY_MOST_S = 600.0
"""Between tries of a spool that cannot be taken in; `kmctl flush` tries at once."""
UUID_TIME_DIGITS = 12
"""A UUIDv7 begins with 48 bits of Unix milliseconds (RFC 9562, section 5.7)."""
READ_BYTES = 256 << 10
SUFFIX, SUFFIX_ASIDE = ".spool", ".unreadable"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
"""The one that HELLO names (kmd.shim.hello.boot_id). Where there is none, only what a CRC covers is believed."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A spool that could not be taken in: why, when it is tried again (trio's clock), and how long that was to wait."""

    reason: str
    retry_at: float
    pause_s: float


class Adopter:
    """
    Looks for spools while `run` runs: now and then, soon after a relay has left, and when the folder has changed.

    One that cannot be taken in stays where it is: that is logged once, shown in `refused` (by the file's name), and it
    is tried again less and less often.
    """

    def __init__(self, folder: Path, sessions: Sessions) -> None:
        self._folder = folder
        self._sessions = sessions
        self._wake = trio.Event()
        self._changed_ns = 0
        self.refused: dict[str, Refusal] = {}

    def look(self) -> None:
        """A relay has left, so a spool may wait: look now."""
        self._wake.set()

    def glance(self) -> None:
        """kmd is awake anyway, for a commit: look soon if a file has come or gone."""
        if self._read_changed_ns() != self._changed_ns:
            self._wake.set()

    async def run(self) -> None:
        for pause_s in chain(LOOK_EARLY_S, repeat(LOOK_EVERY_S)):
            self._wake = trio.Event()
            self._changed_ns = self._read_changed_ns()
            await self.take_in()
            with trio.move_on_after(pause_s):
                await self._wake.wait()
                await trio.sleep(GATHER_S)

    async def take_in(self, *, anew: bool = False) -> int:
        """
        Take in every spool that nobody holds, oldest session first. Returns how many.

        anew: also those that were refused and are not due yet.
        """
        adopted = 0
        found = list_spools(self._folder)
        self.refused = {path.name: self.refused[path.name] for path in found if path.name in self.refused}
        for path in found:
            refusal = self.refused.get(path.name)
            if anew or refusal is None or refusal.retry_at <= trio.current_time():
                adopted += await self._take_in_one(path)
        return adopted

    async def _take_in_one(self, path: Path) -> bool:
        try:
            with hold_spool(path) as descriptor:
                is_adopted = descriptor is not None and await adopt(path, descriptor, self._sessions)
        except OutboxCorrupt:
            raise
        except (OSError, KilometersError, RecordError) as exc:
            self._refuse(path.name, (isinstance(exc, OSError) and exc.strerror) or str(exc))
            return False
        except Exception as exc:
            if self._refuse(path.name, f"a fault in kmd ({type(exc).__name__})"):
                log.exception("a spool was not taken in", spool=path.name)
            return False
        self.refused.pop(path.name, None)
        return is_adopted

    def _refuse(self, name: str, reason: str) -> bool:
        """Remember that a spool was not taken in. Returns whether that is news."""
        before = self.refused.get(name)
        pause_s = min(before.pause_s * 2, RETRY_MOST_S) if before else LOOK_EVERY_S
        self.refused[name] = Refusal(reason, trio.current_time() + pause_s, pause_s)
        is_news = before is None or before.reason != reason
        if is_news:
            log.warning("a spool was not taken in", spool=name, error=reason)
        return is_news

    def _read_changed_ns(self) -> int:
        try:
            return self._folder.stat().st_mtime_ns
        except OSError:
            return 0


def list_spools(folder: Path) -> list[Path]:
    """The spools in *folder*; their names begin with a UUIDv7, so this is the order in which sessions began."""
    try:
        return sorted(path for path in folder.iterdir() if path.name.endswith(SUFFIX))
    except FileNotFoundError:
        return []
    except OSError as exc:
        log.warning("no spools can be taken in", folder=str(folder), error=str(exc))
        return []


@contextmanager
def hold_spool(path: Path) -> Iterator[int | None]:
    """The open, locked spool; None while its relay lives or when it is gone. Raises OSError for what is no spool."""
    try:
        descriptor = take_to_read(path)
    except FileNotFoundError:
        descriptor = None
    if descriptor is None:
        yield None
        return
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or not is_own(status):
            raise OSError(errno.EPERM, "no regular file of this user")
        yield descriptor
    finally:
        os.close(descriptor)


async def adopt(path: Path, descriptor: int, sessions: Sessions) -> bool:
    """
    Commit everything in a spool, then remove it. Returns False when that has to wait: somebody is connected for its
    session, or in it is nothing to begin with. Raises RecordError: this kmd does not understand it; OSError.
    """
    first = await read_first(descriptor)
    start = find_start(first, path.name)
    if first is None or start is None:
        set_aside(path, "nothing in it can be read" if os.fstat(descriptor).st_size else "it is empty")
        return False
    if sessions.is_present(start.session):
        return False
    reader = RecordReader(salvage=True)
    # What was not sealed may have been torn by a power loss.
    reader.trusts_bodies = first.type == HELLO and is_of_this_boot(first)
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        await take_records(descriptor, reader, start, sessions)
    except RecordError as exc:
        set_aside(path, str(exc))
        return False
    await trio.Path(path).unlink()
    log.info("a spool was taken in", spool=path.name, lost_bytes=reader.lost_bytes)
    return True


async def take_records(descriptor: int, reader: RecordReader, start: SessionStart, sessions: Sessions) -> None:
    """Commit what *reader* finds in the file from here on. Raises RecordError: so damaged that it takes too long."""
    async with sessions.enter(start) as (live, known):
        intake = SessionIntake(sessions, live, known, passes_over=True)
        ended = False
        chunk = b"more"
        try:
            while chunk:
                chunk, records = await read_records(descriptor, reader)
                taken = intake.take(record for record in records if record.type != HELLO)
                ended = ended or taken.bye is not None
                await intake.commit(taken)
        finally:
            if not ended:
                await intake.commit(intake.abandon(os.fstat(descriptor).st_mtime_ns))


async def read_first(descriptor: int) -> Record | None:
    """The first record that holds together, HELLO if nothing has happened to the file; None where there is none."""
    reader = RecordReader(salvage=True)
    chunk = b"more"
    while chunk:
        chunk, records = await read_records(descriptor, reader)
        if records:
            return records[0]
    return None


def find_start(first: Record | None, name: str) -> SessionStart | None:
    """
    Which session a spool is of: as its hello says, or, where that is damaged, as the name of the file does.

    None when neither does. Raises RecordError: it is of a kmd that speaks otherwise.
    """
    if first is not None and first.type == HELLO:
        return parse_hello(first)
    session = name.partition(".")[0]
    if not is_session_id(session):
        return None
    started_at_ns = int(session.replace("-", "")[:UUID_TIME_DIGITS], 16) * 1_000_000
    return SessionStart(session, UNNAMED, "", 0, started_at_ns)


async def read_records(descriptor: int, reader: RecordReader) -> tuple[bytes, list[Record]]:
    """
    The next bytes and what they complete; empty bytes at the end. In a thread: where a file is damaged, looking for
    the next sound record may take a while, and relays wait for their acknowledgements meanwhile.
    """

    def read() -> tuple[bytes, list[Record]]:
        chunk = os.read(descriptor, READ_BYTES)
        return chunk, list(reader.feed(chunk) if chunk else reader.finish())

    return await trio.to_thread.run_sync(read)


def is_of_this_boot(hello: Record) -> bool:
    """Whether the machine has not been down since the relay began."""
    try:
        return parse_fields(hello.body).get("boot") == BOOT_ID.read_bytes().strip()
    except OSError:
        return False


def set_aside(path: Path, why: str) -> None:
    """Keep what cannot be understood, under a name that is not looked at again; remove what is empty."""
    if path.stat().st_size:
        path.rename(path.with_suffix(SUFFIX_ASIDE))
    else:
        path.unlink()
    log.warning("a spool was set aside", spool=path.name, reason=why)


def count_aside(folder: Path) -> int:
    """How many spools in *folder* could not be understood and were kept."""
    try:
        return sum(path.name.endswith(SUFFIX_ASIDE) for path in folder.iterdir())
    except OSError:
        return 0
