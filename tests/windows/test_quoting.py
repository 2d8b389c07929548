"""Command lines: what a program reads is what the client gave, and cmd.exe never finds a command of its own in it."""

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmd.shim.windows.quoting import (
    BATCH_LINE_MAX_CHARS,
    LINE_MAX_CHARS,
    UnsafeWordError,
    quote_argument,
    quote_for_batch,
    render_batch_line,
    render_command_line,
)
from tests.windows.readers import read_arguments, read_argv, read_as_shell

SHELL = r"C:\Windows\System32\cmd.exe"
SCRIPT = r"C:\Program Files\nodejs\npx.cmd"
NASTY = st.text(
    st.sampled_from("ab \"\\%^&|<>()!=,;\t'`~$@é") | st.characters(exclude_characters="\0", exclude_categories=["Cs"])
)
ONE_LINE = NASTY.filter(lambda word: "\n" not in word and "\r" not in word)
WORDS = st.lists(NASTY, max_size=6)
TABLE = {
    "": '""',
    "plain": "plain",
    "two words": '"two words"',
    "tab\there": '"tab\there"',
    'quo"te': 'quo\\"te',
    "ends in \\": '"ends in \\\\"',
    "C:\\no\\blank\\": "C:\\no\\blank\\",
    'both \\"': '"both \\\\\\""',
    "line\nbreak": '"line\nbreak"',
    "100% & more": '"100% & more"',
}
BATCH_TABLE = {
    "": '""',
    "-y": "-y",
    "@scope/server@1.2.3": "@scope/server@1.2.3",
    "a b": '"a b"',
    "a&calc": '"a&calc"',
    '"&calc': '"""&calc"',
    "%PATH%": '"%%cd:~,%PATH%%cd:~,%"',
    "C:\\dir\\": '"C:\\dir\\\\"',
    '{"a":1}': '"{""a"":1}"',
    "a=b": '"a=b"',
    "^": '"^"',
    "é": '"é"',
}


@pytest.mark.parametrize("word", TABLE)
def test_an_argument_is_quoted_so(word: str) -> None:
    assert quote_argument(word) == TABLE[word]


@given(WORDS)
def test_a_program_reads_the_words_back(arguments: list[str]) -> None:
    words = ["C:\\Program Files\\x\\", *arguments]
    assert read_argv(render_command_line(words)) == words


@given(st.lists(NASTY.filter(lambda word: not set(word) & set("\n\v\f\r")), max_size=6))
def test_arguments_are_quoted_as_pythons_own_does(arguments: list[str]) -> None:
    assert render_command_line(["x", *arguments]) == subprocess.list2cmdline(["x", *arguments])


@pytest.mark.parametrize("name", ["", "x", "two words", "ends\\", "a b\\", "\ta"])
def test_the_name_is_read_back(name: str) -> None:
    assert read_argv(render_command_line([name, "y"])) == [name, "y"]


@pytest.mark.parametrize("words", [['a"b'], ["a\0b"], ["x", "a\0b"], ["x", "y" * LINE_MAX_CHARS]])
def test_what_no_command_line_holds_is_refused(words: list[str]) -> None:
    with pytest.raises(UnsafeWordError):
        render_command_line(words)


def test_the_longest_line_is_allowed() -> None:
    assert len(render_command_line(["x", "y" * (LINE_MAX_CHARS - 2)])) == LINE_MAX_CHARS
    room = BATCH_LINE_MAX_CHARS - len(render_batch_line(SHELL, SCRIPT, ["y"]))
    assert len(render_batch_line(SHELL, SCRIPT, ["y" * (room + 1)])) == BATCH_LINE_MAX_CHARS
    with pytest.raises(UnsafeWordError, match="8,191"):
        render_batch_line(SHELL, SCRIPT, ["y" * (room + 2)])


@pytest.mark.parametrize("word", BATCH_TABLE)
def test_a_word_for_a_batch_file_is_quoted_so(word: str) -> None:
    assert quote_for_batch(word) == BATCH_TABLE[word]


def test_a_batch_file_is_run_by_the_systems_own_shell() -> None:
    line = render_batch_line(SHELL, SCRIPT, ["-y", "a b"])
    assert line == f'{SHELL} /e:on /v:off /d /s /c ""{SCRIPT}" -y "a b""'


@given(st.lists(ONE_LINE, max_size=6))
def test_cmd_finds_nothing_in_the_words_and_the_program_reads_them_back(arguments: list[str]) -> None:
    shown = read_as_shell(render_batch_line(SHELL, SCRIPT, arguments))
    assert read_arguments(shown) == [SCRIPT, *arguments]


@given(ONE_LINE.filter(lambda name: '"' not in name))
def test_nor_in_the_scripts_path(name: str) -> None:
    script = f"C:\\{name}\\x.bat"
    assert read_arguments(read_as_shell(render_batch_line(SHELL, script, []))) == [script]


@pytest.mark.parametrize("word", ["a\nb", "a\r\nb", "a\rb", "a\0b", "x" * BATCH_LINE_MAX_CHARS])
def test_what_cannot_be_passed_on_safely_is_refused_without_showing_it(word: str) -> None:
    with pytest.raises(UnsafeWordError) as caught:
        render_batch_line(SHELL, SCRIPT, [word])
    assert word not in str(caught.value)


def test_a_script_with_a_quotation_mark_is_refused() -> None:
    with pytest.raises(UnsafeWordError):
        render_batch_line(SHELL, 'C:\\a"&calc&".bat', [])


@pytest.mark.parametrize("unsafe", ['a "&calc', "%PATH%", "a&calc"])
def test_the_readers_notice_what_pythons_quoting_would_do(unsafe: str) -> None:
    """A control: the ordinary quoting, as many languages used it for batch files until 2024, is seen to fail."""
    line = f'{SHELL} /c "{subprocess.list2cmdline([SCRIPT, unsafe])}"'
    try:
        read = read_arguments(read_as_shell(line))
    except AssertionError:
        return
    assert read != [SCRIPT, unsafe]
