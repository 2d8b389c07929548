"""
Settings: the fields of `ServerConfig` are the one table of them (name, default, bounds, one-sentence help).

A value comes from a flag (`--max-body-bytes`), else from the environment (`KM_SERVER_MAX_BODY_BYTES`, or
`KM_SERVER_MAX_BODY_BYTES_FILE`, which names a file that holds it), else from the TOML file (`max_body_bytes`, or
`max_body_bytes_file`), else from the table. Every value knows where it came from.
"""

import ipaddress
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import platformdirs

from km_server.errors import ConfigError
from kmd.wire import BATCH_MAX_EVENTS

T = TypeVar("T")
Value = int | float | str

PREFIX = "KM_SERVER_"
FILE_SUFFIX = "_file"
"""A name with this names a file that holds the value: secrets need not stand in an environment."""

SECRET_MAX_BYTES = 64 * 1024
"""Of a file that holds one value."""

PORT_MAX = 65_535
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a setting is for and between which numbers it lies; `secret` ones are never shown whole."""

    help: str
    least: float = 0
    most: float = 2**53
    secret: bool = False


def setting(default: T, help_text: str, *, least: float = 0, most: float = 2**53, secret: bool = False) -> T:
    """A field of ServerConfig with what is said about it."""
    return field(default=default, metadata={"bounds": Bounds(help_text, least, most, secret)})


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """What the server runs with. `port` 0 means any free one; a limit of 0 is no limit where its help says so."""

    database_url: str = setting("", "Where everything is kept, as sqlite:///PATH or postgresql://…", secret=True)
    host: str = setting("127.0.0.1", "Listen here.")
    port: int = setting(8713, "And on this port; 0 takes a free one.", most=PORT_MAX)
    workers: int = setting(1, "Processes that share the port; more than one needs PostgreSQL.", least=1, most=256)
    tls_cert: str = setting("", "A PEM file with the certificate and its chain: serves HTTPS.")
    tls_key: str = setting("", "A PEM file with the certificate's key; empty when it is in the same file.")
    trusted_proxies: str = setting(
        "", "Addresses or networks, with commas, whose X-Forwarded-For and X-Forwarded-Proto are believed."
    )
    head_timeout_s: float = setting(20.0, "Seconds for a request's line and headers to arrive.", least=0.05, most=3600)
    body_timeout_s: float = setting(60.0, "Seconds for a request's body to arrive.", least=0.05, most=3600)
    idle_timeout_s: float = setting(75.0, "Seconds that a connection may wait for its next request.", least=0.1)
    send_timeout_s: float = setting(60.0, "Seconds that a reader may take nothing of its answer.", least=0.1)
    shutdown_timeout_s: float = setting(25.0, "Seconds for requests under way when the server is told to end.")
    max_connections: int = setting(2_000, "Connections at once, in one process.", least=1, most=1_000_000)
    max_body_bytes: int = setting(32 * MIB, "Of a body as it is sent.", least=1024, most=2**31)
    max_inflated_bytes: int = setting(64 * MIB, "Of a body once unpacked.", least=1024, most=2**31)
    max_inflation_ratio: int = setting(
        100, "How many times its packed length a body of over 33 MiB may unpack to.", least=1
    )
    max_in_flight_bytes: int = setting(
        256 * MIB, "Of all bodies being read and unpacked at once, in one process.", least=1024
    )
    max_batch_events: int = setting(BATCH_MAX_EVENTS, "Events in one batch.", least=1, most=100_000)
    max_event_bytes: int = setting(33 * MIB, "Of one event's JSON.", least=1024, most=2**31)
    rate_requests_per_s: float = setting(200.0, "Requests per second and key, lasting; 0 is no limit.")
    rate_requests_burst: int = setting(2_000, "Requests that a key may send at once after a rest.", least=1)
    rate_events_per_s: float = setting(0.0, "Events per second and key, lasting; 0 is no limit.")
    rate_events_burst: int = setting(100_000, "Events that a key may send at once after a rest.", least=1)
    retention_check_s: float = setting(
        3600.0, "Seconds between two looks for what is older than its tenant keeps; 0 is never."
    )


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table. `kind` is int, float or str."""

    name: str
    default: Value
    bounds: Bounds

    @property
    def kind(self) -> type[Value]:
        return type(self.default)

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return PREFIX + self.name.upper()


def list_settings() -> tuple[Setting, ...]:
    """The table, read off the fields of ServerConfig."""
    values = ServerConfig()
    return tuple(Setting(row.name, getattr(values, row.name), row.metadata["bounds"]) for row in fields(ServerConfig))


