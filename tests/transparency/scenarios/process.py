"""What the server is: its place among processes, its limits, its environment, its descriptors."""

import fcntl
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from tests.transparency.client import WAIT_S, Client, Record
from tests.transparency.stage import Stage, cases, scenario

F_SETPIPE_SZ = 1031
SETUPS: dict[str, str] = {
    "as_it_is": ":",
    "umask": "umask 027",
    "cwd": "cd /usr",
    "cwd_that_is_gone": "mkdir away && cd away && rmdir ../away",
    "few_descriptors": "ulimit -n 32",
    "no_core": "ulimit -c 0",
    "small_files": "ulimit -f 1000",
    "small_stack": "ulimit -s 1024",
    "soft_limit": "ulimit -S -n 50",
    "nice": "nice -n 7 true && renice -n 7 -p $$ >/dev/null",
    "one_cpu": "taskset -p 1 $$ >/dev/null",
}


def told(client: Client) -> Record:
    """What the `report` probe says, with numbers that differ from run to run replaced by what they should equal."""
    output = client.receive_rest()
    about: Record = json.loads(output)
    group_of = {
        client.process.pid: "server",
        os.getpid(): "client",
        os.getpgid(0): "client's",
        os.getsid(0): "client's",
    }
    for name in ("pid", "ppid", "pgid", "sid"):
        about[name] = group_of.get(about[name], "another")
    if client.errors >= 0:
        about["stderr"] = about["stderr"] == os.fstat(client.errors).st_ino
    return {"about": about, **client.finish()}


@cases(**SETUPS)
def process_state(stage: Stage, setup: str) -> Record:
    record = told(stage.probe("report", setup=setup, cwd=stage.folder))
    record["about"]["cwd"] = record["about"]["cwd"].replace(str(stage.folder), "")
    return record


@cases(
    tiny_files="ulimit -f 8",
    no_files="ulimit -f 0",
    few_descriptors="ulimit -n 8",
    little_memory="ulimit -v 400000",
    no_thread="ulimit -s 1000000; ulimit -v 900000",
    one_thread="ulimit -s 1000000; ulimit -v 1800000",
    two_threads="ulimit -s 1000000; ulimit -v 2800000",
)
def limits_that_are_ours_too(stage: Stage, setup: str) -> Record:
    """The relay runs under the server's limits, so none of them may end the traffic."""
    return stage.probe("echo", setup=setup).finish(b"m" * (12 << 20))


@cases(own_session={"start_new_session": True}, own_group={"process_group": 0})
def place_among_processes(stage: Stage, options: dict[str, Any]) -> Record:
    return told(stage.probe("report", **options))


@scenario
def stderr_is_the_very_file(stage: Stage) -> Record:
    log = stage.folder / "log"
    with log.open("wb") as file:
        client = stage.probe("chatter", stderr=file)
        record = client.finish(b"one\n")
    return {"log": log.read_bytes(), **record}


@scenario
def errors_go_where_output_goes(stage: Stage) -> Record:
    """As with a shell's `2>&1`: what is said first stands first."""
    return stage.probe("alternate", 500, stderr=subprocess.STDOUT).finish()


@scenario
def errors_and_output_in_one_file(stage: Stage) -> Record:
    log = stage.folder / "log"
    with log.open("wb") as file:
        record = stage.probe("alternate", 500, stdout=file, stderr=file).finish()
    return {"left": stage.left(), "log": log.read_bytes(), **record}


@scenario
def errors_and_output_in_one_socket(stage: Stage) -> Record:
    ours, theirs = socket.socketpair()
    with theirs:
        client = stage.probe("alternate", 500, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs)
    client.take_over(os.dup(ours.fileno()), ours.detach())
    return client.finish()


@scenario
def extra_descriptor_is_handed_on(stage: Stage) -> Record:
    """A descriptor that the client shares with the server stays, and it ends when the server ends."""
    ours, theirs = os.pipe()
    try:
        client = stage.start(
            ["/bin/sh", "-c", f"echo through {theirs} >&{theirs}; ls /proc/self/fd"], pass_fds=(theirs,)
        )
    finally:
        os.close(theirs)
    with os.fdopen(ours, "rb") as shared:
        text = shared.read().replace(str(theirs).encode(), b"N")
        return {"shared": text, **client.finish()}


@scenario
def descriptors_seen_by_a_plain_program(stage: Stage) -> Record:
    return stage.start(["/bin/ls", "/proc/self/fd"]).finish()


@scenario
def sockets_instead_of_pipes(stage: Stage) -> Record:
    """Node gives its children socketpairs."""
    return over_sockets(stage, "report", told)


@scenario
def echo_over_sockets(stage: Stage) -> Record:
    return over_sockets(stage, "echo", lambda client: client.finish(os.fsencode("s" * 300_000)))


