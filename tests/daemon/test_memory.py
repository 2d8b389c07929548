"""Memory that kmd does not need any more goes back to the system."""

import platform
from pathlib import Path

import pytest

from kmd.memory import give_back_memory
from tests.support.processes import running_kmd, wait_for
from tests.support.raw_relay import connected, session_name

LARGE_BYTES = 12 << 20


def resident_mib(pid: int) -> float:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries give back by themselves")
def test_after_large_messages_an_idle_kmd_is_about_as_small_as_before(tmp_path: Path) -> None:
    with running_kmd(tmp_path) as kmd, connected(tmp_path, session_name(1)) as relay:
        before = resident_mib(kmd.process.pid)
        data = (b"x" * LARGE_BYTES + b"\n") * 4
        for start in range(0, len(data), 65536):
            relay.data(0, start, data[start : start + 65536])
        relay.wait_acked(len(data))
        wait_for(lambda: resident_mib(kmd.process.pid) < before + 3 * LARGE_BYTES / 2**20, "the memory to go back", 40)


def test_giving_back_twice_is_harmless() -> None:
    give_back_memory()
    assert give_back_memory() in (True, False)
