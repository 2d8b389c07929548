"""Changing one destination leaves the rest of a hand-edited file as it is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmctl.edit import put_destination
from kmd.config import Destination, check_key, check_name, parse_config, render_config
from kmd.errors import ConfigError

NEW = Destination("team", "https://new.example.com", "km_new")
OWN_FILE = """\
# my notes
[log]
level = "debug"  # loud

[[destinations]]
name = "home"
url = "https://home.example.com"

# the one at work
[[ destinations ]]  # header comment
# before
url = "https://old.example.com"
# between
name = 'team'
key = "km_old"

# after

[sync]
timeout_s = 7
"""


def test_a_new_destination_goes_to_the_end() -> None:
    text = OWN_FILE.replace("'team'", "'other'")
    edited = put_destination(text, NEW, None)
    assert edited == text + '\n[[destinations]]\nname = "team"\nurl = "https://new.example.com"\nkey = "km_new"\n'


def test_a_known_destination_is_replaced_in_its_place() -> None:
    edited = put_destination(OWN_FILE, NEW, None)
    config = parse_config(edited, {})
    assert [(one.name, one.url, one.key) for one in config.destinations] == [
        ("home", "https://home.example.com", ""),
        ("team", "https://new.example.com", "km_new"),
    ]
    assert (config.log_level, config.timeout_s) == ("debug", 7)
    for comment in (
        "# my notes",
        "# loud",
        "# the one at work",
        "# header comment",
        "# before",
        "# between",
        "# after",
    ):
        assert comment in edited
    assert "old" not in edited


def test_the_key_of_the_old_url_does_not_stay() -> None:
    edited = put_destination(OWN_FILE, Destination("team", "https://new.example.com"), None)
    assert "km_old" not in edited


def test_the_ca_file_of_the_old_server_does_not_stay_and_a_new_one_comes() -> None:
    text = put_destination(OWN_FILE, Destination("team", "https://old.example.com", ca_file="/old.pem"), None)
    assert parse_config(text, {}).destinations[-1].ca_file == "/old.pem"
    assert "/old.pem" not in put_destination(text, NEW, None)


def test_nothing_changes_when_it_says_so_already() -> None:
    text = OWN_FILE.replace("old", "new")
    assert put_destination(text, NEW, None) is text


def test_a_destination_without_a_name_is_the_default_one() -> None:
    text = '[[destinations]]\nurl = "https://a.example.com"\n'
    edited = put_destination(text, Destination("default", "https://b.example.com"), None)
    assert [one.url for one in parse_config(edited, {}).destinations] == ["https://b.example.com"]


@pytest.mark.parametrize("text", ["", "[log]", "# c", "[log]\nlevel = 'info'", '[[destinations]]\nurl = "http://a"'])
@pytest.mark.parametrize("name", ["default", "team"])
def test_a_file_without_a_last_line_end(text: str, name: str) -> None:
    config = parse_config(put_destination(text, Destination(name, "https://b.example.com"), None), {})
    assert "https://b.example.com" in {one.url for one in config.destinations}


def test_the_line_ends_of_the_file_are_kept() -> None:
    for text in (OWN_FILE, OWN_FILE.replace("team", "other")):
        edited = put_destination(text.replace("\n", "\r\n"), NEW, None)
        assert edited.count("\n") == edited.count("\r\n")


def test_our_own_remark_goes_with_the_first_destination() -> None:
    edited = put_destination(render_config(()), NEW, None)
    assert edited == render_config((NEW,))


@pytest.mark.parametrize(
    "text",
    [
        'destinations = [{name = "team", url = "http://old"}]',
        'destinations = [{name = "other", url = "http://old"}]',
        '[[destinations]]\nname = """team"""\nurl = """\\\n  http://old"""\n',
        '[[destinations]]\nname = "team"\n"\\u0075rl" = "http://old"\n',
    ],
)
def test_a_layout_that_is_not_understood_is_refused(text: str) -> None:
    assert parse_config(text, {}).destinations
    with pytest.raises(ConfigError) as caught:
        put_destination(text, NEW, None)
    assert "by hand" in caught.value.hint


def test_a_header_within_a_text_is_no_header() -> None:
    text = '[[destinations]]\nname = "a"\nurl = "http://a"\nkey = """\\\n[[destinations]]\\\n"""\n' + OWN_FILE
    try:
        edited = put_destination(text, NEW, None)
    except ConfigError:
        return
    assert [one.name for one in parse_config(edited, {}).destinations] == ["a", "home", "team"]


@pytest.mark.parametrize("text", ["[log", "[log]\nlevel = 5", "[nothing]\n", "[[destinations]]\nurl = 'ftp://x'\n"])
def test_a_file_that_is_not_valid_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        put_destination(text, NEW, None)


def is_fit(check: object, text: str) -> bool:
    try:
        assert callable(check)
        check(text, None, "")
    except ConfigError:
        return False
    return True


names = st.text(min_size=1, max_size=20).filter(lambda text: is_fit(check_name, text))
keys = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20).filter(lambda k: is_fit(check_key, k))


@given(names, keys, names, keys)
def test_any_name_and_key_survive_the_file(first: str, first_key: str, second: str, second_key: str) -> None:
    one, other = Destination(first, "http://one", first_key), Destination(second, "http://two", second_key)
    text = put_destination(put_destination("# mine\n", one, None), other, None)
    found = {(seen.name, seen.url, seen.key) for seen in parse_config(text, {}).destinations}
    assert (second, "http://two", second_key) in found
    assert len(found) == (1 if first == second else 2)
    assert text.startswith("# mine\n")
