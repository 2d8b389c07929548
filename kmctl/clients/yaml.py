"""
YAML read as a tree of spans: ruamel.yaml's parser, and the positions that it gives. Pure.

Nothing is ever written by the library: it would lay out anew what it did not change.
"""

from dataclasses import dataclass, field
from typing import Any

from kmctl.clients.tree import DEPTH_MAX, Kind, Member, Node, NotUnderstood, Raw, line_of

STRING_TAG = "tag:yaml.org,2002:str"
BLOCK_SCALARS = "|>"


def read_yaml(text: str, start: int) -> Node | None:
    """
    The tree of *text* from position *start* (after a byte order mark); None when it is blank.

    Raises: NotUnderstood with the line. The reason is the library's, without its excerpt of the text.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        documents = list(YAML(typ="safe", pure=True).compose_all(text[start:]))
    except MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        raise NotUnderstood(mark.line + 1 if mark else 1, str(exc.problem or exc.context)) from None
    except YAMLError as exc:
        position = getattr(exc, "position", 0)
        reason = str(getattr(exc, "reason", "cannot be read"))
        raise NotUnderstood(line_of(text, start + (position if isinstance(position, int) else 0)), reason) from None
    if len(documents) > 1:
        raise NotUnderstood(documents[1].start_mark.line + 1, "holds more than one document")
    if not documents or documents[0] is None:
        return None
    return Reader(text, start).read(documents[0], 0)


@dataclass(slots=True)
class Reader:
    """Turns the library's nodes into ours. seen: ids of nodes read so far; a second visit comes from an alias."""

    text: str
    shift: int
    seen: set[int] = field(default_factory=set)

    def read(self, node: Any, depth: int) -> Node:  # noqa: ANN401 - the library's nodes have no useful types
        """*node* and everything in it."""
        start, end = self.span(node)
        if depth > DEPTH_MAX:
            raise NotUnderstood(line_of(self.text, start), "nested too deeply")
        if id(node) in self.seen:
            return Node(Kind.SCALAR, start, start, Raw(f"*{node.anchor}"), editable=False)
        self.seen.add(id(node))
        editable = node.anchor is None and self.text[start : start + 1] not in ("&", "!", *BLOCK_SCALARS)
        match node.id:
            case "mapping":
                members = tuple(self.read_member(key, value, depth) for key, value in node.value)
                end = end if node.flow_style else max((one.value.end for one in members), default=start)
                return Node(Kind.MAP, start, end, members=members, flow=bool(node.flow_style), editable=editable)
            case "sequence":
                items = tuple(self.read(item, depth + 1) for item in node.value)
                end = end if node.flow_style else max((item.end for item in items), default=start)
                return Node(Kind.LIST, start, end, items=items, flow=bool(node.flow_style), editable=editable)
        value = node.value if str(node.tag) == STRING_TAG else Raw(node.value)
        return Node(Kind.SCALAR, start, end, value, editable=editable)

    def read_member(self, key: Any, value: Any, depth: int) -> Member:  # noqa: ANN401
        """One key and its value; a key that is no scalar gets a name that no other can have."""
        start, end = self.span(key)
        inner = self.read(value, depth + 1)
        name = key.value if key.id == "scalar" and id(key) not in self.seen else f"\0{start}"
        self.seen.add(id(key))
        return Member(name, start, start, end, inner)

    def span(self, node: Any) -> tuple[int, int]:  # noqa: ANN401
        """Where the library says that *node* stands in our text."""
        return node.start_mark.index + self.shift, node.end_mark.index + self.shift
