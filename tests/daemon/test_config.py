"""The table of settings, the checks made from it, the file that is written and the page about it."""

import dataclasses
import os
import stat
from pathlib import Path

import pytest

from kmd.config import (
    SETTINGS,
    Config,
    Destination,
    Setting,
    load_config,
    parse_config,
    render_config,
    write_private,
)
from kmd.errors import ConfigError
from kmd.paths import find_places
from tests.support.reference import REFERENCE_FILE, render_reference

FILE = Path("/somewhere/config.toml")


def other_value(setting: Setting) -> int | str | bool:
    """A valid value that is not the default."""
    if isinstance(setting.default, bool):
        return not setting.default
    if isinstance(setting.default, int):
        return setting.least if setting.least != setting.default else setting.most
    return next(choice for choice in setting.choices if choice != setting.default)


def as_toml(setting: Setting, value: object) -> str:
    table, key = setting.name.split(".")
    shown = {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
    return f"[{table}]\n{key} = {shown}\n"


every_setting = pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)


@every_setting
def test_a_default_holds_when_nothing_is_said(setting: Setting) -> None:
    config = parse_config("", {})
    assert getattr(config, setting.field) == setting.default
    assert config.sources[setting.name] == "default"


@every_setting
def test_the_file_wins_over_the_default_and_the_environment_over_the_file(setting: Setting) -> None:
    value = other_value(setting)
    config = parse_config(as_toml(setting, value), {}, FILE)
    assert (getattr(config, setting.field), config.sources[setting.name]) == (value, "file")
    environ = {setting.variable: str(setting.default).lower()}
    config = parse_config(as_toml(setting, value), environ, FILE)
    assert (getattr(config, setting.field), config.sources[setting.name]) == (setting.default, "environment")


@every_setting
@pytest.mark.parametrize("value", ["[]", "{}", "1.5", "'nonsense'", "-1", "2025-01-01"])
def test_what_does_not_fit_names_file_and_setting(setting: Setting, value: str) -> None:
    table, key = setting.name.split(".")
    with pytest.raises(ConfigError) as caught:
        parse_config(f"[{table}]\n{key} = {value}\n", {}, FILE)
    assert str(caught.value).startswith(f"{FILE}: {setting.name}: must be ")
    assert caught.value.hint == setting.help


