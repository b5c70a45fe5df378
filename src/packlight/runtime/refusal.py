"""Turns what runtimes say into a sentence for people."""

from __future__ import annotations

import re

_CODE = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : ")
_LOADING = re.compile(r"^Load model from .*? failed: ?", re.DOTALL)
_NODE = re.compile(
    r"Non-zero status code returned while running (?P<op>\S+) node\. "
    r"Name:'(?P<name>[^']*)' Status Message: "
)
_SOURCE = re.compile(r"\S+\.(?:c|cc|cpp|cu|h|hpp|inc):\d+:? ")
_OPERATOR = re.compile(
    r"(?:Fatal error: )?(?:(?P<domain>\S+):)?(?P<op>[^\s:(]+)\(-?\d+\)"
    r" is not a registered function/op"
)
# The C++ condition that failed, where words follow it.
_CONDITION = re.compile(r"^[^.]*? was false\. (?=\S)")
_MEMORY = re.compile(
    r"bad_?\s?alloc|failed to allocate|unable to allocate|cannot allocate memory|no room for arrays"
    r"|failed to map segment|cannot map zero-fill|MemoryError"
    # llama.cpp does not say that memory ran out, but asserts that it did not
    r"|GGML_ASSERT\(.*(?:buffer|data|ptr|mem) != (?:NULL|nullptr)\)",
    re.IGNORECASE,
)
_LENGTH = 240
# Where in OpenVINO's sources a message comes from, and what it wraps others in.
_OPENVINO_PLACE = re.compile(
    r"Exception from \S+:\d+:\s*|Check '.*?' failed at \S+:\d+:\s*"
    r"|FrontEnd API failed with \w+:\s*|While validating ONNX node '[^\n]*?':\s*",
    re.DOTALL,
)
_OPENVINO_LACKS = re.compile(r"No conversion rule found for operations?: (?P<names>[^\n]+)")
_OPENVINO_FAILED = re.compile(
    r"^-- (?P<name>\S+) with a message:\s*(?P<said>.*?)(?=\n\n|\Z)", re.DOTALL | re.MULTILINE
)


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


def words_of_openvino(text: str) -> str:
    """What OpenVINO said, without its sources, and with the operators that it cannot read."""
    if lacks := _OPENVINO_LACKS.search(text):
        names = [_openvino_operator(name) for name in lacks["names"].split(", ")]
        return f"It has no implementation of the operator {', '.join(names)}."
    if failed := _OPENVINO_FAILED.search(text):
        said = words_of_openvino(failed["said"])
        return f"It cannot read the operator {_openvino_operator(failed['name'])}: {said}"
    return " ".join(_OPENVINO_PLACE.sub("", text).split())


def _openvino_operator(name: str) -> str:
    """`com.microsoft.Foo` or `Foo-21`: the operator, and its domain unless it is ONNX's own."""
    domain, _, op = name.strip().rpartition(".")
    op = re.sub(r"-\d+$", "", op)
    return f"{op!r} of the domain {domain!r}" if domain else f"{op!r}"


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
