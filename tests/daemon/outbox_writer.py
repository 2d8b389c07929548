"""
A process that commits to an outbox as fast as it can and says so, until it is killed.

`python -m tests.daemon.outbox_writer FILE`: after each commit it prints up to which offset the stream is
durable, as kmd would acknowledge it. It goes on where an earlier one was durable.
"""

import os
import sys
from pathlib import Path

from kmd.mcp.names import Stream
from kmd.outbox.outbox import Intake, Outbox
from tests.daemon.rows import START, message

GROUP = 7
PAYLOAD_BYTES = 500


def main(path: Path) -> None:
    with Outbox(path) as outbox:
        known = outbox.open_session(START)
        offset = known.durable.get(Stream.TO_SERVER, 0)
        while True:
            messages = [message(offset + number * (PAYLOAD_BYTES + 1), payload(offset)) for number in range(GROUP)]
            offset += GROUP * (PAYLOAD_BYTES + 1)
            outbox.commit([Intake(known.session_id, messages, {Stream.TO_SERVER: offset})])
            os.write(1, b"%d\n" % offset)


def payload(offset: int) -> bytes:
    """What stands at a group's offset; every byte of it can be told from another group's."""
    return (b"%d " % offset * PAYLOAD_BYTES)[:PAYLOAD_BYTES]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