@scenario
def half_close_over_sockets(stage: Stage) -> Record:
    return over_sockets(stage, "after_eof", lambda client: client.finish(b"r\n"))


@scenario
def server_leaves_over_sockets(stage: Stage) -> Record:
    def play(client: Client) -> Record:
        return {"seen": client.receive_rest(), "gone": client.sees_gone(client.input), **client.finish()}

    return over_sockets(stage, "close_both", lambda client: {**play_closed(client), **client.finish()}) | over_sockets(
        stage, "emit", play, 10, 4
    )


@scenario
def client_leaves_over_sockets(stage: Stage) -> Record:
    def play(client: Client) -> Record:
        client.receive_line()
        client.close_output()
        return client.finish()

    return over_sockets(stage, "notice_reader_gone", play)


def play_closed(client: Client) -> Record:
    seen: Record = {"note": client.receive_note(), "closed_output": client.receive_rest()}
    seen["closed_gone"] = client.sees_gone(client.input)
    client.process.terminate()
    return seen


def over_sockets(stage: Stage, probe: str, play: Callable[[Client], Record], *args: object) -> Record:
    """Start *probe* on two socketpairs, as libuv does, and *play* the client's part."""
    (our_in, their_in), (our_out, their_out) = socket.socketpair(), socket.socketpair()
    with their_in, their_out:
        client = stage.probe(probe, *args, stdin=their_in, stdout=their_out)
    client.take_over(our_in.detach(), our_out.detach())
    return play(client)


@scenario
def one_socket_for_both(stage: Stage) -> Record:
    ours, theirs = socket.socketpair()
    with theirs:
        client = stage.probe("after_eof", stdin=theirs, stdout=theirs)
    with ours:
        ours.settimeout(10)
        ours.sendall(b"request\n")
        ours.shutdown(socket.SHUT_WR)
        return {"seen": receive_all(ours), **client.finish()}


ON_ONE_SOCKET: dict[str, str] = {
    "server_says_no_more": "os.write(1, b'bye'); s = socket.socket(fileno=1); s.shutdown(1); note(os.read(0, 9))",
    "server_lets_one_of_two_go": "os.close(1); note(os.read(0, 9)); os.write(0, b'by the other')",
    "server_uses_each_for_both": "os.write(0, b'by the other'); note(os.read(1, 9))",
    "all_three": "os.write(2, b'first '); os.write(1, b'then'); note(os.read(0, 9))",
}


@cases(**{f"{kind}_{name}": (kind, name) for kind in ("unix", "tcp") for name in ON_ONE_SOCKET})
def one_socket(stage: Stage, case: tuple[str, str]) -> Record:
    """As sshd and inetd give it: two descriptors, one socket, and each side may say that it has said all."""
    kind, name = case
    ours, theirs = socket.socketpair() if kind == "unix" else connect_tcp()
    ours.settimeout(WAIT_S)
    told_by, tells = os.pipe()
    code = f"import os, socket\nnote = lambda data: os.write({tells}, data)\n{ON_ONE_SOCKET[name]}"
    with theirs:
        errors = theirs if name == "all_three" else subprocess.PIPE
        words = [sys.executable, "-I", "-S", "-c", code]
        client = stage.start(words, stdin=theirs, stdout=theirs, stderr=errors, pass_fds=(tells,))
    os.close(tells)
    with ours, os.fdopen(told_by, "rb") as notes:
        before = receive_all(ours) if name == "server_says_no_more" else b""
        ours.sendall(b"question")
        return {"notes": notes.read(), "before": before, "after": receive_all(ours), **client.finish()}


def connect_tcp() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        return ours, listener.accept()[0]


def receive_all(sock: socket.socket) -> bytes:
    """Up to the end that the other side has set."""
    parts = []
    while part := sock.recv(4096):
        parts.append(part)
    return b"".join(parts)


@scenario
def stdin_is_dev_null(stage: Stage) -> Record:
    return stage.probe("after_eof", stdin=subprocess.DEVNULL).finish()


@scenario
def process_state_with_dev_null(stage: Stage) -> Record:
    """There is nothing to capture from it, so the server gets the very file."""
    return told(stage.probe("report", stdin=subprocess.DEVNULL))


@cases(stdin=(True, False), stdout=(False, True), both=(True, True))
def ends_that_do_not_block(stage: Stage, which: tuple[bool, bool]) -> Record:
    """O_NONBLOCK belongs to the open file, so a client can set it for the server."""
    (their_in, our_in), (our_out, their_out) = os.pipe(), os.pipe()
    for fd, is_wanted in zip((their_in, their_out), which, strict=True):
        os.set_blocking(fd, not is_wanted)
    client = stage.probe("report", stdin=their_in, stdout=their_out)
    os.close(their_in)
    os.close(their_out)
    client.take_over(our_in, our_out)
    return told(client)


