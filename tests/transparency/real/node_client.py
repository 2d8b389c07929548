"""Plays parts with the official TypeScript clients: tests/node/play.mjs does it, all parts in one Node.js."""

import base64
import json
import signal
import subprocess
from dataclasses import asdict
from typing import Any

from tests.support.node import FOLDER, node
from tests.transparency.real.played import Played, Spawned
from tests.transparency.real.servers import Part

PLAY_MAX_S = 100.0


def play_all(sdk: str, parts: list[Part]) -> list[Played]:
    """Play all *parts* at once with *sdk* (`v1`, `v2`); what was seen of each."""
    request = {"sdk": sdk, "sessions": [{**asdict(part), "cwd": part.cwd and str(part.cwd)} for part in parts]}
    words = [node(), str(FOLDER / "play.mjs")]
    done = subprocess.run(words, input=json.dumps(request).encode(), stdout=subprocess.PIPE, timeout=PLAY_MAX_S)
    assert done.returncode == 0, "play.mjs has failed; its words are on stderr"
    return [parse(seen) for seen in json.loads(done.stdout)]


def parse(seen: dict[str, Any]) -> Played:
    return Played(seen["results"], [parse_spawned(each) for each in seen["spawned"]])


def parse_spawned(seen: dict[str, Any]) -> Spawned:
    status = -signal.Signals[seen["signal"]] if seen["signal"] else seen["status"]
    return Spawned(base64.b64decode(seen["sent"]), base64.b64decode(seen["received"]), status)
