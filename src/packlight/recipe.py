"""The plan as data: what to do to each layer, as frozen records and as readable YAML.

```yaml
schema: 1
target: laptop
ranges: squared-error        # of activations: squared-error, min-max, percentile, least-error
rounding: compensated        # of weights: compensated, descent, learned or nearest
sequential: false            # rounding sees the inputs that quantized layers give
bias_correction: false
layers:
  /conv1/Conv: int8
  /linear/Gemm: weights-int8
```

With `layers` alone a recipe is done as it stands. With `pins` or `forbid` it is searched for a
better one, in which pinned layers keep their choice and forbidden choices do not occur:

```yaml
pins:
  /linear/Gemm: float32
forbid: [int8-dynamic, weights-int4]
```
"""

from __future__ import annotations

import reprlib
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import yaml

# The words of choices are a part of what a recipe says.
from packlight.choices import CHOICES as CHOICES
from packlight.choices import Choice as Choice
from packlight.choices import Zeros as Zeros
from packlight.choices import is_choice as is_choice
from packlight.choices import nearest_choices
from packlight.choices import parse_choice as parse_choice
from packlight.choices import size_only as size_only
from packlight.errors import UnusableRecipe
from packlight.nearest import did_you_mean
from packlight.ranks import Rank, parse_rank

SEARCHED = "searched"
Smooth: TypeAlias = float | Literal["searched"]
"""One strength for all groups of layers, or scales that are searched for in each."""

RANGES = ("squared-error", "min-max", "percentile", "least-error")
ROUNDINGS = ("compensated", "descent", "learned", "nearest")
MOST_BYTES = 4 << 20
"""Tens of thousands of layers fit; reading more YAML would take minutes."""
_DEEPEST = 4


@dataclass(frozen=True)
class Recipe:
    """One whole plan.

    layers: (name, choice) in graph order; a layer that is not named stays float32.
    equalize: balance channels between neighbouring layers before quantization.
    smooth: strength (0 to 1) with which range is moved from activations into weights; 0: off;
        "searched": by scales searched for, group by group.
    rotate: turn channels between pairs of layers so that those which reach far are spread.
    rounding: of weights, where second moments of their inputs were observed: "compensated",
        "descent" (and then code by code), "learned"; "nearest" asks for none of it.
    sequential: rounding sees the inputs that the quantized layers before it give.
    pair_limit: keep codes of neighbouring weights from saturating x86 kernels.
    channels: (group of channels, how many it keeps) of those that lose some, by its first layer;
        they go before anything is rounded. removed: residual branches, by the name of their Add,
        that go as well. ranks: (layer, how it is taken apart in two), once those are gone.
        heal_steps: of training what is left.
    tune_steps: of training with rounding in the loop, after all else.
    pins, forbid: (layer, choice) and choices that a search must keep to; with either the recipe
        asks for a search.
    places: (layer, "file, line 3") for messages, where the recipe was read from a file.
    """

    target: str = "laptop"
    layers: tuple[tuple[str, str], ...] = ()
    ranges: str = "squared-error"
    rounding: str = "compensated"
    sequential: bool = False
    bias_correction: bool = False
    equalize: bool = False
    smooth: Smooth = 0.0
    rotate: bool = False
    pair_limit: bool = True
    seed: int = 0
    channels: tuple[tuple[str, int], ...] = ()
    removed: tuple[str, ...] = ()
    ranks: tuple[tuple[str, Rank], ...] = ()
    heal_steps: int = 0
    tune_steps: int = 0
    pins: tuple[tuple[str, str], ...] = ()
    forbid: tuple[str, ...] = ()
    places: tuple[tuple[str, str], ...] = field(default=(), compare=False, repr=False)

    def choice(self, layer: str) -> str:
        """What happens to a layer."""
        return dict(self.layers).get(layer, "float32")

    @property
    def thins(self) -> bool:
        """Whether channels, branches or ranks go before anything is rounded."""
        return bool(self.channels or self.removed or self.ranks)

    @property
    def searches(self) -> bool:
        """Whether it asks for a search, instead of saying all."""
        return bool(self.pins or self.forbid or not self.layers)

    def place(self, layer: str) -> str:
        """Where a layer's choice was read, as the beginning of a message: "file, line 3: "."""
        found = dict(self.places).get(layer)
        return f"{found}: " if found else ""

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
        "sequential": recipe.sequential,
        "bias_correction": recipe.bias_correction,
        "equalize": recipe.equalize,
        "smooth": recipe.smooth,
        "rotate": recipe.rotate,
        "pair_limit": recipe.pair_limit,
        "layers": dict(recipe.layers),
    }
    if recipe.channels or recipe.removed:
        content["channels"] = dict(recipe.channels)
        content["removed"] = list(recipe.removed)
    if recipe.ranks:
        content["ranks"] = {name: rank.word for name, rank in recipe.ranks}
    if recipe.thins:
        content["heal_steps"] = recipe.heal_steps
    if recipe.tune_steps:
        content["tune_steps"] = recipe.tune_steps
    if recipe.pins:
        content["pins"] = dict(recipe.pins)
    if recipe.forbid:
        content["forbid"] = list(recipe.forbid)
    words = textwrap.wrap(
        "Choices: " + ", ".join(CHOICES), 98, break_on_hyphens=False, break_long_words=False
    )
    head = (
        "# What packlight did to each layer. Run it again with: packlight compress MODEL "
        "--data SAMPLES --recipe recipe.yaml\n" + "".join(f"# {line}\n" for line in words)
    )
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000)
    return head + text


