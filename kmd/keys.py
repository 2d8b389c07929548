"""
Where API keys are kept when they do not stand in the configuration itself.

A destination with `key_from = "keyring"` has its key in the operating system's keyring, one with
`key_from = "file"` in the *key file* beside the configuration, readable by this user alone. `kmctl login` puts it
there. The keyring may want to ask its owner for a password: nobody here waits for that longer than a few seconds.
"""

import threading
import tomllib
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from pathlib import Path

import tomli_w

from kmd.config import Config, Destination, check_key, read_regular, write_private
from kmd.errors import ConfigError, KilometersError

KEY_FILE = "keys.toml"
SERVICE = "kilometers"
"""What the keyring calls us."""
KEYRING_TIMEOUT_S = 10.0
"""A locked keyring asks on the user's screen, where there may be nobody."""
LOGIN_HINT = "store it again: kmctl login"


class KeySource(StrEnum):
    """Where a destination's key is."""

    KEYRING = "keyring"
    FILE = "file"


def resolve_keys(config: Config, config_file: Path) -> tuple[Config, list[KilometersError]]:
    """*config* with the keys that stand elsewhere put in, and what is wrong with those that cannot be had."""
    found: list[Destination] = []
    problems: list[KilometersError] = []
    for one in config.destinations:
        try:
            found.append(replace(one, key=read_key(one, config_file)))
        except KilometersError as exc:
            problems.append(exc)
            found.append(one)
    return replace(config, destinations=tuple(found)), problems


def read_key(one: Destination, config_file: Path) -> str:
    """The key of a destination, perhaps empty. Raises KilometersError: it should be somewhere and is not."""
    match one.key_from:
        case "":
            return one.key
        case KeySource.KEYRING:
            answer = ask_keyring(lambda: keyring_get(account(one)))
            key = answer if isinstance(answer, str) else None
            where = "the keyring"
        case _:
            key = read_key_file(config_file).get(account(one))
            where = str(key_file(config_file))
    if not key:
        raise KilometersError(f"{one.name}: {where} holds no key for {one.url}", hint=LOGIN_HINT)
    return check_key(key, None, f"the key of {one.name}")


def store_key(one: Destination, key: str, config_file: Path, source: KeySource) -> None:
    """Keep *key* for *one* in *source*. Raises KilometersError: it cannot be kept there."""
    if source is KeySource.KEYRING:
        ask_keyring(lambda: keyring_set(account(one), key))
        return
    keys = read_key_file(config_file)
    write_key_file(config_file, {**keys, account(one): key})


def forget_key(one: Destination, config_file: Path) -> bool:
    """Take the key of *one* out of where it is. Returns whether there was one. Raises KilometersError."""
    if one.key_from == KeySource.KEYRING:
        return bool(ask_keyring(lambda: keyring_delete(account(one))))
    keys = read_key_file(config_file)
    if keys.pop(account(one), None) is None:
        return False
    write_key_file(config_file, keys)
    return True


def has_keyring() -> bool:
    """Whether this session has a keyring that can be used."""
    try:
        return bool(ask_keyring(keyring_works))
    except KilometersError:
        return False


def account(one: Destination) -> str:
    """The name under which a destination's key is kept: a key must not go to another server of the same name."""
    return f"{one.name} {one.url}"


def key_file(config_file: Path) -> Path:
    """The key file beside the configuration."""
    return config_file.with_name(KEY_FILE)


def read_key_file(config_file: Path) -> dict[str, str]:
    """The keys in the key file by account; none when there is no file. Raises ConfigError, which shows no key."""
    path = key_file(config_file)
    try:
        keys = tomllib.loads(read_regular(path).decode("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as exc:
        raise ConfigError(path, "", f"cannot be read ({type(exc).__name__})", hint=LOGIN_HINT) from None
    if not all(isinstance(key, str) for key in keys.values()):
        raise ConfigError(path, "", "holds something that is no key", hint=LOGIN_HINT)
    return keys


def write_key_file(config_file: Path, keys: dict[str, str]) -> None:
    """Replace the key file by one with *keys*, readable by its user alone. Raises ConfigError: it cannot be written."""
    path = key_file(config_file)
    try:
        write_private(path, tomli_w.dumps(keys))
    except OSError as exc:
        raise ConfigError(path, "", f"cannot be written ({exc.strerror})", hint="check its folder's owner") from exc


def ask_keyring(question: Callable[[], str | bool | None]) -> str | bool | None:
    """The answer to *question*. Raises KilometersError: the keyring fails, or does not answer in time."""
    answers: list[str | bool | None] = []
    faults: list[Exception] = []

    def run() -> None:
        try:
            answers.append(question())
        except Exception as exc:  # noqa: BLE001 - backends raise what they like, and it goes into the error below
            faults.append(exc)

    thread = threading.Thread(target=run, name="keyring", daemon=True)
    thread.start()
    thread.join(KEYRING_TIMEOUT_S)
    if answers:
        return answers[0]
    why = type(faults[0]).__name__ if faults else f"no answer in {KEYRING_TIMEOUT_S:.0f} s: is it locked?"
    hint = "unlock it, or keep the key in a file: kmctl login --no-keyring"
    raise KilometersError(f"the keyring cannot be used ({why})", hint=hint)


def keyring_works() -> bool:
    import keyring  # it finds its backends when it is loaded, and some of them are slow

    return keyring.get_keyring().priority >= 1


def keyring_get(name: str) -> str | None:
    import keyring

    return keyring.get_password(SERVICE, name)


def keyring_set(name: str, key: str) -> None:
    import keyring

    keyring.set_password(SERVICE, name, key)


def keyring_delete(name: str) -> bool:
    import keyring
    from keyring.errors import PasswordDeleteError

    try:
        keyring.delete_password(SERVICE, name)
    except PasswordDeleteError:
        return False
    return True
