"""Which releases of SQLite keep what they have committed. Pure."""

SAFE_FROM = (3, 51, 3)
SAFE_BACKPORTS = (((3, 50, 7), (3, 51)), ((3, 44, 6), (3, 45)))
"""First release without the WAL-reset bug, and the half-open ranges of its two backports."""


def is_safe(version: tuple[int, ...]) -> bool:
    """Whether this release is without the WAL-reset bug (3.7.0 to 3.51.2), which can lose committed transactions."""
    return version >= SAFE_FROM or any(low <= version < high for low, high in SAFE_BACKPORTS)


def parse_version(text: str) -> tuple[int, ...]:
    """`3.51.3` as numbers. Raises ValueError."""
    return tuple(int(part) for part in text.split("."))
