"""A spool's file without what only POSIX has: no reading or writing at a position, no flock."""

import os
from collections.abc import Sequence

from kmd.shim.spool import Spool


class SeekingSpool(Spool):
    """Reads and writes by seeking. Only who holds the tap's lock does either, so nobody seeks in between."""

    def read(self, length: int) -> bytes:
        if self._fd < 0:
            return b""
        os.lseek(self._fd, self.position, os.SEEK_SET)
        return os.read(self._fd, min(length, self.backlog_bytes))

    def _write_at(self, at: int, parts: Sequence[bytes | memoryview]) -> None:
        os.lseek(self._fd, at, os.SEEK_SET)
        rest = memoryview(b"".join(parts))
        while rest:
            rest = rest[os.write(self._fd, rest) :]