@every_setting
@pytest.mark.parametrize("value", ["", "nonsense", "-1", "1.5", "9" * 5000, "٣"])
def test_a_variable_that_does_not_fit_is_named(setting: Setting, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config("", {setting.variable: value}, FILE)
    assert str(caught.value).startswith(f"{setting.variable}: must be ")


@pytest.mark.parametrize("setting", [s for s in SETTINGS if type(s.default) is int], ids=lambda s: s.name)
def test_the_bounds_of_a_number_are_within(setting: Setting) -> None:
    for value in (setting.least, setting.most):
        assert getattr(parse_config(as_toml(setting, value), {}, FILE), setting.field) == value
    for value in (setting.least - 1, setting.most + 1):
        with pytest.raises(ConfigError, match=f"must be {setting.least} to {setting.most}"):
            parse_config(as_toml(setting, value), {}, FILE)


def test_a_truth_is_no_number_and_a_number_no_truth() -> None:
    with pytest.raises(ConfigError, match="a whole number"):
        parse_config("[sync]\ntimeout_s = true\n", {}, FILE)
    with pytest.raises(ConfigError, match="true or false"):
        parse_config("[capture]\npayloads = 1\n", {}, FILE)


@pytest.mark.parametrize("text", ["yes", "TRUE", "1", "no", "False", "0"])
def test_the_words_for_a_truth_in_the_environment(text: str) -> None:
    expected = text.lower() in {"yes", "true", "1"}
    assert parse_config("", {"KM_CAPTURE_PAYLOADS": text}).keep_payloads is expected


def test_each_setting_is_a_field_and_each_field_a_setting() -> None:
    fields = {field.name for field in dataclasses.fields(Config)} - {"destinations", "sources"}
    assert {setting.field for setting in SETTINGS} == fields
    assert len({setting.variable for setting in SETTINGS}) == len(SETTINGS)


@pytest.mark.parametrize(
    ("text", "where", "problem"),
    [
        ("[log", "", "not valid TOML"),
        ("x = " + "9" * 5000, "", "not valid TOML"),
        ("x = " + "[" * 5000, "", "not valid TOML"),
        ("[logs]\n", "logs", "no such table"),
        ("log = 5\n", "log", "must be a table"),
        ("[log]\nlevels = 'info'\n", "log.levels", "no such setting"),
        ("destinations = 5\n", "destinations", "must be a list"),
        ("destinations = [5]\n", "destinations[1]", "must be a table"),
        ("[[destinations]]\nurl = 5\n", "destinations[1]", "must be a table of texts"),
        ("[[destinations]]\nurl = 'http://a'\nca_file = 'a.pem'\n", "destinations[1].ca_file", "whole path"),
        ("[[destinations]]\nurl = 'http://a'\nca_file = \"/a\\u0000\"\n", "destinations[1].ca_file", "whole path"),
        ("[[destinations]]\nurl = 'http://a'\ntoken = 'x'\n", "destinations[1].token", "no such setting"),
        ("[[destinations]]\n", "destinations[1].url", "must be an http"),
        ("[[destinations]]\nurl = 'ftp://a'\n", "destinations[1].url", "must be an http"),
        ("[[destinations]]\nurl = 'http://'\n", "destinations[1].url", "must be an http"),
        ("[[destinations]]\nurl = 'http://a:x'\n", "destinations[1].url", "is not a URL"),
        ("[[destinations]]\nurl = 'http://a:99999'\n", "destinations[1].url", "is not a URL"),
        ("[[destinations]]\nurl = 'http://a:0'\n", "destinations[1].url", "must be an http"),
        ("[[destinations]]\nurl = 'http://[a'\n", "destinations[1].url", "is not a URL"),
        ("[[destinations]]\nurl = 'http://u:p@a'\n", "destinations[1].url", "no user, password"),
        ("[[destinations]]\nurl = 'http://a?q=1'\n", "destinations[1].url", "no user, password"),
        ("[[destinations]]\nurl = 'http://a#f'\n", "destinations[1].url", "no user, password"),
        ('[[destinations]]\nurl = "http://a\\nb"\n', "destinations[1].url", "no space or control"),
        ("[[destinations]]\nurl = 'http://a b'\n", "destinations[1].url", "no space or control"),
        ("[[destinations]]\nname = ''\nurl = 'http://a'\n", "destinations[1].name", "printable"),
        ('[[destinations]]\nname = "a\\u001b"\nurl = "http://a"\n', "destinations[1].name", "printable"),
        ("[[destinations]]\nname = '" + "x" * 101 + "'\nurl = 'http://a'\n", "destinations[1].name", "printable"),
        ("[[destinations]]\nurl = 'http://a'\nkey = 'sécret'\n", "destinations[1].key", "is not an API key"),
        ('[[destinations]]\nurl = "http://a"\nkey = "a\\r\\nb"\n', "destinations[1].key", "is not an API key"),
        ("[[destinations]]\nurl = 'http://a'\n" * 2, "destinations[2].name", "is used twice"),
    ],
)
def test_every_fault_names_file_place_and_what_to_do(text: str, where: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, {}, FILE)
    assert str(caught.value).startswith(f"{FILE}: {where}: " if where else f"{FILE}: ")
    assert problem in str(caught.value)
    assert caught.value.hint
    assert (caught.value.path, caught.value.key) == (FILE, where)
    assert "\n" not in str(caught.value)


def test_a_fault_and_a_printed_destination_do_not_show_the_key() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config("[[destinations]]\nurl = 'http://a'\nkey = 'my secret'\n", {}, FILE)
    assert "secret" not in str(caught.value) + caught.value.hint
    assert "secret" not in repr(Destination("a", "http://a", "secret"))


def test_a_url_loses_its_last_slash() -> None:
    (destination,) = parse_config("[[destinations]]\nurl = 'https://a.example.com/km/'\n", {}).destinations
    assert (destination.name, destination.url, destination.key) == ("default", "https://a.example.com/km", "")


def test_what_is_written_is_read_again() -> None:
    wanted = (
        Destination("a", "https://a.example.com", 'k"\\ü'[:3], ca_file='/a "b".pem'),
        Destination('b "c" #', "http://b:8713"),
    )
    config = parse_config(render_config(wanted), {}, FILE)
    assert config.destinations == wanted
    assert set(config.sources.values()) == {"default"}


def test_a_written_file_shows_every_setting_and_each_can_be_switched_on() -> None:
    text = render_config(())
    assert parse_config(text, {}, FILE).destinations == ()
    for setting in SETTINGS:
        assert f"# {setting.help}" in text
    switched = "\n".join(line.removeprefix("# ") if " = " in line else line for line in text.splitlines())
    assert set(parse_config(switched, {}, FILE).sources.values()) == {"file"}


def test_a_missing_file_means_the_defaults(tmp_path: Path) -> None:
    assert load_config(tmp_path / "none.toml", {}) == parse_config("", {})


@pytest.mark.parametrize("kind", ["directory", "not UTF-8", "a file for a folder"])
def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "config.toml"
    if kind == "directory":
        path.mkdir()
    else:
        path.write_bytes(b"\xff")
    if kind == "a file for a folder":
        path /= "config.toml"
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(path, {})


def test_a_written_file_is_private_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "config.toml"
    old_mask = os.umask(0)
    try:
        write_private(path, "a")
        path.chmod(0o644)
        write_private(path, "größe")
    finally:
        os.umask(old_mask)
    assert path.read_text(encoding="utf-8") == "größe"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [one.name for one in path.parent.iterdir()] == ["config.toml"]


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    link, target = tmp_path / "config.toml", tmp_path / "real.toml"
    target.write_text("old")
    link.symlink_to(target)
    write_private(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_a_write_that_fails_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    write_private(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_private(path, "\ud800")
    assert path.read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["config.toml"]


def test_the_reference_page_is_made_from_the_table() -> None:
    hint = "run: python -m tests.support.reference"
    assert REFERENCE_FILE.read_text(encoding="utf-8") == render_reference(), hint


def test_a_home_holds_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = find_places(tmp_path, {"KM_HOME": "/other"})
    assert {places.config_file.parent, places.state_dir, places.meeting_dir} == {tmp_path}
    assert find_places(None, {"KM_HOME": str(tmp_path)}) == places
    monkeypatch.chdir(tmp_path.parent)
    assert find_places(Path(tmp_path.name), {}) == places


def test_without_a_home_only_HOME_decides_the_meeting_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: N802 - the variable's name
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "c"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "s"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "r"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "t"))
    assert find_places(None, {}).meeting_dir == tmp_path / ".kilometers"


def test_no_home_at_all_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(ConfigError) as caught:
        find_places(None, {})
    assert "--home" in caught.value.hint
