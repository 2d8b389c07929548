"""km in front of a server, and the real kmd: every message once, whoever comes and goes."""

import sys

import pytest

pytest.importorskip("msvcrt", reason="needs Windows")
assert sys.platform == "win32"

import subprocess
import threading
from pathlib import Path

from tests.windows.test_km import ECHO, WAIT_S, km, python, spooled, streams_of, wait_for
from tests.windows.test_kmd import read_status, running_kmd

CALL = b'{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"add"}}\n'


def talk(process: subprocess.Popen[bytes], numbers: range) -> None:
    """A call for each number; the server of these tests answers with the call itself, in capitals."""
    assert process.stdin is not None
    assert process.stdout is not None
    for number in numbers:
        line = CALL % number
        process.stdin.write(line)
        process.stdin.flush()
        assert process.stdout.read(len(line)) == line.upper()


def has_all(home: Path, count: int) -> None:
    """kmd has so many messages in the end, also those that it took out of spools, and no more; nothing is missing."""
    wait_for(lambda: read_status(home)["outbox"]["last_seq"] >= count, f"{count} messages")
    wait_for(lambda: not (home / "spool").exists() or not list((home / "spool").iterdir()), "the end of the spools")
    outbox = read_status(home)["outbox"]
    assert (outbox["last_seq"], outbox["gap_bytes"]) == (count, 0)


def test_a_conversation_is_captured_while_it_goes_on(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with running_kmd(home):
        with subprocess.Popen(km(home, "--name", "echo", "--", *python(ECHO)), stdin=-1, stdout=-1) as process:
            talk(process, range(50))
            (session,) = read_status(home)["sessions"]
            assert session["name"] == "echo"
            process.communicate(timeout=WAIT_S)
            assert process.returncode == 0
        has_all(home, 100)


def test_what_was_said_without_kmd_is_taken_in_later(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with subprocess.Popen(km(home, *python(ECHO)), stdin=-1, stdout=-1) as process:
        talk(process, range(20))
        process.communicate(timeout=WAIT_S)
    assert len(list((home / "spool").iterdir())) == 1
    with running_kmd(home):
        has_all(home, 40)


def test_what_was_said_without_kmd_outlives_a_km_that_is_killed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with subprocess.Popen(km(home, *python(ECHO)), stdin=-1, stdout=-1) as process:
        talk(process, range(20))
        wait_for(lambda: length_kept(home) == 2 * sum(len(CALL % number) for number in range(20)), "the spool")
        process.kill()
    with running_kmd(home):
        wait_for(lambda: read_status(home)["outbox"]["last_seq"] == 40, "the spool to be taken in")


def length_kept(home: Path) -> int:
    """How many bytes of both directions are in the only spool."""
    try:
        return sum(len(data) for data in streams_of(spooled(home)))
    except (OSError, ValueError):  # not there yet
        return 0


def test_an_idle_session_is_known_to_the_next_kmd(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with subprocess.Popen(km(home, *python(ECHO)), stdin=-1, stdout=-1) as process:
        with running_kmd(home) as kmd:
            talk(process, range(5))
            has_all(home, 10)
            kmd.kill()
            kmd.wait(WAIT_S)
        with running_kmd(home):
            wait_for(lambda: len(read_status(home)["sessions"]) == 1, "the session that says nothing")
        process.communicate(timeout=WAIT_S)


def test_kmd_is_killed_again_and_again_and_has_every_message_once(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with subprocess.Popen(km(home, *python(ECHO)), stdin=-1, stdout=-1) as process:
        for turn in range(3):
            with running_kmd(home) as kmd:
                talking = threading.Thread(target=talk, args=(process, range(turn * 300, turn * 300 + 300)))
                talking.start()
                if turn % 2 == 0:
                    talking.join(WAIT_S)
                kmd.kill()
                kmd.wait(WAIT_S)
                talking.join(WAIT_S)
                assert not talking.is_alive()
        process.communicate(timeout=WAIT_S)
    with running_kmd(home):
        has_all(home, 1800)
