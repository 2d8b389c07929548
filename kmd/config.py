"""
Settings: one table (name, default, one-sentence help) makes the checks, the annotated TOML and the reference.

A value comes from the environment (`KM_` + the name in capitals, dots as underscores), else from the file,
else from the table. Destinations are tables of their own: `[[destinations]]` with name, url and key.
"""

import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import tomli_w

from kmd.errors import ConfigError
from kmd.open_flags import BINARY, NO_LINKS, NO_WAIT
from kmd.private_dir import make_dir
from kmd.toml_lines import find_line

Value = int | str | bool


@dataclass(frozen=True, slots=True)
class Setting:
    """
    One scalar setting; `field` is its name in Config.

    `choices` closes the set of a text; `least` and `most` bound a number.
    """

    name: str
    field: str
    default: Value
    help: str
    least: int = 0
    most: int = 2**53
    choices: tuple[str, ...] = ()

    @property
    def variable(self) -> str:
        return "KM_" + self.name.upper().replace(".", "_")


SETTINGS = (
    Setting(
        "log.level",
        "log_level",
        "info",
        "How much kmd says on stderr.",
        choices=("debug", "info", "warning", "error"),
    ),
    Setting(
        "capture.payloads",
        "keep_payloads",
        default=True,
        help="Keep what each message said; when off, only names, sizes, times and outcomes are kept.",
    ),
    Setting(
        "capture.max_message_bytes",
        "max_message_bytes",
        16 * 2**20,
        "Keep at most this much of one message; a longer one is stored as its prefix with its SHA-256.",
        least=1024,
        most=24 * 2**20,
    ),
    Setting(
        "outbox.max_bytes",
        "outbox_max_bytes",
        512 * 2**20,
        "Keep at most this much on this machine; payloads of delivered events go first, then delivered events.",
        least=2**20,
        most=2**45,
    ),
    Setting(
        "outbox.max_age_days",
        "outbox_max_age_days",
        14,
        "Keep delivered events this long; 0 keeps them until the size bound. Undelivered ones have no age.",
        most=36500,
    ),
    Setting("sync.batch_events", "batch_events", 500, "Most events in one POST.", least=1, most=1000),
    Setting(
        "sync.batch_bytes",
        "batch_bytes",
        2**20,
        "Most uncompressed payload bytes in one POST.",
        least=1024,
        most=2**26,
    ),
    Setting("sync.timeout_s", "timeout_s", 30, "Total seconds that one POST may take.", least=1, most=600),
)
KEY_SOURCES = ("keyring", "file")
DESTINATION_KEYS = ("name", "url", "key", "key_from", "ca_file")
DEFAULT_NAME = "default"
NAME_MAX_CHARS = 100
"""Of a destination's name: it stands in tables and log lines."""


@dataclass(frozen=True, slots=True)
class Destination:
    """
    A km-server to sync to. `url` is its root; the key is never shown.

    key_from: where the key is when it does not stand here (kmd.keys). ca_file: the authorities that are trusted there
    and no others; empty for those of everybody (kmd.trust).
    """

    name: str
    url: str
    key: str = ""
    key_from: str = ""
    ca_file: str = ""

    @property
    def has_key(self) -> bool:
        """Whether there is a key here or elsewhere."""
        return bool(self.key or self.key_from)

    def __repr__(self) -> str:
        return f"Destination(name={self.name!r}, url={self.url!r})"


@dataclass(frozen=True, slots=True)
class Config:
    """What kmd runs with. `sources` says for each setting where its value came from."""

    log_level: str
    keep_payloads: bool
    max_message_bytes: int
    outbox_max_bytes: int
    outbox_max_age_days: int
    batch_events: int
    batch_bytes: int
    timeout_s: int
    destinations: tuple[Destination, ...]
    sources: Mapping[str, str]


def load_config(path: Path, environ: Mapping[str, str]) -> Config:
    """Read and check the file at *path*; a missing file means the defaults, local only. Raises ConfigError."""
    try:
        text = read_regular(path).decode("utf-8")
    except FileNotFoundError:
        text = ""
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(path, "", f"cannot be read ({type(exc).__name__})", hint="check its permissions") from exc
    return parse_config(text, environ, path)


