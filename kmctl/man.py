"""`kmctl man`: manual pages, made from the commands' own help."""

import inspect
import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import click

from kmctl.options import home_option
from kmd.errors import KilometersError

SECTION = "1"
EXIT_STATUS = {
    "0": "All went well.",
    "1": "It failed; standard error says why, and what to do next.",
    "2": "The command line cannot be meant.",
    "3": "kmd does not run, does not answer, or went away.",
    "4": "Something needs a look (status, doctor).",
    "130": "Ctrl-C.",
    "141": "The reader of the pipe went away.",
}
ENVIRONMENT = {
    "KM_HOME": "Directory of the installation, where --home is not given.",
    "NO_COLOR": "Switches colours off, unless it is empty.",
    "KMCTL_PLAIN": "Words only, as --plain.",
    "VISUAL, EDITOR": "What 'kmctl config edit' opens.",
}
EXAMPLE = re.compile(r"^Example:\n((?:  .*\n?)+)", re.MULTILINE)


@click.command()
@click.option(
    "--dir", "folder", type=click.Path(path_type=Path, file_okay=False), help="Write all pages into this folder."
)
@click.argument("command", required=False)
@home_option
@click.pass_context
def man(ctx: click.Context, folder: Path | None, command: str | None) -> int:
    """
    Print the manual page of kmctl, or of one of its commands, or write all of them.

    \b
    Example:
      kmctl man --dir ~/.local/share/man/man1
      kmctl man service | man -l -
    """
    pages = dict(render_pages(ctx.find_root()))
    if folder is None:
        name = f"kmctl-{command}" if command else "kmctl"
        if name not in pages:
            raise click.UsageError(f"there is no command {command!r}")
        click.echo(pages[name], nl=False)
        return 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in pages.items():
            (folder / f"{name}.{SECTION}").write_text(text, encoding="utf-8")
    except OSError as exc:
        raise KilometersError(f"{folder}: cannot be written ({exc.strerror})", hint="choose another --dir") from exc
    click.echo(f"wrote {len(pages)} pages; read them with: man kmctl")
    return 0


def render_pages(root: click.Context) -> Iterator[tuple[str, str]]:
    """Every page by its name: kmctl's own, and one for each command with what is below it."""
    group = root.command
    assert isinstance(group, click.Group)  # noqa: S101 - kmctl is one
    names = group.list_commands(root)
    yield "kmctl", render_page(root, [f"kmctl-{name}" for name in names])
    for name in names:
        command = group.get_command(root, name)
        if command is not None and not command.hidden:
            context = click.Context(command, info_name=name, parent=root)
            yield f"kmctl-{name}", render_page(context, ["kmctl"])


def render_page(ctx: click.Context, see_also: list[str]) -> str:
    """One page in roff's man macros (man-pages(7))."""
    name = ctx.command_path.replace(" ", "-")
    text = inspect.cleandoc(ctx.command.help or "").replace("\b\n", "")
    first = " ".join(text.split("\n\n")[0].split()).rstrip(".")
    lines = [
        f'.TH "{name.upper()}" "{SECTION}" "" "Kilometers {version("kilometers")}" "Kilometers"',
        ".SH NAME",
        f"{escape(name)} \\- {escape(first)}",
        ".SH SYNOPSIS",
        escape(f"{ctx.command_path} {' '.join(ctx.command.collect_usage_pieces(ctx))}"),
        ".SH DESCRIPTION",
        *render_text(EXAMPLE.sub("", text)),
        *render_commands(ctx),
        ".SH OPTIONS",
        *render_options(ctx),
        *render_table("EXIT STATUS", EXIT_STATUS),
        *render_table("ENVIRONMENT", ENVIRONMENT),
        *render_examples(text),
        ".SH SEE ALSO",
        ", ".join(f"\\fB{escape(page)}\\fR({SECTION})" for page in see_also),
    ]
    return "\n".join(lines) + "\n"


def render_commands(ctx: click.Context, heading: str = ".SH COMMANDS") -> Iterator[str]:
    """What stands below a group: for kmctl itself a line each, else each with its own options."""
    group = ctx.command
    if not isinstance(group, click.Group):
        return
    yield heading
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        if command is None or command.hidden:
            continue
        inner = click.Context(command, info_name=name, parent=ctx)
        pieces = " ".join(piece for piece in command.collect_usage_pieces(inner) if not piece.startswith("[OPTIONS"))
        yield ".TP"
        yield f"\\fB{escape(name)}\\fR {escape(pieces)}".rstrip()
        text = inspect.cleandoc(command.help or "").replace("\b\n", "")
        if ctx.parent is None:
            yield escape(" ".join(text.split("\n\n")[0].split()))
            continue
        yield from render_text(EXAMPLE.sub("", text), indented=True)
        yield ".RS"
        yield from render_options(inner)
        yield ".RE"


def render_options(ctx: click.Context) -> Iterator[str]:
    """Each option with its help."""
    for parameter in ctx.command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        if record is not None:
            yield from (".TP", f"\\fB{escape(record[0])}\\fR", escape(record[1]))


def render_table(heading: str, rows: dict[str, str]) -> Iterator[str]:
    """A section of terms."""
    yield f".SH {heading}"
    for term, meaning in rows.items():
        yield from (".TP", f"\\fB{escape(term)}\\fR", escape(meaning))


def render_examples(text: str) -> Iterator[str]:
    """The examples of the help, as they are typed."""
    for found in EXAMPLE.finditer(text):
        yield from (".SH EXAMPLES", ".nf", *(escape(line.strip()) for line in found[1].splitlines()), ".fi")


def render_text(text: str, *, indented: bool = False) -> Iterator[str]:
    """Paragraphs; the first word of none is taken for a macro."""
    for number, paragraph in enumerate(part for part in text.split("\n\n") if part.strip()):
        if number:
            yield ".IP" if indented else ".PP"
        yield escape(" ".join(paragraph.split()))


def escape(text: str) -> str:
    """*text* as roff shows it: no escapes, no macros, and hyphens that can be typed again."""
    shown = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + shown if shown.startswith((".", "'")) else shown
