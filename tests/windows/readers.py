"""
How Windows programs read a command line, written from its documentation for the tests: what km renders must be read
back as the very words.
"""

SPECIAL = set("&|<>^()\n\r")
"""What cmd.exe takes for itself outside of quotation marks."""
LINE_VARIABLES = {"cd": "C:\\here & there", "path": 'C:\\Windows" & echo owned & "', "": None}


def read_argv(line: str) -> list[str]:
    """As CommandLineToArgvW and the C library: the program's name first, then arguments."""
    name, rest = read_program(line)
    return [name, *read_arguments(rest)]


def read_program(line: str) -> tuple[str, str]:
    """A quotation mark holds up to the next one; else up to a blank; a backslash is nothing special."""
    if line.startswith('"'):
        name, _, rest = line[1:].partition('"')
        return name, rest
    end = next((at for at, char in enumerate(line) if char <= " "), len(line))
    return line[:end], line[end:]


def read_arguments(rest: str) -> list[str]:
    """The C library's rules since 2008, which CommandLineToArgvW shares but for a doubled quotation mark."""
    words: list[str] = []
    at = 0
    while True:
        while at < len(rest) and rest[at] in " \t":
            at += 1
        if at == len(rest):
            return words
        word, at = read_word(rest, at)
        words.append(word)


def read_word(rest: str, at: int) -> tuple[str, int]:
    word, is_quoted = "", False
    while at < len(rest) and (is_quoted or rest[at] not in " \t"):
        slashes = 0
        while at < len(rest) and rest[at] == "\\":
            slashes, at = slashes + 1, at + 1
        if at == len(rest) or rest[at] != '"':
            word += "\\" * slashes
            if at < len(rest) and (is_quoted or rest[at] not in " \t"):
                word, at = word + rest[at], at + 1
            continue
        word += "\\" * (slashes // 2)
        at += 1
        if slashes % 2:
            word += '"'
        elif is_quoted and rest[at : at + 1] == '"':
            word, at = word + '"', at + 1
        else:
            is_quoted = not is_quoted
    return word, at


def read_as_shell(line: str) -> str:
    """
    What `cmd.exe /e:on /v:off /d /s /c "…"` hands to the batch file's command: variables replaced, outer marks gone.

    Raises AssertionError when cmd.exe would take any of it for itself.
    """
    _, _, command = line.partition(" /c ")
    assert command.startswith('"')
    assert command.endswith('"')
    expanded = expand(command[1:-1])
    is_quoted = False
    for char in expanded:
        if char == '"':
            is_quoted = not is_quoted
        assert is_quoted or char not in SPECIAL, f"cmd.exe would act on {char!r}"
    return expanded


def expand(text: str) -> str:
    """Percent signs as on a command line: a name that is no variable stays as it is."""
    out, at = "", 0
    while at < len(text):
        end = text.find("%", at + 1) if text[at] == "%" else -1
        value = value_of(text[at + 1 : end]) if end > 0 else None
        if value is None:
            out, at = out + text[at], at + 1
        else:
            out, at = out + value, end + 1
    return out


def value_of(name: str) -> str | None:
    variable, colon, part = name.partition(":")
    value = LINE_VARIABLES.get(variable.lower())
    if value is None or not colon:
        return value
    return "" if part == "~," else value
