"""Chat templates, copied as the text they are: nothing of them is run or looked into."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packlight.errors import UnusableModel
from packlight.llm.checkpoint.folder import has_file, resolve_within
from packlight.llm.gguf.values import Value, value_of
from packlight.strict_json import read_json

MOST_BYTES = 1 << 22
_KEY = "tokenizer.chat_template"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def template_pairs(folder: Path, settings: Mapping[str, Any]) -> dict[str, Value]:
    """Give the chat template of a model, and those of other names. Raises UnusableModel."""
    if has_file(folder, "chat_template.jinja"):
        path = resolve_within(folder, "chat_template.jinja")
        if path.stat().st_size > MOST_BYTES:
            raise UnusableModel(f"{path} has more than {MOST_BYTES} bytes.")
        return {_KEY: value_of(path.read_bytes())}
    found: Any = settings.get("chat_template")
    if found is None and has_file(folder, "chat_template.json"):
        path = resolve_within(folder, "chat_template.json")
        found = read_json(path, MOST_BYTES).get("chat_template")
    if isinstance(found, str):
        return {_KEY: value_of(found)}
    pairs: dict[str, Value] = {}
    names = []
    for one in found if isinstance(found, list) else []:
        name = one.get("name") if isinstance(one, Mapping) else None
        text = one.get("template") if isinstance(one, Mapping) else None
        if not isinstance(name, str) or not isinstance(text, str) or not _NAME.fullmatch(name):
            raise UnusableModel(f"{folder} has a chat template without a plain name and a text.")
        pairs[_KEY if name == "default" else f"{_KEY}.{name}"] = value_of(text)
        names += [name] if name != "default" else []
    if names:
        pairs["tokenizer.chat_templates"] = value_of(names)
    return pairs
