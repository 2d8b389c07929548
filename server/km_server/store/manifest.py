"""
What a store holds, as numbers that can be compared: rows and a checksum per table.

A table's checksum is the sum of its rows' SHA-256 values, so the order of the rows does not matter, and two stores
with the same rows have the same one. It finds damage and omissions; it is no defence against an attacker.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

MODULUS = 2**256


@dataclass(slots=True)
class TableSum:
    """Rows seen so far, and the sum of their hashes."""

    rows: int = 0
    total: int = 0

    def add(self, rows: Iterable[Sequence[object]]) -> None:
        """Count and sum more rows."""
        for row in rows:
            self.rows += 1
            self.total += int.from_bytes(hashlib.sha256(msgspec.msgpack.encode(tuple(row))).digest(), "big")

    @property
    def checksum(self) -> str:
        return f"{self.total % MODULUS:064x}"


class TableEntry(msgspec.Struct, frozen=True):
    """One table of a manifest."""

    rows: int
    checksum: str


class Manifest(msgspec.Struct, frozen=True):
    """Every table by its name."""

    tables: dict[str, TableEntry]

    def differences(self, other: "Manifest") -> list[str]:
        """The names of the tables that are not the same in both."""
        names = {*self.tables, *other.tables}
        return sorted(name for name in names if self.tables.get(name) != other.tables.get(name))


def make_manifest(sums: dict[str, TableSum]) -> Manifest:
    """The manifest of tables that were counted and summed, in the order of their names."""
    return Manifest({name: TableEntry(table.rows, table.checksum) for name, table in sorted(sums.items())})
