"""What kmctl shows, from values alone."""

import io
from datetime import UTC
from typing import Any

import msgspec
import pytest
from rich.cells import cell_len
from rich.console import Console

from kmctl.answers import Progress, Reason, Seen, Status, find_faults, parse_part
from kmctl.page import Cell, Column, Facts, Line, Page, Table, is_wider, painted, speak, to_rich
from kmctl.page import draw as page_lines
from kmctl.pages import render_status
from kmctl.render import render_progress, render_reason, render_seen, speak_seen
from kmd.errors import RemoteProtocolError
from tests.cli.stub import destination_of, status_of

AT_NS = 1_767_225_600_123_456_789
"""2026-01-01 00:00:00.123 UTC."""

ANSWER = Seen(
    seq=2,
    server="git",
    stream="to_client",
    at_ns=AT_NS,
    kind="response",
    method="tools/call",
    target="git_log",
    rpc_id="7",
    size_bytes=2048,
    took_ns=17_000_000,
    outcome="tool_error",
)


def draw(page: Page, width: int = 200) -> str:
    """*page* as a terminal of that width shows it, without colours."""
    if not is_wider(page, width):
        return "\n".join(page_lines(page)) + "\n"
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(to_rich(page))
    return out.getvalue()


def read_status(*destinations: dict[str, Any], **outbox: object) -> Status:
    return parse_part({"status": status_of(*destinations, **outbox)}, "status", Status)


def test_a_message_in_a_pipe_is_whole() -> None:
    line = render_seen(ANSWER, UTC, None).plain
    assert line.split() == [
        "2026-01-01T00:00:00.123+0000", "git", "←", "response", "tools/call", "git_log", "#7", "2.0", "KiB", "17",
        "ms", "tool_error",
    ]  # fmt: skip


def test_columns_line_up() -> None:
    request = Seen(server="a", stream="to_server", at_ns=AT_NS, kind="request", method="ping", rpc_id="1", size_bytes=9)
    first, second = (render_seen(seen, UTC, None).plain for seen in (request, ANSWER))
    assert first.index("→") == second.index("←")
    assert first.index("#1") == second.index("#7")


@pytest.mark.parametrize("width", [1, 10, 20, 40, 60, 80, 100, 200])
@pytest.mark.parametrize("target", ["git_log", "x" * 500, "大" * 300, ""])
def test_a_message_on_a_terminal_is_never_wider_than_it(width: int, target: str) -> None:
    line = render_seen(msgspec.structs.replace(ANSWER, target=target, server=target[:60]), UTC, width)
    assert cell_len(line.plain) <= width
    assert "\n" not in line.plain


def test_a_long_target_gives_way_before_the_outcome_does() -> None:
    line = render_seen(msgspec.structs.replace(ANSWER, target="x" * 500), UTC, 80).plain
    assert line.endswith("tool_error")
    assert "tools/call x" in line
    assert "…" in line


def test_a_long_target_is_whole_in_a_pipe() -> None:
    assert "x" * 5000 in render_seen(msgspec.structs.replace(ANSWER, target="x" * 5000), UTC, None).plain


@pytest.mark.parametrize("width", [None, 80])
def test_a_message_cannot_speak_to_the_terminal(width: int | None) -> None:
    evil = "\x1b[2J\x9b\u202e\r\n"
    seen = Seen(server=evil, stream=evil, kind=evil, method=evil, target=evil, rpc_id=evil, outcome=evil, at_ns=AT_NS)
    line = render_seen(seen, UTC, width).plain
    assert not set("\x1b\x9b\u202e\r\n") & set(line)


@pytest.mark.parametrize("at_ns", [2**63 - 1, -(2**63), 10**30])
def test_an_impossible_time_does_not_end_the_tail(at_ns: int) -> None:
    assert render_seen(msgspec.structs.replace(ANSWER, at_ns=at_ns), UTC, None).plain


def test_only_the_id_of_an_answer_is_dim() -> None:
    line = render_seen(ANSWER, UTC, 120)
    dim = [line.plain[span.start : span.end].strip() for span in line.spans if span.style == "dim"]
    assert dim == ["00:00:00.123", "#7"]


@pytest.mark.parametrize("width", [80, 120])
def test_the_status_page_fits_a_terminal(width: int) -> None:
    busy = destination_of(name="production", state="retrying", pending=99_999, settled=9_999_999, next_attempt_s=250)
    page = draw(render_status(read_status({**busy, "last_success_at": "2026-11-23T13:18:12.240Z"})), width)
    assert "production   retrying   99,999  9,999,999        0  4 m 10 s  2026-11-23 13:18Z" in page


def test_an_error_code_is_shown() -> None:
    seen = msgspec.structs.replace(ANSWER, kind="error", outcome="rpc_error", error_code=-32601)
    assert render_seen(seen, UTC, None).plain.endswith("rpc_error -32601")


def test_a_server_that_is_well_has_no_faults() -> None:
    assert find_faults(read_status(destination_of(), destination_of(state="sending", pending=4))) == []


@pytest.mark.parametrize(
    ("destination", "outbox", "fault"),
    [
        ({"state": "paused"}, {}, "team is paused"),
        ({"state": "retrying"}, {}, "team is retrying"),
        ({"quarantined": 3}, {}, "team refused 3 (quarantined)"),
        ({}, {"gap_bytes": 4096}, "4,096 bytes were not captured"),
        ({}, {"last_error": "disk full"}, "the outbox cannot be written: disk full"),
    ],
)
def test_faults(destination: dict[str, Any], outbox: dict[str, Any], fault: str) -> None:
    status = read_status(destination_of(**destination), **outbox)
    assert find_faults(status) == [fault]
    assert f"degraded: {fault}" in draw(render_status(status))


