"""kmd put together: lock, outbox, sockets, sync, signals. Nobody imports this but the entry point."""

import os
import platform
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path

import structlog
import trio

from kmd.config import Config, load_config
from kmd.control import Announcer, Control, serve_kmctl
from kmd.errors import DaemonRunning, KilometersError, OutboxCorrupt, walk_causes
from kmd.intake.adoption import Adopter
from kmd.intake.capacity import Capacity, raise_descriptor_limit
from kmd.intake.connection import serve_relay
from kmd.intake.departures import Departures
from kmd.intake.doors import open_doors, take_passed
from kmd.intake.peer import Peer, Role
from kmd.intake.sessions import Sessions
from kmd.keys import resolve_keys
from kmd.lock_file import read_text, take_lock, write_text
from kmd.notify import READY, STOPPING, notify
from kmd.outbox.bounds import Limits
from kmd.outbox.database import SQLITE_VERSION
from kmd.outbox.housekeeping import Housekeeper
from kmd.outbox.outbox import Outbox
from kmd.outbox.room import start_with_space
from kmd.outbox.writer import Writer
from kmd.paths import Places
from kmd.private_dir import make_private_dir
from kmd.signals import heed_signals
from kmd.sync.destination import Sender
from kmd.sync.fleet import Fleet

log = structlog.get_logger(__name__)


@contextmanager
def hold_lock(places: Places) -> Iterator[bool]:
    """
    Be the only kmd of this home. The kernel releases the lock when the process ends, however it ends.

    Yields whether the kmd before this one stopped properly: then it emptied the file, else its pid still stands there.
    """
    try:
        descriptor = take_lock(places.lock_file)
    except OSError as exc:
        hint = "move away what is there, or use another --home"
        raise KilometersError(f"{places.lock_file}: cannot be used ({exc.strerror})", hint=hint) from exc
    if descriptor is None:
        pid = read_text(places.lock_file).decode("ascii", "replace")
        who = f" (pid {pid})" if pid else ""
        hint = "see 'kmctl status'; stop it first, or use another --home"
        raise DaemonRunning(f"kmd is already running for {places.meeting_dir}{who}", hint=hint)
    try:
        was_clean = os.fstat(descriptor).st_size == 0
        start_with_space(places.outbox_file)
        write_pid(places.lock_file, descriptor)
        yield was_clean
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def write_pid(path: Path, descriptor: int) -> None:
    """Say who holds the lock, also after a power loss. Raises KilometersError; what stood there before then stays."""
    try:
        write_text(descriptor, b"%d\n" % os.getpid())
    except OSError as exc:
        raise KilometersError(f"{path}: cannot be written ({exc.strerror})", hint="free some disk space") from exc


async def run_daemon(places: Places, config: Config, environ: Mapping[str, str], *, is_damaged: bool = False) -> None:
    """
    Run until a signal or kmctl says so (kmd.signals). is_damaged: this process has met damage in the outbox before.

    Raises KilometersError when it cannot start or go on: OutboxCorrupt when the outbox has to be repaired, which the
    next start does.
    """
    started_at = time.monotonic()
    capacity = Capacity(raise_descriptor_limit())
    passed = take_passed(environ)
    make_private_dir(places.meeting_dir)
    make_private_dir(places.state_dir)
    limits = Limits.of(config.outbox_max_bytes, config.outbox_max_age_days)
    with (
        hold_lock(places) as was_clean,
        Outbox(places.outbox_file, limits, check_first=not was_clean, is_damaged=is_damaged) as outbox,
    ):
        announcer = Announcer()
        async with trio.open_nursery() as nursery:
            release = version("kilometers")
            sender = Sender(user_agent=f"kilometers/{release}", host=platform.node())
            writer = Writer(outbox, announcer.announce)
            fleet = Fleet(outbox, writer.one_at_a_time, sender, nursery)
            housekeeper = Housekeeper(
                outbox.room, writer.one_at_a_time, lambda: fleet.lowest_cursor, lambda: fleet.told_end_seq
            )
            announcer.listeners += [fleet.notice, housekeeper.look]
            sessions = Sessions(writer, capacity, config.max_message_bytes, keep_payloads=config.keep_payloads)
            adopter = Adopter(places.spool_dir, sessions)
            announcer.listeners.append(adopter.glance)
            control = Control(
                version=release,
                started_at=started_at,
                home=places.meeting_dir,
                config_file=places.config_file,
                spool_dir=places.spool_dir,
                adopter=adopter,
                sqlite=SQLITE_VERSION,
                outbox=outbox,
                sessions=sessions,
                fleet=fleet,
                housekeeper=housekeeper,
                committed=announcer,
                reload=partial(reload, places, environ, outbox, sessions, fleet),
                ending=trio.Event(),
            )
            with open_doors(places, passed) as doors:
                nursery.start_soon(writer.run)
                await fleet.apply(config)
                nursery.start_soon(housekeeper.run)
                nursery.start_soon(accept_relays, doors[Role.INTAKE], sessions, adopter)
                nursery.start_soon(adopter.run)
                nursery.start_soon(Departures(outbox, sessions, places.spool_dir).run)
                nursery.start_soon(accept_kmctl, doors[Role.CONTROL], control)
                log.info("kmd is ready", pid=os.getpid(), home=str(places.meeting_dir), version=release)
                notify(READY, environ)
                await wait_for_end(control)
                notify(STOPPING, environ)
            nursery.cancel_scope.cancel()  # a commit that runs is finished; what is not acknowledged comes again
        log.info("kmd has stopped", pid=os.getpid())


