"""
Making secrets unreadable in what is shown. Pure.

Values of `env` and headers are never shown. Elsewhere only what is known to be harmless is: a server's words, its
type, its name. Words may hold secrets too; what looks like one is masked, and where in doubt it is masked.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

from kmctl.clients.entries import Entry
from kmctl.clients.tree import Document, Edit, Format, Kind, Node, Raw, apply_edits

MASK = "***"
SHOWN_MAX_CHARS = 2
"""Values of variables up to this length are no secrets, and would hide half of every text: `1`, `en`."""
WHOLE_MAX_CHARS = 7
"""Up to this length a value is masked only where it stands alone: `info` is in `information`."""
SHOWN_KEYS = frozenset({"type", "transport", "cwd", "name", "source"})
WORD_KEYS = frozenset({"command", "cmd", "args", "path"})
SENSITIVE = r"(?:key|token|secret|pass|pwd|auth|credential|cookie|bearer|session|signature|private|dsn|conn)"
SECRET_FLAG = re.compile(
    rf"--?[\w.-]*{SENSITIVE}[\w.-]*|-p|-H|--headers?|-u|--user|-k|--(?:access|license|login|mnemonic|pat|phrase|pin|webhook)",
    re.IGNORECASE,
)
ENV_FLAG = re.compile(r"-e|--env|--set-env")
JOINED = re.compile(r"(-e\s?\w+=|--(?:set-)?env=\w+=|-H|--headers?=)(.+)", re.DOTALL)
"""A variable or header in one word with its flag."""
OBJECT = re.compile(r"\s*[{\[].*[:,].*", re.DOTALL)
"""A configuration as one word: what is a secret in it, its own program knows."""
SCHEME = re.compile(r"\b(Basic|Bearer) +\S+", re.IGNORECASE)
ASSIGNED = re.compile(rf"(?i)([\w.-]*{SENSITIVE}[\w.-]*\s*[=:]\s*)(\S.*)")
SET_VARIABLE = re.compile(r"\b([A-Z][A-Z0-9_]*=)(\S+)")
CREDENTIALS = re.compile(r"(\w[\w+.-]*://)[^/@\s]*@")
QUERY = re.compile(r"([?&#][\w.-]+=)[^&#\s]+")
KNOWN = re.compile(
    r"(?:\b|_)(?:sk-|pk-|rk-|gh[opusr]_|github_pat_|glpat-|xox[a-z]-|xapp-|AKIA|ASIA|AIza|ya29\.|eyJ|npm_|hf_|pypi-|"
    r"dop_v1_|shpat_|sq0|SG\.|key-|km_|lin_api_|ntn_|secret_|fc-|tvly-|pplx-|gsk_|r8_|figd_|ATATT|-----BEGIN)\S+"
)
LONG = re.compile(r"(?<![\w+/=-])(?=[\w+/=-]*[0-9])(?=[\w+/=-]*[A-Za-z])[A-Za-z0-9+/=_-]{20,}(?![\w+/=-])")
COMMENTS = {
    Format.JSON: re.compile(r"(//)[^\r\n]*|(/\*).*?\*/", re.DOTALL),
    Format.TOML: re.compile(r"(#)[^\r\n]*"),
    Format.YAML: re.compile(r"(#)[^\r\n]*"),
}


def mask_word(word: str, before: str) -> str:
    """A word of a command line with what looks like a secret masked; *before* is the word in front of it."""
    if SECRET_FLAG.fullmatch(before) and not word.startswith("--"):
        return MASK
    if ENV_FLAG.fullmatch(before) and "=" in word:
        return word.partition("=")[0] + "=" + MASK
    if OBJECT.fullmatch(word):
        return MASK
    if joined := JOINED.fullmatch(word):
        return joined.group(1) + MASK
    word = CREDENTIALS.sub(rf"\1{MASK}@", word)
    word = SCHEME.sub(rf"\1 {MASK}", word)
    word = ASSIGNED.sub(rf"\1{MASK}", word)
    word = SET_VARIABLE.sub(rf"\1{MASK}", word)
    word = QUERY.sub(rf"\1{MASK}", word)
    word = KNOWN.sub(MASK, word)
    return LONG.sub(lambda found: found.group() if is_name(found.group()) else MASK, word)


def find_secrets(words: Sequence[str], environ: Mapping[str, str]) -> frozenset[str]:
    """What a server was given and may not be shown when it repeats it: its variables' values, secrets in its words."""
    found = set(environ.values())
    for before, word in zip(["", *words], words, strict=False):
        if (masked := mask_word(word, before)) != word:
            head, _, rest = masked.partition(MASK)
            tail = rest.rpartition(MASK)[2]
            found.add(word[len(head) : len(word) - len(tail)])
    return frozenset(value for value in found if len(value) > SHOWN_MAX_CHARS)


