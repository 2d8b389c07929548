"""
Fields that this version does not know: kept as they came, within reason. Pure.

A later kmd may say more than this server understands; what it says must not be lost, and must not be a way in for
what no store and no reader can bear.
"""

import msgspec

NUMBER_MIN, NUMBER_MAX = -(2**63), 2**64 - 1
"""Whole numbers beyond 64 bits: many a reader of `extra` fails on them or makes another number of them."""

DEPTH_MAX = 32
"""Levels of lists and objects in a field; deeper ones only serve to exhaust a parser's stack."""

EXTRA_MAX_BYTES = 64 * 1024
"""Of all of them together: they are read with every page of the feed."""

_DECODE_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def collect_unknown(raw: msgspec.Raw, known: frozenset[str]) -> bytes | str | None:
    """
    The fields of a JSON object that are not *known*.

    Returns: the text of an object that has just them, None when there are none, or what is wrong with them.
    """
    try:
        fields = _DECODE_FIELDS.decode(raw)
    except (ValueError, RecursionError):
        return None  # no object: whoever decodes it says so
    unknown = {name: value for name, value in fields.items() if name not in known}
    if not unknown:
        return None
    text = msgspec.json.encode(unknown)
    if len(text) > EXTRA_MAX_BYTES:
        return f"its unknown fields are over {EXTRA_MAX_BYTES:,} bytes"
    try:
        whole = msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return "one of its unknown fields is not understood"
    return find_problem(whole) or text


def find_problem(value: object) -> str:
    """What a store or a reader could not bear in a decoded value; empty when there is nothing."""
    layer, depth = [value], 0
    while layer:
        depth += 1
        if depth > DEPTH_MAX:
            return f"one of its unknown fields is nested over {DEPTH_MAX} levels deep"
        texts = [one for one in layer if isinstance(one, str)]
        texts += [name for one in layer if isinstance(one, dict) for name in one]
        if any("\0" in text for text in texts):
            return "one of its unknown fields holds a NUL"
        if any(isinstance(one, int) and not NUMBER_MIN <= one <= NUMBER_MAX for one in layer):
            return "one of its unknown fields holds a number beyond 64 bits"
        layer = [inner for one in layer for inner in list_parts(one)]
    return ""


def list_parts(value: object) -> list[object]:
    """The values in a list or an object; none in anything else."""
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
