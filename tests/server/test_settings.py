"""Where a setting comes from, what it may be, and that a secret is never shown."""

import json
from pathlib import Path

import pytest
from km_server.config import SETTINGS, ServerConfig, load_config, show_value
from km_server.errors import ConfigError

from tests.server.test_commands import assert_one_line, run

URL_WITH_SECRETS = "postgresql://km:s3cret-word@db.example/km?sslpassword=s3cret-too"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "server.toml"
    path.write_text('port = 1111\nhost = "from.file"\nhead_timeout_s = 3\n')
    return path


def test_flag_then_environment_then_file_then_default(file: Path) -> None:
    loaded = load_config({"port": 3333}, {"KM_SERVER_PORT": "2222", "KM_SERVER_HOST": "from.environment"}, file)
    assert (loaded.config.port, loaded.config.host, loaded.config.head_timeout_s) == (3333, "from.environment", 3.0)
    assert loaded.config.body_timeout_s == ServerConfig().body_timeout_s
    assert [loaded.sources[name] for name in ("port", "host", "head_timeout_s", "body_timeout_s")] == [
        "--port",
        "KM_SERVER_HOST",
        str(file),
        "default",
    ]


def test_the_file_is_found_by_the_environment(file: Path) -> None:
    assert load_config({}, {"KM_SERVER_CONFIG": str(file)}, None).config.port == 1111


def test_a_file_in_the_users_folder_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_config({}, {}, None).config.port == 8713
    (tmp_path / "kilometers-server").mkdir()
    (tmp_path / "kilometers-server" / "server.toml").write_text("port = 4444")
    assert load_config({}, {}, None).config.port == 4444


def test_a_secret_comes_from_a_file(tmp_path: Path) -> None:
    secret = tmp_path / "url"
    secret.write_text("sqlite:////secret/place.db\n")
    loaded = load_config({}, {"KM_SERVER_DATABASE_URL_FILE": str(secret)}, None)
    assert loaded.config.database_url == "sqlite:////secret/place.db"
    assert loaded.sources["database_url"] == "KM_SERVER_DATABASE_URL_FILE"
    table = tmp_path / "server.toml"
    table.write_text(f'database_url_file = "{secret}"')
    assert load_config({}, {}, table).config.database_url == "sqlite:////secret/place.db"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('port = "x"', "port"),
        ("port = 70000", "port"),
        ("port = 1.5", "port"),
        ("port = true", "port"),
        ("port = nan", "port"),
        ("host = 5", "host"),
        ("max_body_bytes = 1", "max_body_bytes"),
        ("mood = 5", "mood"),
        ("[tables]\nport = 1", "tables"),
        ("port = ", "TOML"),
        ('trusted_proxies = "here"', "trusted_proxies"),
        ('tls_key = "x.pem"', "tls_cert"),
        ('workers = 2\ndatabase_url = "sqlite:///x.db"', "workers"),
        ('database_url_file = "/does/not/exist"', "database_url_file"),
    ],
)
def test_what_cannot_be_is_an_error_that_names_it(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "server.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config({}, {}, path)
    assert said in str(error.value)
    assert error.value.hint


def test_an_error_does_not_quote_a_value(tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    for text in ('database_url = "SECRET', 'port = "SECRET"'):
        path.write_text(text)
        with pytest.raises(ConfigError) as error:
            load_config({}, {}, path)
        assert "SECRET" not in f"{error.value} {error.value.hint}"


def test_config_shows_values_and_sources_without_secrets(file: Path) -> None:
    environ = {"KM_SERVER_DATABASE_URL": URL_WITH_SECRETS}
    done = run("config", "--config", str(file), "--json", **environ)
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert set(rows) == {row.name for row in SETTINGS}
    assert (rows["port"]["value"], rows["port"]["source"]) == (1111, str(file))
    assert rows["database_url"]["source"] == "KM_SERVER_DATABASE_URL"
    assert "db.example" in rows["database_url"]["value"]
    plain = run("config", "--config", str(file), **environ)
    assert "from.file" in plain.stdout
    assert "s3cret" not in done.stdout + done.stderr + plain.stdout + plain.stderr


@pytest.mark.parametrize("url", ["sqlite:////x.db", "postgresql://u@h/d", "postgresql://h/d"])
def test_a_url_without_a_secret_is_shown_whole(url: str) -> None:
    (row,) = [row for row in SETTINGS if row.name == "database_url"]
    assert show_value(row, url) == url


def test_settings_that_cannot_go_together_end_the_command(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'server.db'}"
    assert_one_line(run("serve", "--workers", "2", "--database-url", url))
    assert_one_line(run("serve", "--port", "0", "--tls-cert", "/does/not/exist", "--database-url", url))
    assert_one_line(run("serve", "--config", str(tmp_path / "none.toml")))
    assert run("serve", "--max-connections", "0").returncode == 2


def test_every_setting_has_a_flag_in_the_help() -> None:
    text = run("serve", "--help").stdout
    for row in SETTINGS:
        assert row.flag in text
        assert row.variable in text.replace("\n", "").replace(" ", "")
