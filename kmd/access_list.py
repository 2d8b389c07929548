r"""
Who may get at a folder on Windows, read from its security descriptor as text (SDDL). Pure.

There a file is private when its *access list* names this user and nobody else, but for the system itself and the
machine's administrators, who get at everything anyway. What is made in the user's profile inherits such a list;
a folder elsewhere (`D:\km`) often is everybody's.

Source: [MS-DTYP] section 2.5.1, "Security Descriptor Definition Language".
"""

import re

TRUSTED = frozenset({"SY", "S-1-5-18", "BA", "S-1-5-32-544", "CO", "S-1-3-0", "OW", "S-1-3-4"})
"""The system, administrators, and two words for whoever owns the thing."""
LOCAL_ADMINISTRATOR = "LA"
"""How SDDL spells the SID that ends in -500, which may be this user's own."""
EVERYBODY = "Everyone"
ALLOWED = re.compile(r"\((?:A|OA|XA|ZA);[^;]*;[^;]*;[^;]*;[^;]*;([^;)]*)")
"""Whom an entry lets in: its sixth field. What may follow that is a condition, which only ever lets in fewer."""


def find_others(sddl: str, sid: str) -> list[str]:
    """
    Who besides the user *sid* owns what *sddl* describes, or may do anything with it, as SDDL spells them.

    Returns nothing when it is private. A descriptor without an access list lets everybody in.
    """
    parts = re.split(r"([OGDS]):", sddl)  # owner, group, discretionary list, system list; each once, or not at all
    named, values = parts[1::2], parts[2::2]
    found = dict(zip(named, values, strict=True))
    if len(found) < len(named) or "D" not in found or "NO_ACCESS_CONTROL" in found["D"]:
        return [EVERYBODY]
    let_in = [found["O"], *ALLOWED.findall(found["D"])] if found.get("O") else ALLOWED.findall(found["D"])
    return list(dict.fromkeys(who for who in let_in if not is_trusted(who, sid)))


def is_trusted(who: str, sid: str) -> bool:
    """Whether *who* is the user *sid*, the system or an administrator."""
    return who in TRUSTED or who == sid or (who == LOCAL_ADMINISTRATOR and sid.endswith("-500"))
