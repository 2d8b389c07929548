"""One door to the three formats: which one a file has, how its text becomes a tree, how a string is written. Pure."""

from kmctl.clients.jsonc import read_json
from kmctl.clients.toml import read_toml
from kmctl.clients.tree import Document, Format, NotUnderstood
from kmctl.clients.yaml import read_yaml

TEXT_MAX = 1 << 20
"""Characters of TOML and YAML, whose readers take 10 s for so much; such files have kilobytes."""
BOM = "\ufeff"
SUFFIXES = {".toml": Format.TOML, ".yaml": Format.YAML, ".yml": Format.YAML}
SHORT_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
READERS = {Format.JSON: read_json, Format.TOML: read_toml, Format.YAML: read_yaml}


def format_of(suffix: str) -> Format:
    """The format of a file with that suffix (`.toml`); JSON for all that is not TOML or YAML."""
    return SUFFIXES.get(suffix.lower(), Format.JSON)


def parse_document(raw: bytes, form: Format) -> Document:
    """
    A file's bytes as a document.

    Raises: NotUnderstood, with the line, when they are not UTF-8 or not valid.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise NotUnderstood(raw.count(b"\n", 0, exc.start) + 1, "is not UTF-8") from None
    return parse_text(text, form)


def parse_text(text: str, form: Format) -> Document:
    """The document that *text* is. Raises NotUnderstood: it is too large, not valid, or nested too deeply."""
    if form is not Format.JSON and len(text) > TEXT_MAX:
        raise NotUnderstood(1, f"is larger than {TEXT_MAX >> 20} MiB")
    try:
        return Document(text, form, READERS[form](text, len(BOM) if text.startswith(BOM) else 0))
    except RecursionError:
        raise NotUnderstood(1, "nested too deeply") from None


def render_string(value: str, form: Format) -> str:
    """*value* in double quotes, which all three formats read alike; what does not print is escaped."""
    return '"' + "".join(SHORT_ESCAPES.get(char) or render_char(char, form) for char in value) + '"'


def render_char(char: str, form: Format) -> str:
    """One character of a string in double quotes."""
    point = ord(char)
    if char.isprintable():
        return char
    if point <= 0xFFFF:
        return f"\\u{point:04x}"
    if form is not Format.JSON:
        return f"\\U{point:08x}"
    high, low = divmod(point - 0x10000, 0x400)
    return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"
