"""km, kmd and kmctl together on Windows: what crosses is in the outbox, whichever of them comes and goes."""

import subprocess
from pathlib import Path

from tests.support.processes import wait_for
from tests.windows.stage import (
    ANSWERS_BUT_NOT_WELL,
    WAIT_S,
    WINDOWS_ONLY,
    kmctl,
    python,
    read_status,
    run,
    running_kmd,
    through_km,
    wait_for_events,
)

pytestmark = WINDOWS_ONLY

ANSWERS = (
    "import sys\n"
    "for line in sys.stdin.buffer:\n"
    '    sys.stdout.buffer.write(line.replace(b\'"method":"ping"\', b\'"result":{}\'))\n'
    "    sys.stdout.buffer.flush()\n"
)
PINGS = b"".join(b'{"jsonrpc":"2.0","id":%d,"method":"ping"}\n' % number for number in range(20))


def converse(home: Path) -> None:
    """Twenty requests and their answers through km."""
    wrapped = run(through_km(home, *python(ANSWERS)), PINGS)
    assert (wrapped.exit_code, wrapped.stderr) == (0, b"")
    assert wrapped.stdout.count(b'"result"') == 20


def test_what_crosses_km_is_in_the_outbox(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with running_kmd(home):
        converse(home)
        status = wait_for_events(home, 40)
        assert (status["outbox"]["events"], status["outbox"]["gap_bytes"]) == (40, 0)


def test_what_crosses_while_kmd_is_away_is_taken_in_when_it_starts(tmp_path: Path) -> None:
    home = tmp_path / "home"
    converse(home)
    with running_kmd(home):
        assert wait_for_events(home, 40)["outbox"]["gap_bytes"] == 0


def test_a_session_outlives_kmd(tmp_path: Path) -> None:
    home = tmp_path / "home"
    words = through_km(home, *python(ANSWERS))
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as wrapped:
        with running_kmd(home):
            ask_once(wrapped)
            wait_for_events(home, 2)
        ask_once(wrapped)
        with running_kmd(home):
            wait_for_events(home, 4)
        with running_kmd(home):
            wait_for(lambda: has_session(home), "the idle session", WAIT_S)
            ask_once(wrapped)
            assert wait_for_events(home, 6)["outbox"]["gap_bytes"] == 0
        assert wrapped.stdin is not None
        wrapped.stdin.close()
        assert wrapped.wait(WAIT_S) == 0


def has_session(home: Path) -> bool:
    status = read_status(home)
    return status is not None and len(status["sessions"]) == 1


def ask_once(wrapped: subprocess.Popen[bytes]) -> None:
    assert wrapped.stdin is not None
    assert wrapped.stdout is not None
    wrapped.stdin.write(PINGS.splitlines(keepends=True)[0])
    wrapped.stdin.flush()
    assert b'"result"' in wrapped.stdout.readline()


def test_status_is_said_in_words_and_its_absence_with_a_way_out(tmp_path: Path) -> None:
    home = tmp_path / "home"
    absent = kmctl(home, "status")
    assert absent.exit_code not in (0, ANSWERS_BUT_NOT_WELL)
    assert b"kmd" in absent.stderr
    with running_kmd(home):
        said = kmctl(home, "status", "--plain")
        assert said.exit_code == 0
        assert b"kmd" in said.stdout
