"""
Power loss, simulated: from what a process did to its files, the files as a disk may have them afterwards.

Pure. A trace is the list of operations that tests/support/disk_trace.c recorded. `lose_power` plays its beginning
and then takes away what no sync had made safe. What is assumed of the disk:

- What was written to a file before a sync of it that succeeded is there.
- Of later writes each 512-byte sector is there or not, whatever became of others and whichever came first; a
  sector holds one of the contents that the page cache had for it. The file has one of the sizes that it had.
- A sync that failed settles nothing, and a later one does not make good for it: what it should have written is
  there or not, sector by sector, unless it is written again (Linux marks such pages clean).
- Creating, renaming and removing are one ordered journal. What came before the last sync of the folder is there,
  of the rest some beginning. A sync of a file alone does not put its name into the folder (ext4 and XFS would).
- The shared-memory index of SQLite's log is never synced; after the loss it holds noise, or is missing.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import PurePath
from random import Random

SECTOR_BYTES = 512
HEAD = struct.Struct("=cHqI")
SURVIVAL = (0.0, 0.1, 0.5, 0.9, 1.0)
"""Chances of an unsynced sector; one of them holds for a whole simulated loss, so that the extremes are met too."""
MEMORY_SUFFIX = "-shm"
MEMORY_BYTES = 32 << 10


class Kind(StrEnum):
    """The bytes that tell the records of a trace apart."""

    WRITE = "W"
    TRUNCATE = "T"
    SYNC = "S"
    FAILED_SYNC = "E"
    CREATE = "C"
    RENAME = "R"
    UNLINK = "U"
    MARK = "M"


@dataclass(frozen=True, slots=True)
class Operation:
    """offset: of a write; the new size for a truncation. data: what was written, the new path, or the mark."""

    kind: Kind
    path: str
    offset: int
    data: bytes


@dataclass(slots=True)
class File:
    """disk: what is safe, or was settled when a sync failed. pending: what came since."""

    disk: bytearray = field(default_factory=bytearray)
    pending: list[Operation] = field(default_factory=list)

    def sync(self) -> None:
        for operation in self.pending:
            apply(self.disk, operation)
        self.pending.clear()

    def settle(self, rand: Random, survival: float) -> None:
        """Let chance decide what is on disk of all that is pending."""
        cache, sizes = bytearray(self.disk), [len(self.disk)]
        for operation in self.pending:
            apply(cache, operation)
            sizes.append(len(cache))
            if operation.kind is Kind.WRITE:
                self._write_back(cache, operation, lambda: rand.random() < survival)
            elif rand.random() < survival:
                apply(self.disk, operation)
        size = rand.choice(sizes) if 0 < survival < 1 else sizes[-1 if survival else 0]
        apply(self.disk, Operation(Kind.TRUNCATE, "", size, b""))
        self.pending.clear()

    def _write_back(self, cache: bytearray, write: Operation, is_kept: Callable[[], bool]) -> None:
        first = write.offset // SECTOR_BYTES * SECTOR_BYTES
        for start in range(first, write.offset + len(write.data), SECTOR_BYTES):
            if is_kept():
                sector = cache[start : start + SECTOR_BYTES]
                apply(self.disk, Operation(Kind.WRITE, "", start, bytes(sector)))


def apply(data: bytearray, operation: Operation) -> None:
    """Do a write or a truncation; a hole reads as zeros."""
    grow = operation.offset - len(data)
    if grow > 0:
        data.extend(bytes(grow))
    if operation.kind is Kind.WRITE:
        data[operation.offset : operation.offset + len(operation.data)] = operation.data
    else:
        del data[operation.offset :]


def parse_trace(trace: bytes) -> list[Operation]:
    """The operations in their order. A record that a kill has cut short ends them."""
    operations = []
    position = 0
    while position + HEAD.size <= len(trace):
        kind, path_bytes, offset, data_bytes = HEAD.unpack_from(trace, position)
        path_end = position + HEAD.size + path_bytes
        path = trace[position + HEAD.size : path_end].decode()
        position = path_end + data_bytes
        if position <= len(trace):
            operations.append(Operation(Kind(kind.decode()), path, offset, trace[path_end:position]))
    return operations


def render_mark(text: str) -> bytes:
    """A mark's record, for a process that only looks on."""
    data = text.encode()
    return HEAD.pack(Kind.MARK.value.encode(), 0, 0, len(data)) + data


class Disk:
    """
    One folder. `play` does an operation, `lose_power` says what is left.

    A name that is not known belongs to a file that was removed while it was open: what happens to it leaves no trace.
    """

    def __init__(self, root: str, rand: Random) -> None:
        self._root = root
        self._rand = rand
        self._survival = rand.choice(SURVIVAL)
        self._names: dict[str, File] = {}
        self._journal: list[dict[str, File]] = [{}]

    def play(self, operation: Operation) -> None:
        file = self._names.get(operation.path)
        match operation.kind:
            case Kind.CREATE:
                self._rename({**self._names, operation.path: File()})
            case Kind.UNLINK:
                self._rename({path: kept for path, kept in self._names.items() if path != operation.path})
            case Kind.RENAME if file:
                kept = {path: other for path, other in self._names.items() if path != operation.path}
                self._rename({**kept, operation.data.decode(): file})
            case Kind.SYNC if operation.path == self._root:
                self._journal = [self._names]
            case Kind.WRITE | Kind.TRUNCATE if file:
                file.pending.append(operation)
            case Kind.SYNC if file:
                file.sync()
            case Kind.FAILED_SYNC if file:
                file.settle(self._rand, self._survival)
            case _:
                pass

    def _rename(self, names: dict[str, File]) -> None:
        self._names = names
        self._journal.append(names)

    def lose_power(self) -> dict[str, bytes]:
        """What each name in the folder holds afterwards."""
        left = {}
        for path, file in self._rand.choice(self._journal).items():
            name = PurePath(path).name
            if name.endswith(MEMORY_SUFFIX):
                if self._rand.random() < 0.5:
                    left[name] = self._rand.randbytes(MEMORY_BYTES)
                continue
            file.settle(self._rand, self._survival)
            left[name] = bytes(file.disk)
        return left


def lose_power(root: str, operations: Sequence[Operation], rand: Random) -> dict[str, bytes]:
    """The files of the folder *root* when power is lost after the last of *operations*."""
    disk = Disk(root, rand)
    for operation in operations:
        disk.play(operation)
    return disk.lose_power()
