"""A machine on which all is well, for tests of `kmctl doctor` to spoil."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kmctl.cli import run
from tests.cli.terminal import run_kmctl

Shown = pytest.CaptureFixture[str]
SERVER = """
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    {body}
    if "id" in message:
        print(json.dumps({{"jsonrpc": "2.0", "id": message["id"], {answer}}}), flush=True)
"""
RESULT, ERROR = '"result": {}', '"error": {"code": -32601, "message": "no"}'


def server(body: str = "pass", answer: str = RESULT) -> str:
    """The code of an MCP server that does *body* with each message, then answers."""
    return SERVER.format(body=body, answer=answer)


@dataclass(slots=True)
class Desk:
    """A person's machine, all well: kmd, a destination, and a client whose only server is behind km."""

    home: Path
    url: str
    database: Path

    @property
    def km_home(self) -> Path:
        return self.home / "km"

    @property
    def config(self) -> Path:
        return self.km_home / "config.toml"

    @property
    def client_file(self) -> Path:
        return self.home / ".cursor" / "mcp.json"

    def write_client(self, *words: str) -> None:
        """The client's file as a person has it, then put behind km as `kmctl install` does."""
        self.client_file.parent.mkdir(exist_ok=True)
        entry = {"command": words[0], "args": list(words[1:])}
        self.client_file.write_text(json.dumps({"mcpServers": {"own": entry}}, indent=2))
        self.install()

    def write_server(self, code: str) -> None:
        """The client's server is a program with this code."""
        program = self.home / "server.py"
        program.write_text(code)
        self.write_client(sys.executable, str(program))

    def install(self) -> None:
        arguments = ["--home", str(self.km_home), "install", "--yes", "--no-service", "--client", "cursor"]
        code, _, err = run_kmctl(*arguments, environ={"HOME": str(self.home)})
        assert code == 0, err

    def write_config(self, url: str, key: str, extra: str = "") -> None:
        destination = f'[[destinations]]\nname = "team"\nurl = "{url}"\nkey = "{key}"\n'
        self.config.write_text(extra + destination)
        self.config.chmod(0o600)


def examine(home: Path, capsys: Shown, *options: str) -> tuple[int, dict[str, Any]]:
    code = run(["--home", str(home), "doctor", "--json", *options])
    shown: dict[str, Any] = json.loads(capsys.readouterr().out)
    return code, shown