def read_regular(path: Path) -> bytes:
    """All of the file at *path*. Raises OSError; ConfigError at once where a FIFO would have us wait for ever."""
    with os.fdopen(os.open(path, os.O_RDONLY | NO_WAIT | BINARY), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ConfigError(path, "", "is no regular file", hint="put a file there, or nothing")
        return file.read()


def parse_config(text: str, environ: Mapping[str, str], path: Path | None = None) -> Config:
    """Check TOML *text* against the table. Raises ConfigError naming file, key, line and what to do."""
    tables = parse_toml(text, path)
    try:
        return check_tables(tables, environ, path)
    except ConfigError as exc:
        line = find_line(text, exc.key) if exc.path == path else None
        if line is None:
            raise
        raise ConfigError(path, exc.key, exc.problem, hint=exc.hint, line=line) from exc


def check_tables(tables: Mapping[str, Any], environ: Mapping[str, str], path: Path | None) -> Config:
    """Check what a file says. Raises ConfigError naming file, key and what to do."""
    known = {setting.name.split(".")[0] for setting in SETTINGS} | {"destinations"}
    for table in tables:
        if table not in known:
            raise ConfigError(path, table, "no such table", hint=f"known: {', '.join(sorted(known))}")
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for setting in SETTINGS:
        values[setting.field], sources[setting.name] = choose_value(setting, tables, environ, path)
    reject_unknown_keys(tables, path)
    destinations = parse_destinations(tables.get("destinations", []), path)
    return Config(**values, destinations=destinations, sources=sources)


def parse_toml(text: str, path: Path | None) -> dict[str, Any]:
    """TOML to tables; a fault is reported with the parser's line and column."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as exc:  # a number of 5000 digits, a thousand brackets
        hint = "correct that line, or move the file away and run 'kmctl init'"
        raise ConfigError(path, "", f"not valid TOML: {exc}", hint=hint) from exc


def choose_value(
    setting: Setting, tables: Mapping[str, Any], environ: Mapping[str, str], path: Path | None
) -> tuple[Value, str]:
    """The value of one setting and its source: environment, file or default."""
    if setting.variable in environ:
        value = parse_text(setting, environ[setting.variable])
        return check_value(setting, value, None, setting.variable), "environment"
    table_name, key = setting.name.split(".")
    table = tables.get(table_name, {})
    if not isinstance(table, dict):
        raise ConfigError(path, table_name, "must be a table", hint=f"write [{table_name}] on a line of its own")
    if key in table:
        return check_value(setting, table[key], path, setting.name), "file"
    return setting.default, "default"


def parse_text(setting: Setting, text: str) -> Value:
    """An environment variable's text as the setting's type; what does not fit stays text and fails the check."""
    if isinstance(setting.default, bool):
        return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}.get(text.lower(), text)
    if isinstance(setting.default, int) and WHOLE_NUMBER.fullmatch(text):
        return int(text)
    return text


WHOLE_NUMBER = re.compile(r"-?[0-9]{1,18}")


def check_value(setting: Setting, value: object, path: Path | None, where: str) -> Value:
    """*value*, found under the name *where*, if it fits the table's row. Raises ConfigError with the row's help."""
    if type(value) is not type(setting.default):
        raise ConfigError(path, where, f"must be {TYPE_NAMES[type(setting.default)]}", hint=setting.help)
    if setting.choices and value not in setting.choices:
        raise ConfigError(path, where, f"must be one of {', '.join(setting.choices)}", hint=setting.help)
    if type(value) is int and not setting.least <= value <= setting.most:
        raise ConfigError(path, where, f"must be {setting.least} to {setting.most}", hint=setting.help)
    assert isinstance(value, Value)  # noqa: S101 - the type test above has settled it
    return value


TYPE_NAMES: Mapping[type, str] = {bool: "true or false", int: "a whole number", str: "a text"}


def reject_unknown_keys(tables: Mapping[str, Any], path: Path | None) -> None:
    """A misspelt key must not silently mean its default."""
    known = {setting.name for setting in SETTINGS}
    for table_name, table in tables.items():
        if table_name == "destinations":
            continue
        for key in table:
            if f"{table_name}.{key}" not in known:
                raise ConfigError(path, f"{table_name}.{key}", "no such setting", hint="see docs/configuration.md")


def parse_destinations(rows: object, path: Path | None) -> tuple[Destination, ...]:
    """Check the `[[destinations]]` tables: unique names, http(s) URLs, text keys."""
    if not isinstance(rows, list):
        raise ConfigError(path, "destinations", "must be a list of tables", hint="write [[destinations]]")
    found: list[Destination] = []
    for number, row in enumerate(rows, 1):
        where = f"destinations[{number}]"
        if not isinstance(row, dict) or not all(isinstance(value, str) for value in row.values()):
            raise ConfigError(path, where, "must be a table of texts", hint=", ".join(DESTINATION_KEYS))
        if unknown := set(row) - set(DESTINATION_KEYS):
            hint = f"known: {', '.join(DESTINATION_KEYS)}"
            raise ConfigError(path, f"{where}.{min(unknown)}", "no such setting", hint=hint)
        name = check_name(row.get("name", DEFAULT_NAME), path, f"{where}.name")
        if name in {other.name for other in found}:
            raise ConfigError(path, f"{where}.name", f"{name!r} is used twice", hint="give each its own name")
        url = check_url(row.get("url", ""), path, f"{where}.url")
        key = check_key(row.get("key", ""), path, f"{where}.key")
        key_from = check_key_from(row.get("key_from", ""), key, path, f"{where}.key_from")
        ca_file = check_ca_file(row.get("ca_file", ""), path, f"{where}.ca_file")
        found.append(Destination(name, url, key, key_from, ca_file))
    return tuple(found)


def check_key_from(key_from: str, key: str, path: Path | None, where: str) -> str:
    """*key_from*, perhaps empty. Raises ConfigError for an unknown place, or when the key stands here as well."""
    if key_from and key_from not in KEY_SOURCES:
        raise ConfigError(path, where, f"must be one of {', '.join(KEY_SOURCES)}", hint="'kmctl login' writes it")
    if key_from and key:
        raise ConfigError(path, where, "contradicts the key beside it", hint="keep one of the two")
    return key_from


def check_ca_file(text: str, path: Path | None, where: str) -> str:
    """*text*, perhaps empty. Raises ConfigError: kmd would not find that file from wherever it is started."""
    if text and not (text.isprintable() and Path(text).is_absolute()):
        raise ConfigError(path, where, "must be a file's whole path", hint="for example /etc/ssl/our-authority.pem")
    return text


def check_name(name: str, path: Path | None, where: str) -> str:
    """*name*. Raises ConfigError when it is empty, long, or cannot be shown on one line."""
    if not name.strip() or len(name) > NAME_MAX_CHARS or not name.isprintable():
        problem = f"must be 1 to {NAME_MAX_CHARS} printable characters"
        raise ConfigError(path, where, problem, hint="for example: default")
    return name


def check_key(key: str, path: Path | None, where: str) -> str:
    """*key*, perhaps empty. Raises ConfigError, which does not show it, when no HTTP header could carry it."""
    if not key.isascii() or not key.isprintable() or " " in key:
        hint = "paste it again: it has only ASCII letters, digits and signs"
        raise ConfigError(path, where, "is not an API key", hint=hint)
    return key


def check_url(url: str, path: Path | None, key: str) -> str:
    """*url* without a trailing slash. Raises ConfigError unless it is http(s) with a host and no credentials."""
    example = "for example https://km.example.com"
    try:
        parts = urlsplit(url)
        port_fits = parts.port is None or parts.port > 0
    except ValueError as exc:
        raise ConfigError(path, key, "is not a URL", hint=example) from exc
    if not url.isprintable() or " " in url:
        raise ConfigError(path, key, "must hold no space or control character", hint=example)
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_fits:
        raise ConfigError(path, key, "must be an http:// or https:// URL", hint=example)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError(path, key, "must hold no user, password, query or fragment", hint="put the key under 'key'")
    return url.rstrip("/")


LOCAL_ONLY = "# No destination: everything stays on this machine. 'kmctl init --url … --key …' adds one."
"""The last line of a file without a destination; it goes when the first one comes."""


def render_config(destinations: tuple[Destination, ...]) -> str:
    """An annotated config file: every setting as a comment with its default, then the destinations."""
    lines = ["# Kilometers. Every setting is shown with its default; remove the '#' to change one."]
    tables: dict[str, list[str]] = {}
    for setting in SETTINGS:
        table, key = setting.name.split(".")
        shown = tomli_w.dumps({key: setting.default}).strip()
        tables.setdefault(table, []).extend([f"# {setting.help}", f"# {shown}"])
    for table, body in tables.items():
        lines += ["", f"[{table}]", *body]
    for destination in destinations:
        row = {key: getattr(destination, key) for key in DESTINATION_KEYS}
        lines += [
            "",
            "[[destinations]]",
            tomli_w.dumps({key: text for key, text in row.items() if text}).strip(),
        ]
    if not destinations:
        lines += ["", LOCAL_ONLY]
    return "\n".join(lines) + "\n"


def write_private(path: Path, text: str, encoding: str = "utf-8") -> None:
    """
    Write *text* to *path* in one step, readable by this user only (0600, its folder 0700 when made).

    A symbolic link stays one: what it points to is replaced. Raises OSError; then nothing has changed.
    """
    path = path.resolve()
    make_dir(path.parent)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINKS | BINARY, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding=encoding, newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
