"""The plan as data: what to do to each layer, as frozen records and as readable YAML.

```yaml
schema: 1
target: laptop
ranges: squared-error        # of activations: squared-error, min-max, percentile, least-error
rounding: compensated        # of static int8 weights: compensated or nearest
bias_correction: false
layers:
  /conv1/Conv: int8
  /linear/Gemm: weights-int8
```
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from packlight.errors import UnusableRecipe

CHOICES: dict[str, str] = {
    "float32": "left as it is",
    "int8": "8-bit weights and activations, computed in integers (static)",
    "int8-wide": "8-bit weights, 16-bit activations",
    "int8-dynamic": "8-bit weights, activations quantized while the model runs",
    "weights-int8": "8-bit weights in the file, computed in float",
    "weights-int8-blocks": "8-bit weights in blocks of 32, packed in memory too",
    "weights-int4": "4-bit weights in blocks of 32, packed in memory too",
    "float16": "16-bit floats in the file, computed in float32",
}

RANGES = ("squared-error", "min-max", "percentile", "least-error")
ROUNDINGS = ("compensated", "nearest")
MOST_BYTES = 4 << 20
"""Tens of thousands of layers fit; reading more YAML would take minutes."""
_DEEPEST = 4


@dataclass(frozen=True)
class Recipe:
    """One whole plan.

    layers: (name, choice) in graph order; a layer that is not named stays float32.
    equalize: balance channels between neighbouring layers before quantization.
    pair_limit: keep codes of neighbouring weights from saturating x86 kernels.
    """

    target: str = "laptop"
    layers: tuple[tuple[str, str], ...] = ()
    ranges: str = "squared-error"
    rounding: str = "compensated"
    bias_correction: bool = False
    equalize: bool = False
    pair_limit: bool = True
    seed: int = 0

    def choice(self, layer: str) -> str:
        """What happens to a layer."""
        return dict(self.layers).get(layer, "float32")

    def with_choice(self, names: Iterable[str], choice: str) -> Recipe:
        """The same plan with another choice for some layers."""
        chosen = set(names)
        layers = tuple((name, choice if name in chosen else old) for name, old in self.layers)
        return replace(self, layers=layers)


def write_recipe(recipe: Recipe) -> str:
    """The recipe as YAML."""
    content: dict[str, Any] = {
        "schema": 1,
        "target": recipe.target,
        "seed": recipe.seed,
        "ranges": recipe.ranges,
        "rounding": recipe.rounding,
        "bias_correction": recipe.bias_correction,
        "equalize": recipe.equalize,
        "pair_limit": recipe.pair_limit,
        "layers": dict(recipe.layers),
    }
    head = (
        "# What packlight did to each layer. Run it again with: packlight compress MODEL "
        "--data SAMPLES --recipe recipe.yaml\n# Choices: " + ", ".join(CHOICES) + "\n"
    )
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000)
    return head + text


def read_recipe(path: Path | str) -> Recipe:
    """Read and check a recipe. Raises UnusableRecipe naming the entry and the nearest valid word.

    Only plain YAML is read: no tags, no aliases, no keys beyond the known ones.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UnusableRecipe(f"{path} is larger than a recipe can be ({MOST_BYTES} bytes).")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UnusableRecipe(f"The recipe {path} cannot be read ({error}).") from error
    try:
        _refuse_extras(text, path)
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        where = " ".join(str(error).split())[:300]
        raise UnusableRecipe(f"{path} is not valid YAML: {where}") from error
    if not isinstance(content, dict):
        raise UnusableRecipe(f"{path} holds no recipe: expected `layers:` with a choice each.")
    return _checked(content, path)