def hide_secrets(text: str, secrets: frozenset[str]) -> str:
    """*text* with *secrets* masked, and with what is known to be a secret by its look."""
    for value in sorted(secrets, key=len, reverse=True):
        pattern = re.escape(value)
        text = re.sub(pattern if len(value) > WHOLE_MAX_CHARS else rf"(?<!\w){pattern}(?!\w)", MASK, text)
    return KNOWN.sub(MASK, CREDENTIALS.sub(rf"\1{MASK}@", text))


def is_name(text: str) -> bool:
    """Whether a long text is made of words, as package names and paths are, and not of random characters."""
    parts = [part for part in re.split(r"[-_/+=]", text) if part]
    return all(len(part) < 20 and (part.isalpha() or part.isdigit() or len(part) <= 10) for part in parts) and (
        len(parts) > 1
    )


def mask_entry(document: Document, entry: Entry) -> str:
    """The text of *entry* with everything masked that may be secret, comments too."""
    node = entry.node
    edits = list(mask_node(document, node, "", shown=True))
    edits += mask_comments(document, node)
    start, end = node.start, node.end
    moved = [Edit(edit.start - start, edit.end - start, edit.text) for edit in edits if start <= edit.start < end]
    return apply_edits(document.text[start:end], moved)


def mask_node(document: Document, node: Node, key: str, *, shown: bool) -> Iterator[Edit]:
    """The edits that mask what is in *node*, the value of *key*. shown: it is the entry, or a part of its words."""
    match node.kind:
        case Kind.MAP:
            for member in node.members:
                known = shown and member.key in (WORD_KEYS | SHOWN_KEYS)
                plain = shown and member.value.kind is Kind.SCALAR and isinstance(member.value.value, Raw)
                if not plain:
                    yield from mask_node(document, member.value, member.key, shown=known)
        case Kind.LIST:
            before = ""
            for item in node.items:
                if shown and key in WORD_KEYS and item.kind is Kind.SCALAR:
                    yield from mask_scalar(document, item, mask_word(str(item.value), before))
                    before = str(item.value)
                else:
                    yield from mask_node(document, item, "", shown=False)
        case Kind.SCALAR:
            yield from mask_scalar(document, node, mask_word(str(node.value), "") if shown else MASK)


def mask_scalar(document: Document, node: Node, word: str) -> Iterator[Edit]:
    """The edit that makes *word* the text of a scalar, if it is not already."""
    if word != node.value and node.end > node.start:
        yield Edit(node.start, node.end, f'"{word}"' if document.text[node.start] in "\"'" else word)


def mask_comments(document: Document, node: Node) -> Iterator[Edit]:
    """The edits that empty the comments in *node*: people comment out lines with keys in them."""
    pattern = COMMENTS[document.format]
    position = node.start
    for start, end in [*sorted(tokens(node)), (node.end, node.end)]:
        for found in pattern.finditer(document.text, position, max(start, position)):
            mark = found.group(1) or f"{found.group(2)}{MASK}*/"
            yield Edit(found.start(), found.end(), f"{mark} {MASK}" if found.group(1) else mark)
        position = max(end, position)


def tokens(node: Node) -> Iterator[tuple[int, int]]:
    """Where keys and scalars stand in *node*."""
    for member in node.members:
        yield member.start, member.key_end
        yield from tokens(member.value)
    for item in node.items:
        yield from tokens(item)
    if node.kind is Kind.SCALAR:
        yield node.start, node.end
