"""docs/clients.md against the table of clients."""

import re
from pathlib import Path

from kmctl.clients.table import CLIENTS

PAGE = (Path(__file__).parents[3] / "docs" / "clients.md").read_text()
ROWS = re.findall(r"^\| `(\w[\w-]*)` \| (.+?) \| (.+?) \| (.+?) \|$", PAGE, re.MULTILINE)


def test_the_page_names_every_client_place_and_key_and_no_other() -> None:
    told = [
        (name, title, re.findall(r"`(.+?)`", files), set(re.findall(r"`(.+?)`", keys)))
        for name, title, files, keys in ROWS
    ]
    assert told == [
        (
            one.id,
            one.title,
            [place.path for place in one.places],
            {".".join(key) for place in one.places for key in place.keys},
        )
        for one in CLIENTS
    ]


def test_ids_and_titles_are_there_once() -> None:
    assert len({one.id for one in CLIENTS}) == len({one.title for one in CLIENTS}) == len(CLIENTS)
