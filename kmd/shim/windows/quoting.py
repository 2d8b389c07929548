r"""
Command lines: on Windows a program gets one string and cuts it into words itself.

Most cut as `CommandLineToArgvW` and Microsoft's C library do: blanks separate, `"…"` holds together, backslashes stand
for themselves unless a quotation mark follows. Batch files (`.bat`, `.cmd`) are read by `cmd.exe`, which first looks
for `%NAME%`, `&`, `|`, `<`, `>`, `^` and more. A word must reach the batch file as a word and never as a command (the
BatBadBut class of faults: CVE-2024-24576, CVE-2024-1874, CVE-2024-3566). So for a batch file:

- every word with a character that is not known to be harmless is put in quotation marks, where cmd.exe takes nothing
  for itself but `"` and `%`;
- a `"` inside is doubled, so that cmd.exe never takes the rest for being outside;
- a `%` is followed by a variable that is always empty (`%cd:~,%`), so that no name ever stands between two of them;
- delayed expansion (`!NAME!`) and the user's autorun commands are off;
- a line break or NUL cannot be passed on safely in any way: such a word is refused.

Pure.
"""

LINE_MAX_CHARS = 32766
"""CreateProcessW takes 32,767 characters with the closing NUL."""
BATCH_LINE_MAX_CHARS = 8191
"""cmd.exe takes no more."""
HARMLESS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789#$*+-./:?@\\_")
"""What a word for a batch file may hold without quotation marks."""
BLANKS = " \t\n\v\f\r"
NO_NAME = "%cd:~,%"
"""No character of the current folder's name: nothing, in every shell with command extensions (/e:on)."""


class UnsafeWordError(ValueError):
    """A word that cannot be given to the program as it is. Its text is one sentence, and shows none of the word."""


def render_command_line(words: list[str]) -> str:
    """
    The command line of a program: its name as the client gave it, then its arguments.

    Raises UnsafeWordError for what no command line can hold.
    """
    line = " ".join([quote_program(words[0]), *map(quote_argument, words[1:])])
    if len(line) > LINE_MAX_CHARS:
        raise UnsafeWordError(f"its command line is longer than Windows allows ({LINE_MAX_CHARS:,} characters)")
    return line


def quote_program(name: str) -> str:
    """The first word: here a backslash is never special, and a quotation mark cannot be had."""
    check_nul(name)
    if '"' in name:
        raise UnsafeWordError("a command's name cannot hold a quotation mark")
    return f'"{name}"' if not name or any(char <= " " for char in name) else name


def quote_argument(word: str) -> str:
    """As CommandLineToArgvW reads it: backslashes are doubled before a quotation mark, inside or closing."""
    check_nul(word)
    if word and not any(char in word for char in BLANKS + '"'):
        return word
    *before, last = word.split('"')
    inner = '\\"'.join([*(part + trailing_backslashes(part) for part in before), last])
    if word and not any(char in BLANKS for char in word):
        return inner
    return f'"{inner}{trailing_backslashes(inner)}"'


def trailing_backslashes(text: str) -> str:
    return "\\" * (len(text) - len(text.rstrip("\\")))


def render_batch_line(shell: str, script: str, arguments: list[str]) -> str:
    """
    The command line of *shell*, cmd.exe with its path, that runs the batch file *script*, an absolute path.

    /e:on extensions, as `NO_NAME` needs them; /v:off no delayed expansion; /d no autorun; /s takes away the outermost
    quotation marks and nothing else; /c the command. Raises UnsafeWordError for what cannot be passed on safely.
    """
    if '"' in script:
        raise UnsafeWordError("a command's name cannot hold a quotation mark")
    command = " ".join(map(quote_for_batch, [script, *arguments]))
    line = f'{quote_program(shell)} /e:on /v:off /d /s /c "{command}"'
    if len(line) > BATCH_LINE_MAX_CHARS:
        raise UnsafeWordError(f"its command line is longer than cmd.exe allows ({BATCH_LINE_MAX_CHARS:,} characters)")
    return line


def quote_for_batch(word: str) -> str:
    """As both cmd.exe and the program behind the batch file (`%*`) read it."""
    check_nul(word)
    if "\n" in word or "\r" in word:
        raise UnsafeWordError("an argument with a line break cannot be passed to a batch file safely")
    if word and all(char in HARMLESS for char in word) and not word.endswith("\\"):
        return word
    quoted = '""'.join(part + trailing_backslashes(part) for part in word.split('"'))
    return f'"{quoted.replace("%", "%" + NO_NAME)}"'


def check_nul(word: str) -> None:
    if "\0" in word:
        raise UnsafeWordError("the command holds a NUL character")
