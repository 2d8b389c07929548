"""
What people and clients do to a file between install and uninstall survives, and the rest goes back to its bytes.

The law: uninstall(edit(install(file))) == edit(file), for every edit that leaves the commands alone.
"""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from kmctl.clients.formats import format_of, parse_text
from kmctl.clients.plan import Source, plan_install, plan_uninstall
from kmctl.clients.tree import Format
from kmctl.clients.undo import Undo
from kmctl.clients.words import Launcher
from tests.cli.clients.reading import find_commands, read_config
from tests.cli.clients.samples import SAMPLES, Sample
from tests.cli.clients.test_matrix import keys_of

LAUNCHER = Launcher("/opt/python", "/opt/kmd/shim/launch.py")
FOUND = {"npx": "/usr/bin/npx"}.get
Edit = Callable[[str], str]

COMMENT = {Format.JSON: "// {} ", Format.TOML: "# {}", Format.YAML: "# {}"}
ANCHORS = re.compile(r'env|envs|environment|theme|disabled|enabled|type|name|url|description|timeout|SECRET|"-y"')
WORDS = st.text(st.characters(categories=("L", "N")), min_size=1, max_size=12)


def wrap(sample: Sample, text: str) -> tuple[str, list[Undo]]:
    """The text with everything wrapped, and the records."""
    source = source_of(sample)
    plan = plan_install(source, parse_text(text, source.form), LAUNCHER, FOUND, "now", lambda _: True, [])
    return plan.after, [change.undo for change in plan.changes if change.undo]


def unwrap(sample: Sample, text: str, records: list[Undo]) -> str:
    """The text with everything unwrapped."""
    source = source_of(sample)
    return plan_uninstall(source, parse_text(text, source.form), lambda _: True, records).after


def source_of(sample: Sample) -> Source:
    path = Path(sample.place)
    return Source(sample.client, path, format_of(path.suffix), keys_of(sample))


def outside(text: str) -> list[int]:
    """Line numbers of lines before which a comment may go: none within a text of several lines."""
    lines = text.split("\n")
    fence = next((number for number, line in enumerate(lines) if '"""' in line), len(lines))
    first = 2 if text.startswith("%") else 1
    return list(range(first, min(fence + 1, len(lines))))


@st.composite
def edits(draw: st.DrawFn, sample: Sample) -> Edit:
    """A change to lines that install does not touch, named by what is in them, so that it fits before and after."""
    form = source_of(sample).form
    lines = sample.text.split("\n")
    candidates = [lines[number] for number in outside(sample.text) if ANCHORS.search(lines[number])]
    unique = [line for line in candidates if lines.count(line) == 1 and "command" not in line and "args" not in line]
    line = draw(st.sampled_from(unique or [lines[-1]]))
    word = draw(WORDS)
    kind = draw(st.sampled_from(["comment before", "comment at the end", "secret", "blank lines", "at the very end"]))
    indent = line[: len(line) - len(line.lstrip())]
    comment = COMMENT[form].format(word)
    match kind:
        case "comment before" if line in unique:
            return lambda text: text.replace(line, f"{indent}{comment}\n{line}", 1)
        case "blank lines" if line in unique:
            return lambda text: text.replace(line, f"\n\n{line}", 1)
        case "secret":
            return lambda text: text.replace("SECRET", word)
        case "comment at the end" if line in unique:
            return lambda text: text.replace(line, f"{line} {comment}", 1)
    return lambda text: f"{text}\n{comment}\n"


LINED = [sample for sample in SAMPLES if sample.text.count("\n") > 3]


@given(data=st.data(), sample=st.sampled_from(LINED))
def test_edits_elsewhere_survive(data: st.DataObject, sample: Sample) -> None:
    made = data.draw(st.lists(edits(sample), min_size=1, max_size=4))
    wrapped, records = wrap(sample, sample.text)
    wanted = sample.text
    for edit in made:
        wanted, wrapped = edit(wanted), edit(wrapped)
    assert unwrap(sample, wrapped, records) == wanted


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: str(sample.place))
def test_every_value_of_an_entry_may_change(sample: Sample) -> None:
    wrapped, records = wrap(sample, sample.text)
    assert unwrap(sample, wrapped.replace("SECRET", "ä new one"), records) == sample.text.replace("SECRET", "ä new one")


