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
from itertools import chain, repeat
from pathlib import Path

import structlog
import trio

from kmd.errors import KilometersError, OutboxCorrupt
from kmd.intake.session_intake import SessionIntake, parse_hello
from kmd.intake.sessions import Sessions
from kmd.lock_file import take_to_read
from kmd.private_dir import is_own
from kmd.record import HELLO, Record, RecordError, RecordReader, parse_fields

LOOK_EARLY_S = (2.0, 5.0, 10.0)
LOOK_EVERY_S = 20.0
"""A relay that ends while kmd is ill or restarting leaves its spool: some looks at the start, then three a minute."""
GATHER_S = 0.5
"""Between the sign that a spool may have been left and the look: the relay may still be about to remove it."""
READ_BYTES = 256 << 10
SUFFIX = ".spool"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
"""The one that HELLO names (kmd.shim.hello.boot_id). Where there is none, only what a CRC covers is believed."""

log = structlog.get_logger(__name__)


class Adopter:
    """
    Looks for spools while `run` runs: now and then, soon after a relay has left, and when the folder has changed.

    One that cannot be taken in stays where it is and is looked at again.
    """

    def __init__(self, folder: Path, sessions: Sessions) -> None:
        self._folder = folder
        self._sessions = sessions
        self._wake = trio.Event()
        self._changed_ns = 0

    def look(self) -> None:
        """A relay has left."""
        self._wake.set()

    def glance(self) -> None:
        """kmd is awake anyway, for a commit: look soon if a file has come or gone."""
        if self._read_changed_ns() != self._changed_ns:
            self._wake.set()

    async def run(self) -> None:
        for pause_s in chain(LOOK_EARLY_S, repeat(LOOK_EVERY_S)):
            self._wake = trio.Event()
            self._changed_ns = self._read_changed_ns()
            await adopt_spools(self._folder, self._sessions)
            with trio.move_on_after(pause_s):
                await self._wake.wait()
                await trio.sleep(GATHER_S)

    def _read_changed_ns(self) -> int:
        try:
            return self._folder.stat().st_mtime_ns
        except OSError:
            return 0


async def adopt_spools(folder: Path, sessions: Sessions) -> int:
    """Take in every spool of *folder* that nobody holds, oldest session first. Returns how many."""
    adopted = 0
    for path in list_spools(folder):
        try:
            with hold_spool(path) as descriptor:
                if descriptor is not None:
                    await adopt(path, descriptor, sessions)
                    adopted += 1
        except OutboxCorrupt:
            raise
        except (OSError, KilometersError, RecordError) as exc:
            log.warning("a spool was not taken in", spool=path.name, error=str(exc))
        except Exception:
            log.exception("a spool was not taken in", spool=path.name)
    return adopted


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


async def adopt(path: Path, descriptor: int, sessions: Sessions) -> None:
    """Commit everything in a spool, then remove it."""
    reader = RecordReader(salvage=True)
    chunk, records = await read_records(descriptor, reader)
    if not records or records[0].type != HELLO:
        set_aside(path, "it does not begin with a hello" if chunk else "it is empty")
        return
    hello = records.pop(0)
    if not is_of_this_boot(hello):  # what was not sealed may have been torn by a power loss
        reader = RecordReader(salvage=True)
        reader.trusts_bodies = False
        records = list(reader.feed(chunk))[1:]
    async with sessions.enter(parse_hello(hello)) as (live, known):
        intake = SessionIntake(sessions, live, known)
        ended = False
        while chunk:
            taken = intake.take(records)
            ended = ended or taken.bye is not None
            await intake.commit(taken)
            chunk, records = await read_records(descriptor, reader)
        taken = intake.take(records)
        await intake.commit(taken)
        if not ended and taken.bye is None:
            await intake.commit(intake.abandon(os.fstat(descriptor).st_mtime_ns))
    await trio.Path(path).unlink()
    log.info("a spool was taken in", spool=path.name, lost_bytes=reader.lost_bytes)


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
        path.rename(path.with_suffix(".unreadable"))
    else:
        path.unlink()
    log.warning("a spool was set aside", spool=path.name, reason=why)
