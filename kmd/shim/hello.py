"""What a relay says of itself when it meets kmd, and where that is. The same on every system."""

import os

from kmd.record import PROTOCOL, render_fields

MEETING_DIR = ".kilometers"


def meeting_dir(home: str | None) -> str:
    """Where kmd's socket is: --home, else KM_HOME, else one fixed place under HOME (see kmd.paths)."""
    chosen = home or os.environ.get("KM_HOME")
    if chosen:
        return os.path.abspath(os.path.expanduser(chosen))
    return os.path.join(os.path.expanduser("~"), MEETING_DIR)


def describe(command: list[str], name: str | None, server_pid: int, session_id: str, now_ns: int) -> bytes:
    """The body of HELLO. Arguments are left out: they may hold secrets, and nothing needs them."""
    return render_fields(
        {
            "protocol": b"%d" % PROTOCOL,
            "session": session_id.encode(),
            "name": os.fsencode(name or os.path.basename(command[0])),
            "command": os.fsencode(os.path.basename(command[0])),
            "pid": b"%d" % server_pid,
            "relay_pid": b"%d" % os.getpid(),
            "started_at_ns": b"%d" % now_ns,
            "boot": boot_id(),
        }
    )


def boot_id() -> bytes:
    """Which run of the machine this is, so that kmd knows whether a spool has lived through a power loss."""
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            return file.read().strip()
    except OSError:
        return b""  # kmd then believes only what a CRC covers


def new_session_id(now_ns: int, random: bytes) -> str:
    """A UUIDv7 (RFC 9562 section 5.7) from the time and ten random bytes."""
    value = (now_ns // 1_000_000) << 80 | int.from_bytes(random, "big")
    value = value & ~(0xF << 76) & ~(0x3 << 62) | 0x7 << 76 | 0x2 << 62
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