def read_recipe(path: Path | str) -> Recipe:
    """Read and check a recipe. Raises UnusableRecipe naming the line, the entry and the nearest
    valid word.

    Only plain YAML is read: no tags, no aliases, no keys beyond the known ones.
    """
    path = Path(path)
    return parse_recipe(read_recipe_text(path), path)


def read_recipe_text(path: Path) -> str:
    """The text of a recipe's file. Raises UnusableRecipe where it cannot be one."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UnusableRecipe(f"{path} is larger than a recipe can be ({MOST_BYTES} bytes).")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UnusableRecipe(f"The recipe {path} cannot be read ({error}).") from error


def parse_recipe(text: str, path: Path) -> Recipe:
    """Check the text of a recipe, which messages call by `path`. Raises as `read_recipe`."""
    root, content = load_plain(text, path)
    if root is None or not isinstance(content, dict):
        raise UnusableRecipe(f"{path} holds no recipe: expected `layers:` with a choice each.")
    return _checked(content, _line_numbers(root), path)


def load_plain(text: str, path: Path) -> tuple[yaml.Node | None, Any]:
    """Plain YAML: its root and its value. Raises UnusableRecipe for aliases, tags and the like."""
    try:
        _refuse_extras(text, path)
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        return root, None if root is None else loader.construct_document(root)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        where = " ".join(str(error).split())[:300]
        raise UnusableRecipe(f"{path} is not valid YAML: {where}") from error


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
                    line = event.start_mark.line + 1
                    raise UnusableRecipe(
                        f"{path}, line {line}: the entry {event.value!r} is there twice."
                    )
                keys.add(event.value)
            seen[-1] = (keys, count + 1)
        if isinstance(event, yaml.ScalarEvent) and event.value == "<<" and event.implicit[0]:
            raise UnusableRecipe(f"{path} uses the YAML merge key <<, which a recipe may not.")
        if isinstance(event, yaml.CollectionStartEvent):
            seen.append((set() if isinstance(event, yaml.MappingStartEvent) else None, 0))
        if len(seen) > _DEEPEST:
            raise UnusableRecipe(f"{path} is nested deeper than a recipe can be.")


def _line_numbers(root: yaml.Node) -> list[tuple[int, list[int]]]:
    """For each entry of the file, in order: its line, and those of the entries it holds."""
    if not isinstance(root, yaml.MappingNode):
        return []
    return [
        (key.start_mark.line + 1, [line for line, _ in _line_numbers(value)])
        for key, value in root.value
    ]


_SETTINGS: dict[str, tuple[type, str]] = {
    "schema": (int, "a whole number"),
    "target": (str, "a name"),
    "seed": (int, "a whole number"),
    "ranges": (str, "a word"),
    "rounding": (str, "a word"),
    "sequential": (bool, "true or false"),
    "bias_correction": (bool, "true or false"),
    "equalize": (bool, "true or false"),
    "smooth": (float, "a number from 0 to 1, or the word searched"),
    "rotate": (bool, "true or false"),
    "pair_limit": (bool, "true or false"),
    "layers": (dict, "a list of `layer: choice`"),
    "channels": (dict, "a list of `group: channels kept`"),
    "removed": (list, "a list of residual branches in brackets"),
    "ranks": (dict, "a list of `layer: kind rank`"),
    "heal_steps": (int, "a whole number"),
    "tune_steps": (int, "a whole number"),
    "pins": (dict, "a list of `layer: choice`"),
    "forbid": (list, "a list of choices in brackets"),
}


def _checked(
    content: Mapping[Any, Any], numbers: list[tuple[int, list[int]]], path: Path
) -> Recipe:
    # Entries that are one for YAML (yes and true) have fewer keys than lines: no text, so refused.
    at = {key: f"{path}, line {line}" for key, (line, _) in zip(content, numbers, strict=False)}
    for key, value in content.items():
        if key not in _SETTINGS:
            raise UnusableRecipe(f"{at[key]}: unknown entry {key!r}{did_you_mean(key, _SETTINGS)}.")
        kind, words = _SETTINGS[key]
        if kind is float and type(value) is int:
            kind = int
        if key == "smooth" and value == SEARCHED:
            kind = str
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise UnusableRecipe(f"{at[key]}: {key!r} must be {words}, not {_short(value)}.")
    if content.get("schema", 1) != 1:
        raise UnusableRecipe(
            f"{at['schema']}: this is schema {content['schema']}; this version of packlight reads "
            "schema 1."
        )
    if content.get("seed", 0) < 0:
        raise UnusableRecipe(f"{at['seed']}: 'seed' must be 0 or more, not {content['seed']}.")
    smooth = content.get("smooth", 0)
    if smooth != SEARCHED and not 0 <= smooth <= 1:
        raise UnusableRecipe(
            f"{at['smooth']}: 'smooth' must lie from 0 (off) to 1, or be the word searched, "
            f"not {smooth}."
        )
    for key, allowed in (("ranges", RANGES), ("rounding", ROUNDINGS)):
        if key in content and content[key] not in allowed:
            raise UnusableRecipe(
                f"{at[key]}: {key!r} is {_short(content[key])}"
                f"{did_you_mean(content[key], allowed)}; it may be {', '.join(allowed)}."
            )
    for key in ("heal_steps", "tune_steps"):
        if content.get(key, 0) < 0:
            raise UnusableRecipe(f"{at[key]}: {key!r} must be 0 or more, not {content[key]}.")
    channels: tuple[tuple[str, int], ...] = ()
    ranks: tuple[tuple[str, Rank], ...] = ()
    chosen: dict[str, tuple[tuple[str, str], ...]] = {}
    places: list[tuple[str, str]] = []
    for key, (_, inner) in zip(content, numbers, strict=False):
        if key == "channels":
            channels = _channels_of(content[key], inner, path)
        if key == "ranks":
            ranks = _ranks_of(content[key], inner, path)
        if key in ("layers", "pins"):
            chosen[key] = _choices_of(content[key], inner, path)
            places += [
                (name, f"{path}, line {line}")
                for (name, _), line in zip(chosen[key], inner, strict=False)
            ]
    for word in content.get("forbid", ()):
        if not isinstance(word, str) or word not in CHOICES:
            raise UnusableRecipe(
                f"{at['forbid']}: there is no choice {_short(word)} to forbid"
                f"{nearest_choices(word)}."
            )
    for word in content.get("removed", ()):
        if not isinstance(word, str):
            raise UnusableRecipe(
                f"{at['removed']}: the branch {_short(word)} is read as no text: put its name in "
                "quotes."
            )
    settings = {
        key: value
        for key, value in content.items()
        if key not in ("schema", "layers", "channels", "removed", "ranks", "pins", "forbid")
    }
    return Recipe(
        layers=chosen.get("layers", ()),
        channels=channels,
        removed=tuple(content.get("removed", ())),
        ranks=ranks,
        pins=chosen.get("pins", ()),
        forbid=tuple(content.get("forbid", ())),
        places=tuple(places),
        **settings,
    )


def _choices_of(
    entries: Mapping[Any, Any], lines: list[int], path: Path
) -> tuple[tuple[str, str], ...]:
    found = []
    for (name, choice), line in zip(entries.items(), lines, strict=False):
        where = f"{path}, line {line}"
        if not isinstance(name, str):
            raise UnusableRecipe(
                f"{where}: the layer {_short(name)} is read as no text: put its name in quotes."
            )
        if not isinstance(choice, str) or not is_choice(choice):
            raise UnusableRecipe(
                f"{where}: layer {name!r} has the choice {_short(choice)}, which there is not"
                f"{nearest_choices(choice)}."
            )
        found.append((name, choice))
    return tuple(found)


def _channels_of(
    entries: Mapping[Any, Any], lines: list[int], path: Path
) -> tuple[tuple[str, int], ...]:
    for (name, count), line in zip(entries.items(), lines, strict=False):
        if not isinstance(name, str) or type(count) is not int or count < 1:
            raise UnusableRecipe(
                f"{path}, line {line}: channels {_short(name)}: {_short(count)} is no group with "
                "the number of channels that it keeps, 1 or more."
            )
    return tuple(entries.items())


def _ranks_of(
    entries: Mapping[Any, Any], lines: list[int], path: Path
) -> tuple[tuple[str, Rank], ...]:
    found = []
    for (name, text), line in zip(entries.items(), lines, strict=False):
        rank = parse_rank(text)
        if not isinstance(name, str) or rank is None:
            raise UnusableRecipe(
                f"{path}, line {line}: ranks {_short(name)}: {_short(text)} is no layer with the "
                "way it is taken apart and a rank of 1 or more, such as `matrix 64`, `channel 16` "
                "or `spatial 12`."
            )
        found.append((name, rank))
    return tuple(found)


def check_layers(recipe: Recipe, names: Iterable[str]) -> None:
    """Raise UnusableRecipe where the recipe names a layer that the model does not have."""
    known = dict.fromkeys(names)
    for name, _ in recipe.layers:
        if name not in known:
            raise UnusableRecipe(
                f"{recipe.place(name)}The recipe names the layer {name!r}, which the model "
                f"does not have{did_you_mean(name, known)}."
            )


def _short(value: object) -> str:
    return reprlib.repr(value)
