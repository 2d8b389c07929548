"""What two rooms must agree on though neither may import the other, and what the documents promise."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kmd import record
from kmd.mcp.names import Stream
from kmd.paths import CONTROL_SOCKET, MEETING_DIR, SOCKET, SPOOL_DIR, find_places
from kmd.shim import link, spool
from kmd.shim.hello import meeting_dir
from kmd.wire import Event
from tests.support.misbehaving import misbehaving, say
from tests.support.processes import LAUNCH, WAIT_S, ask, quick_km, read_status, running_kmd, wait_for, write_config
from tests.support.raw_relay import connected, session_name

ROOT = Path(__file__).parents[2]
PROTOCOL_PAGE = (ROOT / "docs" / "control-protocol.md").read_text(encoding="utf-8")


def test_the_relays_stream_numbers_are_the_order_of_streams() -> None:
    numbers = (record.TO_SERVER, record.TO_CLIENT, record.STDERR)
    assert numbers == tuple(range(record.STREAMS))
    assert tuple(Stream) == (Stream.TO_SERVER, Stream.TO_CLIENT, Stream.STDERR)
    assert len(Stream) == record.STREAMS


def test_relay_and_kmd_use_the_same_names_in_the_meeting_place() -> None:
    from kmd.intake import adoption  # noqa: PLC0415

    assert (link.SOCKET, spool.FOLDER, spool.SUFFIX) == (SOCKET, SPOOL_DIR, adoption.SUFFIX)
    assert CONTROL_SOCKET != SOCKET


@pytest.fixture
def user_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user with a home, in some other folder, without KM_HOME."""
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.delenv("KM_HOME", raising=False)
    (tmp_path / "work" / "deep").mkdir(parents=True)
    (tmp_path / "work" / "link").symlink_to(tmp_path / "work" / "deep")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "user"


HOMES = ["/var/km", "relative", "./here", "../up", "a/../b", "link/../x", "~", "~/km", "a//b/", "with space", "ä"]


@pytest.mark.parametrize("home", HOMES)
def test_km_and_kmd_meet_in_the_same_place_for_the_flag(user_home: Path, home: str) -> None:
    assert str(find_places(Path(home), os.environ).meeting_dir) == meeting_dir(home)
    assert os.path.isabs(meeting_dir(home))  # noqa: PTH117 - what the shim has


