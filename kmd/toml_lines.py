"""Where in a TOML text a setting stands, for messages. Pure; by eye, so to speak: an odd layout may hide a line."""

import re

HEADER = re.compile(r"""\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?""")
KEY = re.compile(r"""\s*([\w\-."' ]+?)\s*=""")
QUOTES = re.compile(r"""["' ]""")


def find_line(text: str, where: str) -> int | None:
    """
    The number (from 1) of the line of *where*, such as `log.level` or `destinations[2].url`.

    A key that is missing has the line of its table. None: neither was found.
    """
    lines = index_lines(text)
    while where:
        if where in lines:
            return lines[where]
        where = where.rpartition(".")[0]
    return None


def index_lines(text: str) -> dict[str, int]:
    """Each table's and key's first line, by its full name."""
    lines: dict[str, int] = {}
    counts: dict[str, int] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := HEADER.fullmatch(line):
            table = QUOTES.sub("", header[2])
            if header[1] == "[[":
                counts[table] = counts.get(table, 0) + 1
                table = f"{table}[{counts[table]}]"
            lines.setdefault(table, number)
        elif key := KEY.match(line):
            name = QUOTES.sub("", key[1])
            lines.setdefault(f"{table}.{name}" if table else name, number)
    return lines
