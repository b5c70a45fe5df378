"""What was done to a language model, as YAML: its tensors' types, or a scheme, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from packlight.errors import UnusableRecipe
from packlight.language.ask import types_of
from packlight.llm.schemes.table import SCHEMES
from packlight.nearest import did_you_mean
from packlight.recipe import load_plain, read_recipe_text

_KEYS = {
    "schema": int,
    "kind": str,
    "target": str,
    "seed": int,
    "text": bool,
    "scheme": str,
    "removed": list,
    "types": dict,
}
KIND = "language-model"


@dataclass(frozen=True)
class LanguageRecipe:
    """types: of each tensor; or scheme: of compressed-tensors. text: whether they were rounded
    with the help of a text. removed: the blocks of the original that went, in their order; types
    are of what stays, numbered anew.
    """

    target: str
    types: Mapping[str, str]
    text: bool
    seed: int = 0
    scheme: str = ""
    removed: tuple[int, ...] = ()

    @property
    def content(self) -> dict[str, Any]:
        """The recipe as plain values."""
        return {
            "schema": 1,
            "kind": KIND,
            "target": self.target,
            "seed": self.seed,
            "text": self.text,
            **({"removed": [*self.removed]} if self.removed else {}),
            **({"scheme": self.scheme} if self.scheme else {"types": dict(self.types)}),
        }


def write_language_recipe(recipe: LanguageRecipe) -> str:
    """The recipe as YAML."""
    what = "The scheme of all layers" if recipe.scheme else "The type of each tensor"
    head = (
        f"# {what}. Make it again with: packlight compress MODEL "
        f"{'--data TEXT ' if recipe.text else ''}--recipe recipe.yaml\n"
    )
    body: str = yaml.safe_dump(recipe.content, sort_keys=False, allow_unicode=True, width=1000)
    return head + body


def read_language_recipe(path: Path) -> LanguageRecipe:
    """Read and check a recipe. Raises UnusableRecipe naming the entry and the nearest word."""
    _, content = load_plain(read_recipe_text(path), path)
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise UnusableRecipe(
            f"{path} is no recipe of a language model: it should say `kind: {KIND}`, and list "
            "`types:`."
        )
    for key, value in content.items():
        if key not in _KEYS:
            raise UnusableRecipe(f"{path}: there is no entry {key!r}{did_you_mean(key, _KEYS)}.")
        kind = _KEYS[key]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise UnusableRecipe(f"{path}: {key!r} is {str(value)[:60]!r}, not a {kind.__name__}.")
    types = content.get("types", {})
    known = types_of(content.get("target", ""))
    for name, word in types.items():
        if not isinstance(name, str) or not isinstance(word, str) or word not in known:
            raise UnusableRecipe(
                f"{path}: {str(name)[:80]!r} has the type {str(word)[:40]!r}"
                f"{did_you_mean(str(word), known)}: use one of {', '.join(known)}."
            )
    scheme = content.get("scheme", "")
    if scheme and scheme not in SCHEMES:
        raise UnusableRecipe(
            f"{path}: there is no scheme {scheme[:40]!r}{did_you_mean(scheme, SCHEMES)}: use one "
            f"of {', '.join(SCHEMES)}."
        )
    if not types and not scheme:
        raise UnusableRecipe(
            f"{path} holds no recipe: expected `types:` with one for each tensor, or a `scheme:`."
        )
    removed = content.get("removed", [])
    numbers = all(type(one) is int and one >= 0 for one in removed)
    if not numbers or len(set(removed)) != len(removed):
        raise UnusableRecipe(
            f"{path}: `removed:` is {str(removed)[:60]}, and should list numbers of blocks, each "
            "once."
        )
    seed = content.get("seed", 0)
    target = content.get("target", "vllm" if scheme else "llama.cpp")
    text = content.get("text", True)
    return LanguageRecipe(target, types, text, seed, scheme, tuple(removed))