@pytest.mark.parametrize(
    "sample", [one for one in SAMPLES if one.place.endswith("json")], ids=lambda one: str(one.place)
)
@pytest.mark.parametrize("indent", [None, 2, 4], ids=["one line", "two spaces", "four spaces"])
def test_a_client_that_writes_its_file_anew_gets_the_same_meaning_back(sample: Sample, indent: int | None) -> None:
    path = Path(sample.place)
    wrapped, records = wrap(sample, sample.text)
    written = json.dumps(read_config(path, wrapped.encode()), indent=indent, ensure_ascii=False)
    back = unwrap(sample, written, records)
    wanted = json.dumps(
        read_config(path, sample.raw.replace(sample.raw, sample.text.encode())), indent=indent, ensure_ascii=False
    )
    restored = [(name, words, rest) for name, words, rest in find_commands(json.loads(back))]
    assert restored == list(find_commands(json.loads(wanted)))
    if '"args": null' not in sample.text and "[ ]" not in sample.text:
        assert json.loads(back) == json.loads(wanted)


@pytest.mark.parametrize(
    "sample", [one for one in SAMPLES if not one.place.endswith(("json", "jsonc"))], ids=lambda one: str(one.place)
)
def test_a_client_that_writes_yaml_or_toml_anew_gets_the_same_meaning_back(sample: Sample) -> None:
    path = Path(sample.place)
    wrapped, records = wrap(sample, sample.text)
    back = read_config(path, unwrap(sample, written_anew(path, wrapped), records).encode())
    wanted = read_config(path, sample.text.encode())
    by_name = {name: (words, rest) for name, words, rest in find_commands(back)}
    assert by_name == {name: (words, rest) for name, words, rest in find_commands(wanted)}
    back = read_config(path, unwrap(sample, written_anew(path, sample.text), records).encode())
    assert back == wanted


def written_anew(path: Path, text: str) -> str:
    """The file as a program writes it that keeps nothing of its layout."""
    config = read_config(path, text.encode())
    if path.suffix == ".toml":
        return tomli_w.dumps(config)
    out = io.StringIO()
    YAML(typ="safe", pure=True).dump(config, out)
    return out.getvalue()


JSON = """{
  "mcpServers": {
    "one": {
      "command": "npx",
      "args": ["-y", "one"],
      "env": {"A": "b"}
    }
  },
  "other": {
    "mcpServers": {}
  }
}
"""
MOVING = Sample(
    "claude-code",
    ".claude.json",
    JSON.replace("other", "projects").replace('"mcpServers": {}', '"p": {"mcpServers": {}}'),
    1,
)


def test_an_entry_that_was_renamed_goes_back_under_its_new_name() -> None:
    wrapped, records = wrap(MOVING, MOVING.text)
    assert unwrap(MOVING, wrapped.replace('"one": {', '"two": {'), records) == MOVING.text.replace(
        '"one": {', '"two": {'
    )


def test_an_entry_that_was_moved_within_the_file_goes_back_where_it_is() -> None:
    def move(text: str) -> str:
        start, end = text.index('"one": {'), text.index("    }\n  },") + 5
        entry = text[start:end]
        rest = text[:start] + text[end:]
        return rest.replace('"p": {"mcpServers": {}}', f'"p": {{"mcpServers": {{{entry}}}}}')

    wrapped, records = wrap(MOVING, MOVING.text)
    assert "launch.py" in move(wrapped)
    assert unwrap(MOVING, move(wrapped), records) == move(MOVING.text)


def test_an_entry_that_was_copied_into_another_file_of_the_client_goes_back_there() -> None:
    wrapped, records = wrap(MOVING, MOVING.text)
    other = Sample("claude-code", "shop/.mcp.json", "", 1)
    assert unwrap(other, wrapped, records) == MOVING.text