def _refuse_extras(text: str, path: Path) -> None:
    """Refuse aliases, tags, deep nests, and keys given twice (YAML would keep the last)."""
    # Of each collection that is open: the keys so far, and how many nodes it holds.
    seen: list[tuple[set[str] | None, int]] = []
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise UnusableRecipe(f"{path} uses YAML aliases (*name), which a recipe may not.")
        if isinstance(event, yaml.CollectionEndEvent):
            seen.pop()
        if not isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
            continue
        if event.tag is not None:
            raise UnusableRecipe(f"{path} uses the YAML tag {event.tag!r}, which a recipe may not.")
        if seen:
            keys, count = seen[-1]
            if keys is not None and count % 2 == 0 and isinstance(event, yaml.ScalarEvent):
                if event.value in keys:
                    raise UnusableRecipe(f"{path} has the entry {event.value!r} twice.")
                keys.add(event.value)
            seen[-1] = (keys, count + 1)
        if isinstance(event, yaml.ScalarEvent) and event.value == "<<" and event.implicit[0]:
            raise UnusableRecipe(f"{path} uses the YAML merge key <<, which a recipe may not.")
        if isinstance(event, yaml.CollectionStartEvent):
            seen.append((set() if isinstance(event, yaml.MappingStartEvent) else None, 0))
        if len(seen) > _DEEPEST:
            raise UnusableRecipe(f"{path} is nested deeper than a recipe can be.")


_SETTINGS: dict[str, tuple[type, str]] = {
    "schema": (int, "a whole number"),
    "target": (str, "a name"),
    "seed": (int, "a whole number"),
    "ranges": (str, "a word"),
    "rounding": (str, "a word"),
    "bias_correction": (bool, "true or false"),
    "equalize": (bool, "true or false"),
    "pair_limit": (bool, "true or false"),
    "layers": (dict, "a list of `layer: choice`"),
}


def _checked(content: Mapping[Any, Any], path: Path) -> Recipe:
    for key, value in content.items():
        if key not in _SETTINGS:
            raise UnusableRecipe(f"{path}: unknown entry {key!r}{_nearest(key, _SETTINGS)}.")
        kind, words = _SETTINGS[key]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise UnusableRecipe(f"{path}: {key!r} must be {words}, not {_short(value)}.")
    if content.get("schema", 1) != 1:
        raise UnusableRecipe(
            f"{path} has schema {content['schema']}; this version of packlight reads schema 1."
        )
    if content.get("seed", 0) < 0:
        raise UnusableRecipe(f"{path}: 'seed' must be 0 or more, not {content['seed']}.")
    for key, allowed in (("ranges", RANGES), ("rounding", ROUNDINGS)):
        if key in content and content[key] not in allowed:
            raise UnusableRecipe(
                f"{path}: {key!r} is {_short(content[key])}{_nearest(content[key], allowed)}; "
                f"it may be {', '.join(allowed)}."
            )
    layers = []
    for name, choice in content.get("layers", {}).items():
        if not isinstance(name, str):
            raise UnusableRecipe(
                f"{path}: the layer {_short(name)} is read as no text: put its name in quotes."
            )
        if not isinstance(choice, str) or choice not in CHOICES:
            raise UnusableRecipe(
                f"{path}: layer {name!r} has the choice {_short(choice)}"
                f"{_nearest(choice, CHOICES)}; it may be {', '.join(CHOICES)}."
            )
        layers.append((name, choice))
    settings = {key: value for key, value in content.items() if key not in ("schema", "layers")}
    return Recipe(layers=tuple(layers), **settings)


def check_layers(recipe: Recipe, names: Iterable[str]) -> None:
    """Raise UnusableRecipe where the recipe names a layer that the model does not have."""
    known = dict.fromkeys(names)
    for name, _ in recipe.layers:
        if name not in known:
            raise UnusableRecipe(
                f"The recipe names the layer {name!r}, which the model does not have"
                f"{_nearest(name, known)}."
            )


def _short(value: object) -> str:
    return reprlib.repr(value)


def _nearest(word: object, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(str(word)[:200], list(known), 1, 0.5)
    return f" (did you mean {found[0]!r}?)" if found else ""