@cases(smaller=4096, larger=1 << 20)
def pipes_of_another_size(stage: Stage, size: int) -> Record:
    (their_in, our_in), (our_out, their_out) = os.pipe(), os.pipe()
    for fd in (their_in, their_out):
        fcntl.fcntl(fd, F_SETPIPE_SZ, size)
    client = stage.probe("report", stdin=their_in, stdout=their_out)
    os.close(their_in)
    os.close(their_out)
    client.take_over(our_in, our_out)
    return told(client)


@scenario
def stdin_is_a_file(stage: Stage) -> Record:
    source = stage.folder / "requests"
    source.write_bytes(b"from a file\n" * 20_000)
    with source.open("rb") as file:
        return stage.probe("echo", stdin=file).finish()


@scenario
def stdout_is_a_file(stage: Stage) -> Record:
    """What is in the file once everything that was started is gone."""
    target = stage.folder / "answers"
    with target.open("wb") as file:
        record = stage.probe("emit", 100_000, stdout=file).finish()
    return {**record, "left_first": stage.left(), "answers": target.stat().st_size}


@scenario
def stdout_is_dev_null(stage: Stage) -> Record:
    return stage.probe("chatter", stdout=subprocess.DEVNULL).finish(b"into the void\n")


@cases(stdin="<&-", stdout=">&-", stderr="2>&-", all_three="<&- >&- 2>&-")
def closed_from_the_start(stage: Stage, how: str) -> Record:
    """The setup shell closes descriptors; the server leaves a file that says which it has."""
    result = stage.folder / "found"
    look = f"exec 9>{result}; for n in 0 1 2; do test -e /proc/$$/fd/$n && echo $n >&9; done"
    record = stage.start(["/bin/sh", "-c", look], setup=f"exec {how}").finish()
    return {"found": result.read_bytes(), **record}


ENVIRONMENTS: dict[str, dict[bytes, bytes]] = {
    "no_lang": {b"PATH": b"/usr/bin:/bin"},
    "lang": {b"LANG": b"en_US.UTF-8", b"PATH": b"/usr/bin:/bin"},
    "lc_all_c": {b"LC_ALL": b"C", b"PATH": b"/usr/bin:/bin"},
    "own_lc_ctype": {b"LC_CTYPE": b"C.UTF-8", b"PATH": b"/usr/bin:/bin"},
    "empty": {},
    "not_utf8": {b"W\xffRD": b"\xfe\x80", b"PATH": b"/usr/bin:/bin"},
    "empty_value_and_equals": {b"A": b"", b"B": b"=x==", b"PATH": b"/usr/bin:/bin"},
    "multi_line": {b"FUNC": b"() { echo;\n }", b"PATH": b"/usr/bin:/bin"},
    "python_settings": {b"PYTHONHOME": b"/nowhere", b"PYTHONPATH": b"/nowhere", b"PYTHONUNBUFFERED": b"1"},
    "large": {b"BIG": b"v" * 100_000},
}


@cases(**ENVIRONMENTS)
def environment(stage: Stage, environ: dict[bytes, bytes]) -> Record:
    return stage.start(["/bin/cat", "/proc/self/environ"], env=environ).finish()


@cases(plain=["a", "b"], empty=[""], spaces=["a b", "  ", "\n"], options=["--home", "-x", "--", "--name"])
def arguments(stage: Stage, words: list[str]) -> Record:
    return stage.start(["/bin/sh", "-c", 'printf "<%s>" "$@"', "sh", *words]).finish()


@scenario
def arguments_that_are_not_utf8(stage: Stage) -> Record:
    return stage.start(["/bin/sh", "-c", 'printf "<%s>" "$@"', "sh", os.fsdecode(b"\xff\xfe")]).finish()


@scenario
def command_found_on_path(stage: Stage) -> Record:
    folder = stage.folder / "bin"
    folder.mkdir()
    (folder / "my-server").write_text("#!/bin/sh\necho $0\n")
    (folder / "my-server").chmod(0o755)
    record = stage.start(["my-server"], env={**stage.environ, "PATH": f"{folder}:/usr/bin:/bin"}).finish()
    return {**record, "output": record["output"].replace(bytes(stage.folder), b"")}


@scenario
def script_without_interpreter_line(stage: Stage) -> Record:
    """execvp(3) hands it to the shell; a client that uses execvp gets the same from km."""
    script = stage.folder / "script"
    script.write_text("echo plain $1\n")
    script.chmod(0o755)
    words = ["/usr/bin/env", str(script), "word"]
    return stage.start(words).finish()