@pytest.mark.parametrize("home", HOMES)
def test_km_and_kmd_meet_in_the_same_place_for_the_variable(
    user_home: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    monkeypatch.setenv("KM_HOME", home)
    assert str(find_places(None, os.environ).meeting_dir) == meeting_dir(None)


def test_the_flag_wins_over_the_variable_for_both(user_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KM_HOME", "/elsewhere")
    assert str(find_places(Path("/here"), os.environ).meeting_dir) == meeting_dir("/here") == "/here"


@pytest.mark.parametrize("value", [None, ""])
def test_km_and_kmd_meet_under_the_users_home_by_default(
    user_home: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    if value is not None:
        monkeypatch.setenv("KM_HOME", value)
    for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "TMPDIR"):
        monkeypatch.setenv(name, "/nowhere")
    expected = str(user_home / MEETING_DIR)
    assert str(find_places(None, os.environ).meeting_dir) == meeting_dir(None) == expected


def imported(words: list[str]) -> set[str]:
    """The modules that a Python command imports, of its own account, before it turns into another program."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-I", "-S", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=WAIT_S,
    )
    return set(re.findall(r"^import time:.*\| +([\w.]+)$", done.stderr.decode(), re.MULTILINE)) - {"imported"}


def test_km_imports_nothing_but_itself_before_it_becomes_the_server_that_a_bare_interpreter_with_os_has_not(
    tmp_path: Path,
) -> None:
    """From a copy of what comes before the fork, so that the relay in the other process finds and imports nothing."""
    copy = tmp_path / "kmd" / "shim" / "launch.py"
    copy.parent.mkdir(parents=True)
    for source in (LAUNCH, LAUNCH.with_name("start.py"), LAUNCH.with_name("__init__.py")):
        copy.with_name(source.name).write_bytes(source.read_bytes())
    (tmp_path / "kmd" / "__init__.py").touch()
    bare = imported(["-c", "import os"])
    assert "os" in bare
    own = {"kmd", "kmd.shim", "kmd.shim.start"}
    assert imported([str(copy), "--home", str(tmp_path), "--", "/bin/true"]) - bare <= {"_signal", *own}
    assert imported(["-c", "import json"]) - bare >= {"json"}


def test_the_relay_is_there_soon_because_it_imports_little() -> None:
    """Each of these takes as long as all of the relay's own modules."""
    root = str(LAUNCH.parents[2])
    got = imported(["-c", f"import sys; sys.path.insert(0, {root!r}); import kmd.shim.relay"])
    assert "kmd.shim.relay" in got
    assert not got & {"collections", "contextlib", "functools", "pathlib", "re", "threading", "typing"}


FIELD = re.compile(r"`(\w+)(?:\[\])?\.\{([^}]*)\}`")


def documented() -> dict[str, set[str]]:
    """The fields of each part of a status, as the page names them."""
    parts = {name: set(re.split(r"[,\s]+", fields.strip())) for name, fields in FIELD.findall(PROTOCOL_PAGE)}
    assert {"daemon", "outbox", "sessions", "destinations"} <= parts.keys()
    return parts


def live_status(home: Path) -> dict[str, Any]:
    """The status of a kmd with something of everything in it."""
    with misbehaving(say(401)) as server:
        write_config(home, ("team", server.url, "km_x"))
        with running_kmd(home), connected(home, session_name(1)) as relay:
            relay.data(0, 0, b"{}\n")
            relay.wait_acked(3)
            wait_for(lambda: read_status(home)["destinations"][0]["last_error"], "a refusal")
            return read_status(home)


def test_the_page_names_every_field_of_a_real_status_and_no_other(tmp_path: Path) -> None:
    status, parts = live_status(tmp_path), documented()
    assert set(status) == {"daemon", "outbox", "sessions", "destinations", "warnings"}
    assert set(status["daemon"]) == parts["daemon"]
    assert set(status["outbox"]) == parts["outbox"]
    for part in ("sessions", "destinations"):
        (row,) = status[part]
        assert set(row) == parts[part]


def test_the_page_names_every_operation_and_each_answers_as_it_says(tmp_path: Path) -> None:
    operations = set(re.findall(r'`\{"op":"(\w+)"', PROTOCOL_PAGE))
    with running_kmd(tmp_path) as kmd, connected(tmp_path, session_name(1)) as relay:
        relay.data(0, 0, b'{"method":"a"}\n')
        relay.wait_acked(15)
        for operation in operations - {"stop"}:
            answers = ask(tmp_path, {"op": operation})
            assert answers or operation == "quarantine"  # nothing was refused: its list is empty
            assert all("error" not in answer for answer in answers)
        assert set(ask(tmp_path, {"op": "nothing of the kind"})[0]["error"]) == {"message", "hint"}
        (event,) = [answer["event"] for answer in ask(tmp_path, {"op": "tail"})]
        assert set(event) <= {*Event.__struct_fields__, "seq", "server"} - {"payload", "payload_base64"}
        assert {"seq", "server", "session", "stream", "offset", "kind", "size_bytes"} <= set(event)
        assert "stop" in operations
        assert ask(tmp_path, {"op": "stop"}) == [{"done": True}]
        assert kmd.process.wait(WAIT_S) == 0


def test_km_hands_kmd_what_crossed(tmp_path: Path) -> None:
    """The real relay and the real kmd, once: the bytes of either direction under their own stream."""
    lines = json.dumps({"jsonrpc": "2.0", "method": "a"}).encode() + b"\n"
    with running_kmd(tmp_path):
        subprocess.run(
            quick_km(tmp_path, "cat", "cat"), input=lines, stdout=subprocess.PIPE, timeout=WAIT_S, check=True
        )
        wait_for(lambda: read_status(tmp_path)["outbox"]["events"] == 2, "both messages")
        events = [answer["event"] for answer in ask(tmp_path, {"op": "tail"})]
    assert {(event["stream"], event["offset"], event["size_bytes"]) for event in events} == {
        ("to_server", 0, len(lines) - 1),
        ("to_client", 0, len(lines) - 1),
    }