async def wait_for_end(control: Control) -> None:
    """Until a signal or `kmctl` says so."""

    async def read_again() -> None:
        try:
            await control.reload()
        except KilometersError as exc:
            log.error("the configuration was not read again", error=str(exc), hint=exc.hint)  # noqa: TRY400

    async with trio.open_nursery() as nursery:
        nursery.start_soon(heed_signals, control.ending.set, read_again)
        await control.ending.wait()
        nursery.cancel_scope.cancel()


async def reload(places: Places, environ: Mapping[str, str], outbox: Outbox, sessions: Sessions, fleet: Fleet) -> None:
    """Read the configuration again. Raises ConfigError; then nothing has changed."""
    written = load_config(places.config_file, environ)
    config, problems = await trio.to_thread.run_sync(resolve_keys, written, places.config_file)
    warn_of_keys(problems)
    sessions.max_message_bytes = config.max_message_bytes
    sessions.keep_payloads = config.keep_payloads
    limits = Limits.of(config.outbox_max_bytes, config.outbox_max_age_days)
    await trio.to_thread.run_sync(outbox.room.set_limits, limits, limiter=sessions.writer.one_at_a_time)
    await fleet.apply(config)
    log.info("configuration read", destinations=[destination.name for destination in config.destinations])


def warn_of_keys(problems: Sequence[KilometersError]) -> None:
    """Keys that should be somewhere and are not: the server will refuse, and kmd goes on keeping."""
    for problem in problems:
        log.warning("a key cannot be read", error=str(problem), hint=problem.hint)


async def accept_relays(door: trio.abc.Listener[Peer], sessions: Sessions, adopter: Adopter) -> None:
    async def serve(peer: Peer) -> None:
        with sessions.capacity.admit() as is_admitted:
            if not is_admitted:
                return
            try:
                await serve_relay(peer, sessions)
            finally:
                adopter.look()

    await accept_own(door, serve)


async def accept_kmctl(door: trio.abc.Listener[Peer], control: Control) -> None:
    await accept_own(door, lambda peer: serve_kmctl(peer, control))


async def accept_own(door: trio.abc.Listener[Peer], serve: Callable[[Peer], Awaitable[None]]) -> None:
    """Serve connections of this user. What goes wrong with one ends that one alone; damage of the outbox ends kmd."""

    async def guard(peer: Peer) -> None:
        async with peer:
            if not peer.is_own():
                log.warning("another user's connection was refused")
                return
            try:
                await serve(peer)
            except* OutboxCorrupt:
                raise
            except* KilometersError as group:
                for exc in walk_causes(group):
                    if isinstance(exc, KilometersError):
                        log.warning("a connection was ended", error=str(exc), hint=exc.hint)
            except* Exception:
                log.exception("a connection failed")

    await trio.serve_listeners(guard, [door])