SETTINGS = list_settings()


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration, and for each setting the flag, variable or file that it came from."""

    config: ServerConfig
    sources: Mapping[str, str]


def load_config(flags: Mapping[str, Value | None], environ: Mapping[str, str], file: Path | None) -> Loaded:
    """
    Put the configuration together. *flags*: by setting name, None when not given. *file*: None looks for one.

    Raises ConfigError: a value that cannot be, a file that cannot be read.
    """
    table = read_table(file, environ)
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for row in SETTINGS:
        value, source = find_value(row, flags.get(row.name), environ, table)
        values[row.name], sources[row.name] = parse_value(row, value, source), source
    values["database_url"] = values["database_url"] or default_database_url()
    config = ServerConfig(**values)
    check_config(config)
    return Loaded(config, sources)


@dataclass(frozen=True, slots=True)
class Table:
    """The settings of a TOML file; `path` is None where there is no file."""

    values: Mapping[str, Any]
    path: Path | None


def read_table(file: Path | None, environ: Mapping[str, str]) -> Table:
    """The TOML file: the one that is named, else the one in the user's folder if there is one. Raises ConfigError."""
    named = file or (Path(environ[PREFIX + "CONFIG"]) if environ.get(PREFIX + "CONFIG") else None)
    path = named or Path(platformdirs.user_config_dir("kilometers-server", appauthor=False)) / "server.toml"
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if named is None:
            return Table({}, None)
        raise ConfigError(f"there is no file {path}", hint="check --config and KM_SERVER_CONFIG") from None
    except OSError as exc:
        raise ConfigError(f"cannot read {path}: {exc.strerror}", hint="check the file's permissions") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        # the parser's sentence may quote the text, and the text may be a secret
        raise ConfigError(f"{path} is no TOML", hint='write name = value lines; text in "quotes"') from None
    known = {row.name for row in SETTINGS}
    for name in values:
        if name not in known and name.removesuffix(FILE_SUFFIX) not in known:
            raise ConfigError(f"{path}: there is no setting '{name[:64]}'", hint="see: km-server config")
    return Table(values, path)


def find_value(row: Setting, flag: Value | None, environ: Mapping[str, str], table: Table) -> tuple[Value, str]:
    """Where a setting is said first, and what is said there. Raises ConfigError."""
    if flag is not None:
        return flag, row.flag
    if environ.get(row.variable):
        return environ[row.variable], row.variable
    by_file = row.variable + FILE_SUFFIX.upper()
    if environ.get(by_file):
        return read_secret(environ[by_file], by_file), by_file
    if row.name in table.values:
        return table.values[row.name], str(table.path)
    if row.name + FILE_SUFFIX in table.values:
        source = f"{table.path}: {row.name}{FILE_SUFFIX}"
        return read_secret(str(table.values[row.name + FILE_SUFFIX]), source), source
    return row.default, "default"


def read_secret(path: str, source: str) -> str:
    """The text of a file that holds one value, without its last line end. Raises ConfigError."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(SECRET_MAX_BYTES + 1)
        if len(content) > SECRET_MAX_BYTES:
            raise ConfigError(f"{source}: the file is over {SECRET_MAX_BYTES // 1024} KiB", hint="name another file")
        return content.decode("utf-8").rstrip("\r\n")
    except OSError as exc:
        raise ConfigError(f"{source}: cannot read the file it names: {exc.strerror}", hint="check the path") from None
    except ValueError:
        raise ConfigError(f"{source}: the file it names cannot be read as text", hint="check the path") from None


def parse_value(row: Setting, value: Value, source: str) -> Value:
    """A value of the setting's kind within its bounds; neither is repeated in the error. Raises ConfigError."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ConfigError(f"{source}: {row.name} must be {describe_bounds(row)}", hint="see: km-server config")
    if row.kind is str:
        if not isinstance(value, str) or "\0" in value:
            raise ConfigError(f"{source}: {row.name} must be text", hint="see: km-server config")
        return value
    try:
        number = int(value) if row.kind is int else float(value)
        sound = row.bounds.least <= number <= row.bounds.most and (row.kind is float or float(value) == number)
    except (ValueError, OverflowError):
        sound = False
    if not sound:
        raise ConfigError(f"{source}: {row.name} must be {describe_bounds(row)}", hint="see: km-server config")
    return number


def describe_bounds(row: Setting) -> str:
    """What a value may be, in words."""
    if row.kind is str:
        return "text"
    what = "a whole number" if row.kind is int else "a number"
    return f"{what} from {row.bounds.least:g} to {row.bounds.most:.12g}"


def check_config(config: ServerConfig) -> None:
    """Raises ConfigError: settings that cannot go together."""
    if config.workers > 1 and config.database_url.startswith("sqlite:"):
        raise ConfigError(
            "several workers need PostgreSQL: one process writes an SQLite file",
            hint="leave --workers at 1, or give --database-url postgresql://…",
        )
    if config.tls_key and not config.tls_cert:
        raise ConfigError("tls_key is set without tls_cert", hint="give --tls-cert too")
    parse_networks(config.trusted_proxies)


def parse_networks(text: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    """Addresses and networks with commas between. Raises ConfigError."""
    try:
        return tuple(ipaddress.ip_network(part.strip(), strict=False) for part in text.split(",") if part.strip())
    except ValueError:
        raise ConfigError(
            "trusted_proxies must be addresses or networks with commas", hint="for example 10.0.0.0/8,::1"
        ) from None


def show_value(row: Setting, value: Value) -> Value:
    """A value as it may be shown: of a secret URL the password is left out."""
    if not row.bounds.secret or not isinstance(value, str):
        return value
    try:
        parts = urlsplit(value)
        if parts.password is None and not parts.query:
            return value
        host = parts.netloc.rpartition("@")[2]
        user = f"{parts.username}:***@" if parts.username else ""
        return urlunsplit((parts.scheme, user + host, parts.path, "***" if parts.query else "", ""))
    except ValueError:
        return "***"


def default_database_url() -> str:
    """A file in the user's data folder."""
    folder = Path(platformdirs.user_data_dir("kilometers-server", appauthor=False))
    return f"sqlite:///{folder / 'server.db'}"


def read_version() -> str:
    """The installed version."""
    return metadata.version("kilometers")
