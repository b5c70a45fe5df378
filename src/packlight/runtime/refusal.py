"""Turns what onnxruntime says into a sentence for people."""

from __future__ import annotations

import re

_CODE = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : ")
_LOADING = re.compile(r"^Load model from .*? failed: ?", re.DOTALL)
_NODE = re.compile(
    r"Non-zero status code returned while running (?P<op>\S+) node\. "
    r"Name:'(?P<name>[^']*)' Status Message: "
)
_SOURCE = re.compile(r"\S+\.(?:cc|cpp|cu|h|hpp|inc):\d+ ")
_OPERATOR = re.compile(
    r"(?:Fatal error: )?(?:(?P<domain>\S+):)?(?P<op>[^\s:(]+)\(-?\d+\)"
    r" is not a registered function/op"
)
# The C++ condition that failed, where words follow it.
_CONDITION = re.compile(r"^[^.]*? was false\. (?=\S)")
_MEMORY = re.compile(
    r"bad_?\s?alloc|failed to allocate|unable to allocate|cannot allocate memory|no room for arrays"
    r"|MemoryError",
    re.IGNORECASE,
)
_LENGTH = 240


def speaks_of_memory(text: str) -> bool:
    """Whether a message says that memory ran out."""
    return _MEMORY.search(text) is not None


def first_sentence(text: str) -> str:
    """The useful beginning of a message of onnxruntime, on one line, ending with a full stop.

    Error codes, the model's path (the caller names it), paths and signatures of
    onnxruntime's sources, and control characters are left out.
    """
    text = "".join(character if character.isprintable() else " " for character in text)
    text = _CODE.sub("", text)
    text = _LOADING.sub("", text)
    text = _NODE.sub(_name_node, text)
    while match := _SOURCE.search(text):
        rest = text[match.end() :]
        rest = rest[_length_of_signature(rest) :]
        text = text[: match.start()] + _CONDITION.sub("", rest, count=1)
    text = _OPERATOR.sub(_name_operator, " ".join(text.split()))
    kept = ""
    for sentence in re.split(r"(?<=[.!?]) +(?=[A-Z])", text):
        if kept and len(kept) + 1 + len(sentence) > _LENGTH:
            break
        kept = f"{kept} {sentence}" if kept else sentence
    if len(kept) > _LENGTH:
        kept = kept[: _LENGTH - 3].rstrip() + "..."
    if not kept:
        return "No reason was given."
    return kept if kept.endswith((".", "!", "?")) else kept + "."


def _name_operator(match: re.Match[str]) -> str:
    domain = f" of the domain {match['domain']!r}" if match["domain"] else ""
    return (
        f"it has no implementation of the operator {match['op']!r}{domain}; export the model with "
        "standard operators"
    )


def _name_node(match: re.Match[str]) -> str:
    name = match["name"]
    return f"{match['op']} node {name!r}: " if name else f"{match['op']} node: "


def _length_of_signature(text: str) -> int:
    """How many leading characters are a C++ signature such as `void a::b(int) const `."""
    opening = text.find("(")
    if opening < 0 or "::" not in text[:opening]:
        return 0
    depth = 0
    for position in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            end = position + 1
            trailer = re.match(r"(?:\(\))?(?: const)?(?: \[with [^\]]*\])?:? *", text[end:])
            return end + (trailer.end() if trailer else 0)
    return 0