def test_an_entry_that_was_copied_goes_back_twice() -> None:
    def copy(text: str) -> str:
        start, end = text.index('"one": {'), text.index("    }\n  },") + 5
        return text[:end] + ",\n    " + text[start:end].replace('"one"', '"copy"') + text[end:]

    wrapped, records = wrap(MOVING, MOVING.text)
    assert unwrap(MOVING, copy(wrapped), records) == copy(MOVING.text)


def test_only_our_words_leave_an_entry_whose_arguments_were_edited() -> None:
    def edit(text: str) -> str:
        return text.replace('"-y", "one"', '"-y", "one@2", "--more"')

    wrapped, records = wrap(MOVING, MOVING.text)
    assert unwrap(MOVING, edit(wrapped), records) == edit(MOVING.text)


def test_a_command_that_was_changed_behind_km_is_kept() -> None:
    wrapped, records = wrap(MOVING, MOVING.text)
    edited = wrapped.replace("/usr/bin/npx", "bunx")
    assert unwrap(MOVING, edited, records) == MOVING.text.replace('"npx"', '"bunx"')


def test_a_stale_record_brings_nothing_back_from_the_dead() -> None:
    wrapped, records = wrap(MOVING, MOVING.text)
    gone = json.dumps({"mcpServers": {}})
    assert unwrap(MOVING, gone, records) == gone
    later = MOVING.text.replace('"one"]', '"one@3"]')
    assert unwrap(MOVING, later, records) == later
    again, more = wrap(MOVING, later)
    assert unwrap(MOVING, again, records + more) == later
    assert unwrap(MOVING, wrapped, records + more) == MOVING.text


@pytest.mark.parametrize(
    ("words", "bare"),
    [
        (["km", "--name", "x", "--", "npx", "-y"], ["npx", "-y"]),
        (["/usr/local/bin/km", "--home=/h", "npx"], ["npx"]),
        (["km", "--", "npx"], ["npx"]),
        (["C:\\bin\\km.exe", "--stderr", "--", "npx"], ["npx"]),
        (["km", "npx"], ["km", "npx"]),
        (["km"], ["km"]),
        (["km", "--unknown", "--", "x"], ["km", "--unknown", "--", "x"]),
        (["km", "--name", "x", "--"], ["km", "--name", "x", "--"]),
        (["python", "-I", "launch.py", "--", "x"], ["python", "-I", "launch.py", "--", "x"]),
        (["python3", "/a/kmd/shim/launch.py", "--", "x", "--", "y"], ["x", "--", "y"]),
        (
            ["python3", "-I", "/a/kmd/shim/launch.py", "--name", "a", "--new", "1", "--", "x", "--", "y"],
            ["x", "--", "y"],
        ),
        (["python3", "/a/kmd/shim/launch.py", "--name", "--", "--", "x"], ["x"]),
    ],
    ids=str,
)
def test_what_was_wrapped_by_hand(words: list[str], bare: list[str]) -> None:
    text = json.dumps({"mcpServers": {"x": {"command": words[0], "args": words[1:]}}})
    wanted = json.dumps({"mcpServers": {"x": {"command": bare[0], "args": bare[1:]}}})
    sample = Sample("claude-code", ".claude.json", text, 1)
    assert unwrap(sample, text, []) == wanted
    wrapped, _ = wrap(sample, text)
    assert (wrapped == text) == (Path(words[0].replace("\\", "/")).stem == "km")


def test_options_that_were_added_by_hand_survive_a_new_launcher() -> None:
    wrapped, records = wrap(MOVING, MOVING.text)
    edited = wrapped.replace('"--name", "one"', '"--name", "mine", "--strict"')
    source = source_of(MOVING)
    moved = Launcher("/new/python", "/new/kmd/shim/launch.py", "/h")
    plan = plan_install(source, parse_text(edited, source.form), moved, FOUND, "now", lambda _: True, records)
    ((_, words, _),) = find_commands(json.loads(plan.after))
    start = ["/new/python", "-I", "-S", "/new/kmd/shim/launch.py", "--home", "/h", "--name", "mine", "--strict", "--"]
    assert words == [*start, "/usr/bin/npx", "-y", "one"]
    records += [change.undo for change in plan.changes if change.undo]
    assert unwrap(MOVING, plan.after, records) == MOVING.text
