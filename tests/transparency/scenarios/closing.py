"""How it ends: each direction closes on its own, and each side sees the other go, also while it is idle."""

import os
import signal
import subprocess
from contextlib import suppress

from tests.transparency.client import WAIT_S, Client, Record
from tests.transparency.stage import Stage, cases, probe_words, scenario


@scenario
def client_closes_and_still_gets_the_answer(stage: Stage) -> Record:
    return stage.probe("after_eof").finish(b"request\n")


@scenario
def client_closes_without_a_word(stage: Stage) -> Record:
    return stage.probe("after_eof").finish()


@scenario
def server_closes_stdout_and_reads_on(stage: Stage) -> Record:
    client = stage.probe("close_stdout")
    seen = client.receive_rest()
    client.send(b"still here\n" * 100)
    alive = client.process.poll() is None
    return {"seen": seen, "alive": alive, **client.finish()}


@scenario
def server_closes_stdin_and_goes_on(stage: Stage) -> Record:
    client = stage.probe("close_stdin", "stay")
    seen = client.receive_line()
    gone = client.sees_gone(client.input)
    record = {"seen": seen, "gone": gone, "write": try_send(client), "alive": client.process.poll() is None}
    client.process.terminate()
    return {**record, **client.finish()}


@scenario
def server_closes_stdin_unread(stage: Stage) -> Record:
    client = stage.probe("close_stdin", "stay")
    with suppress(BrokenPipeError):  # it may be quicker
        client.send(b"never read\n")
    record = {"seen": client.receive_line(), "gone": client.sees_gone(client.input)}
    client.process.terminate()
    return {**record, **client.finish()}


@scenario
def server_closes_both_and_lives_on(stage: Stage) -> Record:
    client = stage.probe("close_both")
    record: Record = {"seen": client.receive_rest(), "note": client.receive_note()}
    record |= {"gone": client.sees_gone(client.input), "write": try_send(client)}
    record["alive"] = client.process.poll() is None
    client.process.terminate()
    return {**record, **client.finish()}


@scenario
def server_exits_while_stdin_is_open(stage: Stage) -> Record:
    client = stage.probe("emit", 10, 4)
    record = {"seen": client.receive_rest(), "gone": client.sees_gone(client.input), "write": try_send(client)}
    return {**record, **client.finish()}


@cases(dies_of_sigpipe=(), gets_epipe=("catch",))
def client_stops_reading_while_the_server_is_idle(stage: Stage, how: tuple[str, ...]) -> Record:
    client = stage.probe("notice_reader_gone", *how)
    client.receive_line()
    client.close_output()
    return client.finish()


@scenario
def client_stops_reading_a_flood(stage: Stage) -> Record:
    client = stage.probe("flood")
    client.receive(100_000)
    client.close_output()
    return client.finish()


@scenario
def client_drops_both(stage: Stage) -> Record:
    client = stage.probe("echo")
    client.send(b"x")
    client.receive(1)
    client.close_output()
    client.close_input()
    return client.finish()


@scenario
def errors_end_with_the_server(stage: Stage) -> Record:
    """The end of stderr is the server's end: nobody else holds it, although stdin and stdout are still open."""
    client = stage.probe("die", "KILL")
    os.set_blocking(client.errors, True)
    errors = os.read(client.errors, 100)
    return {"errors_first": errors, "status_first": client.wait(), **client.finish()}


@scenario
def errors_end_before_the_server_does(stage: Stage) -> Record:
    """A server that closes stderr: the client sees that at once, as nobody else has it."""
    client = stage.start(["/bin/sh", "-c", "exec 2>&-; read line; exit 6"])
    errors = client.poll_errors(int(WAIT_S * 1000))
    return {"errors_ended": errors, "alive": client.process.poll() is None, **client.finish(b"go\n")}


@scenario
def launcher_leaves_the_server_on_the_pipes(stage: Stage) -> Record:
    client = stage.probe("leave_child")
    status = client.wait()
    client.send(b"to the child\n")
    return {"status_first": status, "seen": client.receive_line(), **client.finish(b"bye\n")}


@scenario
def grandchild_writes_after_the_server(stage: Stage) -> Record:
    client = stage.probe("late_child")
    seen = client.receive_rest()
    return {"seen": sorted(seen.splitlines()), **client.finish()}


@scenario
def server_in_the_background_of_a_shell(stage: Stage) -> Record:
    words = probe_words("echo")
    client = stage.start(["/bin/sh", "-c", 'exec 3<&0; "$@" <&3 3<&- & exit 2', "sh", *words])
    status = client.wait()
    return {"status_first": status, **client.finish(b"hello\n")}


@cases(reader="obey", flood="flood", deaf="deaf")
def client_is_killed(stage: Stage, probe: str) -> Record:
    """Nothing stays but what would stay bare: a server that ignores the end of its input, until it is ended too."""
    words = stage.wrap(stage.home, probe_words(probe))
    client = stage.start_bare([*probe_words("orphaned"), *words], stdin=subprocess.DEVNULL)
    server = int(client.receive_note())
    client.process.kill()
    record: Record = {"status": client.wait()}
    if probe == "deaf":
        record["stays"] = [name.split()[0] for name in stage.left(0.5)]
        os.kill(server, signal.SIGTERM)
    return record


def try_send(client: Client) -> str:
    try:
        client.send(b"anyone?\n")
    except BrokenPipeError:
        return "EPIPE"
    return "taken"
