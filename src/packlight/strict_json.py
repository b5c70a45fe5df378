"""Reads JSON of strangers: bounded, every key once, numbers finite, not nested without end."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from packlight.errors import PacklightError, UnusableModel

MOST_VALUES = 1 << 23
"""Of one file; the largest tokenizers have 3 million, vocabulary and merges together. A value
takes 50 to 100 times the memory of the two bytes it can be written in."""

_AGAIN = "download the model again"


def read_json(path: Path, most_bytes: int) -> dict[str, Any]:
    """Read the object in the JSON file at `path`, of at most `most_bytes`.

    Raises UnusableModel.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > most_bytes:
                raise UnusableModel(
                    f"{path} has more than {most_bytes} bytes, which no such file needs: {_AGAIN}."
                )
            content = file.read(size)  # reading with a larger bound would take its memory
    except OSError as error:
        raise UnusableModel(f"{path} cannot be read: {error.strerror or error}.") from None
    return parse_json(content, str(path))


def parse_json(
    content: bytes,
    where: str,
    *,
    kind: type[PacklightError] = UnusableModel,
    advice: str = _AGAIN,
) -> dict[str, Any]:
    """Parse a JSON object; `where` is what messages call it.

    Raises an error of that kind (UnusableModel where none is named), with the advice.
    """
    if sum(content.count(mark) for mark in (b",", b"[", b"{")) > MOST_VALUES:
        raise kind(
            f"{where} holds more than {MOST_VALUES} values, which no such file needs: {advice}."
        )
    try:
        parsed = json.loads(
            content.decode("utf-8"), object_pairs_hook=_each_once, parse_constant=_refuse_constant
        )
    except RecursionError:
        raise kind(f"{where} is nested too deep: {advice}.") from None
    except ValueError as error:
        reason = str(error).splitlines()[0][:200]
        raise kind(f"{where} is not the JSON it should be ({reason}): {advice}.") from None
    if not isinstance(parsed, dict):
        raise kind(f"{where} holds no JSON object: {advice}.")
    return parsed


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"the key {name[:100]!r} is there twice")
            seen.add(name)
    return made


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is no number")