def test_the_status_page_says_everything() -> None:
    failing = destination_of(
        state="retrying", pending=2500, settled=7, next_attempt_s=61.2, last_error="no connection", hint="is it up?"
    )
    status = status_of(failing, oldest_pending_age_s=300.0)
    status["sessions"] = [
        {"name": "git", "command": "uvx", "pid": 99, "events": 12, "bytes_to_server": 2048, "open_requests": 1}
    ]
    page = draw(render_status(parse_part({"status": status}, "status", Status)))
    for words in (
        "9.9, pid 42, up 1 m 01 s", "7 events, 4.0 KiB", "5 m 00 s", "git", "uvx", "2.0 KiB", "2,500", "1 m 01 s",
        "team: https://km.example.com", "team: no connection", "hint: is it up?", "never",
    ):  # fmt: skip
        assert words in page


def test_the_status_page_says_what_had_to_go_and_what_was_refused() -> None:
    gone = {"settled events": {"events": 1200, "bytes": 2048}, "lost in a \x1b file": {"events": 3, "bytes": 0}}
    page = draw(render_status(read_status(destination_of(quarantined=2), evicted=gone)))
    assert "removed" in page
    assert "1,200 settled events (2.0 KiB)" in page
    assert r"3 lost in a \x1b file" in page
    assert "team: refused 2 events" in page
    assert "kmctl quarantine list" in page
    assert "removed" not in draw(render_status(read_status()))


def test_the_status_page_without_destinations_says_local_only() -> None:
    assert "nothing to sync to: local only" in draw(render_status(read_status()))


def test_the_status_page_cannot_speak_to_the_terminal() -> None:
    evil = "\x1b[2J\x9b"
    status = status_of(
        destination_of(name=evil, url=evil, state=evil, last_error=evil, hint=evil, last_success_at=evil)
    )
    status["daemon"] |= {"version": evil, "config": evil}
    status["outbox"]["path"] = evil
    status["sessions"] = [{"name": evil, "command": evil}]
    page = draw(render_status(parse_part({"status": status}, "status", Status)))
    assert "\x1b" not in page
    assert "\x9b" not in page


def test_a_long_url_is_folded_not_cut() -> None:
    url = "https://km.example.com/" + "a" * 100
    page = draw(render_status(read_status(destination_of(url=url))), width=100)
    assert page.count("a") > 100
    assert "…" not in page


def test_progress_as_a_line() -> None:
    progress = [Progress(name="team", pending=1200, state="sending"), Progress(name="b\x1b", pending=0, state="idle")]
    assert render_progress(progress) == "team: 1,200 pending (sending), b\\x1b: 0 pending (idle)"


def test_a_reason_is_one_line() -> None:
    reason = Reason(name="team", pending=3, state="paused", error="the key was refused (401)\n", hint="check the key")
    assert render_reason(reason) == "team: 3 events pending, paused: the key was refused (401)\\x0a (check the key)"
    assert render_reason(Reason(name="team", pending=1)) == "team: 1 event pending, not done"


@pytest.mark.parametrize("answer", [{}, {"status": 5}, {"status": {"daemon": {"pid": "x"}}}])
def test_an_answer_of_another_shape_is_a_protocol_error(answer: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_part(answer, "status", Status)


def test_unknown_fields_are_ignored() -> None:
    assert parse_part({"status": {"new": 1, "daemon": {"new": 2, "pid": 3}}}, "status", Status).daemon.pid == 3


PAGE: Page = (
    Facts((("name", "a\x1b"), ("", "more"))),
    Line(""),
    Table((Column("who"), Column("many", number=True)), ((Cell("大"), Cell("1", "red")), (Cell("bb"), Cell("1,000")))),
    Line("end", "yellow"),
)


def test_a_page_lines_up() -> None:
    assert page_lines(PAGE) == [
        "name  a\\x1b",
        "      more",
        "",
        "who   many",
        "大       1",
        "bb   1,000",
        "end",
    ]


def test_a_page_is_painted_for_a_terminal_only() -> None:
    lines = page_lines(PAGE, painted)
    assert lines[4] == "大       \x1b[31m1\x1b[0m"
    assert lines[-1] == "\x1b[33mend\x1b[0m"
    assert lines[1] == "\x1b[1m    \x1b[0m  more"


def test_a_page_can_be_heard() -> None:
    assert speak(PAGE) == ["name: a\\x1b", "more", "who: 大, many: 1", "who: bb, many: 1,000", "end"]


@pytest.mark.parametrize("width", [12, 30])
def test_a_table_that_is_too_wide_is_folded_not_cut(width: int) -> None:
    wide: Page = (Table((Column("a"), Column("b")), ((Cell("x" * 40), Cell("y" * 40)),)),)
    assert is_wider(wide, width)
    shown = draw(wide, width)
    assert (shown.count("x"), shown.count("y"), "…" in shown) == (40, 40, False)
    assert max(map(cell_len, shown.splitlines())) <= width


def test_a_message_can_be_heard() -> None:
    assert speak_seen(ANSWER, UTC) == (
        "00:00:00, git to client, response tools/call git_log, id 7, 2.0 KiB, took 17 ms, tool_error"
    )
    assert "\x1b" not in speak_seen(msgspec.structs.replace(ANSWER, server="\x1b", target="\x1b"), UTC)
