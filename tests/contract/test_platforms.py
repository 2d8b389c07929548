"""Other systems than this one: what can be said about them from here."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORKFLOW = (ROOT / ".github" / "workflows" / "hosted.yml").read_text()
POSIX_ONLY = ("fcntl", "pwd", "grp", "termios", "tty", "pty", "resource", "syslog")


def is_about_windows(node: ast.expr) -> bool | None:
    """What `sys.platform == "win32"` or `!=` is on Windows; None for another expression."""
    match node:
        case ast.Compare(
            left=ast.Attribute(value=ast.Name(id="sys"), attr="platform"),
            ops=[ast.Eq() | ast.NotEq() as how],
            comparators=[ast.Constant(value="win32")],
        ):
            return isinstance(how, ast.Eq)
    return None


def list_imports(body: list[ast.stmt]) -> set[str]:
    """What Windows imports when it loads a module with this body. Raises AssertionError: it cannot load it."""
    found: set[str] = set()
    for node in body:
        match node:
            case ast.Import(names=names):
                found |= {alias.name for alias in names}
            case ast.ImportFrom(module=str(module), names=names, level=0):
                found |= {module, *(f"{module}.{alias.name}" for alias in names)}
            case ast.Assert(test=test):
                assert is_about_windows(test) is not False
            case ast.If(test=test, body=body_if, orelse=body_else) if (here := is_about_windows(test)) is not None:
                found |= list_imports(body_if if here else body_else)
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                pass
            case ast.If(body=inner, orelse=other) | ast.Try(body=inner, orelse=other):
                found |= list_imports([*inner, *other])
            case ast.ClassDef(body=inner):
                found |= list_imports(inner)
    return found


def path_of(module: str) -> Path | None:
    """The file of one of our modules."""
    base = ROOT.joinpath(*module.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def test_windows_can_load_km_and_kmd_and_every_command() -> None:
    todo = ["kmd.daemon", "kmd.__main__", "kmd.shim.windows.parent", "kmd.shim.windows.relay", "kmctl.__main__"]
    todo += [f"kmctl.{path.stem}" for path in (ROOT / "kmctl").glob("*.py")]
    loaded: dict[str, str] = {}
    while todo:
        module = todo.pop()
        path = path_of(module)
        if path is None or module in loaded:
            continue
        loaded[module] = ""
        try:
            imports = list_imports(ast.parse(path.read_text()).body)
        except AssertionError:
            loaded[module] = "is not for Windows"
            continue
        if wrong := sorted(imports & set(POSIX_ONLY)):
            loaded[module] = f"imports {wrong}"
        todo += imports
    assert {module: why for module, why in loaded.items() if why} == {}
    assert {"kmd.intake.named_pipe", "kmd.pipe_client", "kmd.shim.windows.calls", "kmctl.doctor"} <= set(loaded)
    assert "kmd.intake.local_socket" not in loaded


@pytest.mark.parametrize(
    "text",
    [
        "import os, fcntl",
        "from fcntl import flock",
        "try:\n    import fcntl\nexcept ImportError:\n    pass",
        "if sys.platform != 'linux':\n    import fcntl",
        "if sys.platform == 'win32':\n    import fcntl",
        "class A:\n    import fcntl",
    ],
)
def test_an_import_that_windows_lacks_is_found(text: str) -> None:
    assert "fcntl" in list_imports(ast.parse(text).body)


def test_an_import_behind_a_seam_is_none() -> None:
    text = "if sys.platform == 'win32':\n    import msvcrt\nelse:\n    import fcntl\ndef f():\n    import pwd"
    assert list_imports(ast.parse(text).body) == {"msvcrt"}
    with pytest.raises(AssertionError):
        list_imports(ast.parse("assert sys.platform != 'win32'").body)


def test_the_workflow_names_files_that_are_there() -> None:
    named = re.findall(r"\b(?:tests/[\w/]+\.py|constraints\.txt|docs/[\w.]+\.md)", WORKFLOW)
    assert len(named) >= 4
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_workflow_calls_what_make_has() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"run: make (\w+)", WORKFLOW):
        assert f"\n{target}: " in makefile
