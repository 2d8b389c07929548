"""Signals and endings: what reaches the server, and what the client then learns from wait(2)."""

import os
import signal
import sys

from tests.transparency.client import Client, Record
from tests.transparency.stage import Stage, cases, scenario, wait_state

LAUNCHER = (
    "import os, signal, sys\n"
    "signal.signal(signal.SIGPIPE, signal.SIG_DFL); signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n"
    "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2, signal.SIGCHLD, signal.SIGTERM])\n"
    "os.execv(sys.argv[1], sys.argv[1:])\n"
)
"""Blocks signals, which no shell can, and becomes the next program."""
PROMPT_MS = 250
"""Far above what a loaded machine needs to deliver a signal, well below a delay that someone put there."""
NO_CORE = "ulimit -c 0"


@cases(zero=0, one=1, seven=7, all_bits=255)
def exit_code(stage: Stage, code: int) -> Record:
    return stage.probe("echo_then", code).finish(b"x\n")


@cases(**{name: name for name in ("TERM", "INT", "HUP", "KILL", "SEGV", "ABRT", "PIPE", "USR1")})
def dies_by_itself(stage: Stage, name: str) -> Record:
    return stage.probe("die", name, setup=NO_CORE).finish()


@cases(**{name: name for name in ("TERM", "INT", "HUP", "KILL", "QUIT", "USR1", "ALRM")})
def client_signals_the_process(stage: Stage, name: str) -> Record:
    client = stage.probe("obey", setup=NO_CORE)
    ready = client.receive_line()
    client.process.send_signal(getattr(signal, f"SIG{name}"))
    return {"ready": ready, "status_first": client.wait(), **client.finish()}


@cases(**{name: name for name in ("TERM", "INT", "HUP", "KILL")})
def client_signals_the_group(stage: Stage, name: str) -> Record:
    client = stage.probe("obey", start_new_session=True)
    ready = client.receive_line()
    os.killpg(client.process.pid, getattr(signal, f"SIG{name}"))
    return {"ready": ready, "status_first": client.wait(), **client.finish()}


@cases(to_process=os.kill, to_group=os.killpg)
def caught_signals_come_once(stage: Stage, send: object) -> Record:
    """Each signal is delivered exactly once: a wrapper that forwards them doubles those to the group."""
    assert callable(send)
    client = stage.probe("obey", "HUP", "USR1", "TERM", start_new_session=True)
    seen = [client.receive_line()]
    for name in ("HUP", "USR1", "HUP"):
        send(client.process.pid, getattr(signal, f"SIG{name}"))
        seen.append(client.receive_line())
    client.process.terminate()
    return {"seen": seen, **client.finish()}


@scenario
def usr1_arrives_at_once(stage: Stage) -> Record:
    """A signal is not overtaken: it acts within PROMPT_MS, although nothing else goes on."""
    client = stage.probe("obey", "USR1")
    client.receive_line()
    client.process.send_signal(signal.SIGUSR1)
    return {"prompt": client.poll_output(PROMPT_MS), "seen": client.receive_line(), **client.finish()}


@scenario
def term_ends_it_at_once(stage: Stage) -> Record:
    client = stage.probe("obey")
    client.receive_line()
    client.process.terminate()
    return {"prompt": client.poll_output(PROMPT_MS), **client.finish()}


@scenario
def stop_and_continue(stage: Stage) -> Record:
    client = stage.probe("echo")
    client.send(b"a")
    seen = [client.receive(1)]
    client.process.send_signal(signal.SIGSTOP)
    stopped = wait_state(client.process.pid, "T")
    client.send(b"b")
    quiet = not client.poll_output(200)
    client.process.send_signal(signal.SIGCONT)
    seen.append(client.receive(1))
    return {"stopped": stopped, "quiet": quiet, "seen": seen, **client.finish()}


@scenario
def stop_is_reported_to_the_parent(stage: Stage) -> Record:
    client = stage.probe("echo")
    client.send(b"a")
    client.receive(1)
    os.kill(client.process.pid, signal.SIGSTOP)
    _, status = os.waitpid(client.process.pid, os.WUNTRACED)
    os.kill(client.process.pid, signal.SIGCONT)
    _, again = os.waitpid(client.process.pid, os.WCONTINUED)
    return {"stop": status, "continue": again, **client.finish()}


@scenario
def stopped_then_killed(stage: Stage) -> Record:
    client = stage.probe("stubborn")
    client.receive_line()
    client.process.send_signal(signal.SIGSTOP)
    wait_state(client.process.pid, "T")
    client.process.kill()
    return client.finish()


@scenario
def end_and_term_are_ignored(stage: Stage) -> Record:
    """The usual escalation: close stdin, SIGTERM, SIGKILL."""
    client = stage.probe("stubborn")
    client.receive_line()
    client.close_input()
    client.process.terminate()
    alive = not client.poll_output(200) and client.process.poll() is None
    client.process.kill()
    return {"alive": alive, **client.finish()}


@cases(none=":", hup="trap '' HUP", many="trap '' HUP INT QUIT TERM USR1 CHLD", chld="trap '' CHLD")
def ignored_signals(stage: Stage, setup: str) -> Record:
    return status_lines(stage.start(["/bin/cat", "/proc/self/status"], setup=setup))


@scenario
def blocked_signals(stage: Stage) -> Record:
    words = stage.wrap(stage.home, ["/bin/cat", "/proc/self/status"])
    return status_lines(stage.start_bare([sys.executable, "-I", "-S", "-c", LAUNCHER, *words]))


def status_lines(client: Client) -> Record:
    """Only what /proc/self/status says about signals: `cat` changes none of its own."""
    output = client.receive_rest()
    kept = [line for line in output.splitlines() if line.startswith((b"SigB", b"SigI", b"SigC", b"SigP", b"ShdP"))]
    return {"signals": kept, **client.finish()}


@cases(TERM="TERM", KILL="KILL", HUP="HUP")
def signal_right_after_the_start(stage: Stage, name: str) -> Record:
    """Before there is a server: whatever stands at this pid dies of it, and nothing stays."""
    client = stage.probe("echo")
    client.process.send_signal(getattr(signal, f"SIG{name}"))
    return client.finish()
