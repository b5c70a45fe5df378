"""What may happen to a layer: the choices of a recipe, each a word.

Most stand in a table; weights that are coded or sparse take numbers, so that there are more of
these than are listed.
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass
from typing import Literal

from packlight.errors import UnusableRecipe
from packlight.nearest import did_you_mean

Compute = Literal["float", "static", "dynamic", "blocks"]


@dataclass(frozen=True)
class Zeros:
    """Weights that are 0: a share of them, or all but `keep` of every `of` neighbouring inputs."""

    share: float | None = None
    keep: int | None = None
    of: int | None = None

    def __str__(self) -> str:
        return f"{self.share:g}" if self.share is not None else f"{self.keep}:{self.of}"

    @property
    def kept(self) -> float:
        """The share of weights that stay."""
        if self.share is not None:
            return 1 - self.share
        return (self.keep or 0) / (self.of or 1)


@dataclass(frozen=True)
class Choice:
    """What may happen to a layer.

    word: as it stands in a recipe. weights: the form of its weights ("float32", "float16",
        "int2" ... "int8", "ternary", "nf4", "shared4", "coded", "sparse", ...).
    compute: "float" (decoded when the file is loaded), "static" and "dynamic" (activations of
        fewer bits), "blocks" (an operator that reads packed weights).
    activation_bits: 32 where activations stay float, 4 where float kernels see rounded ones.
    bits: nominal bits a weight, scales of blocks included, those of channels not.
    about: one line for people.
    zeros: which of its weights are 0, None where that is left to chance.
    """

    word: str
    weights: str
    compute: Compute
    activation_bits: int
    bits: float
    about: str
    zeros: Zeros | None = None


# word, form of the weights, bits a weight with its block's scale, and what it is.
_FORMATS: tuple[tuple[str, str, float, str], ...] = (
    ("ternary", "ternary", math.log2(3), "weights -1, 0 or 1 times a scale"),
    ("binary", "binary", 1.0, "weights -1 or 1 times a scale"),
    ("nf4", "nf4", 4.5, "16 quantiles of the normal distribution, blocks of 64"),
    ("fp4", "fp4", 4.0, "4-bit floats (e2m1), one scale a channel"),
    ("mxfp4", "mxfp4", 4.25, "4-bit floats, power-of-two scales for blocks of 32"),
    ("nvfp4", "nvfp4", 4.5, "4-bit floats, 8-bit float scales for blocks of 16"),
    ("fp8", "fp8", 8.0, "8-bit floats (e4m3), one scale a channel"),
    ("pow2", "pow2", 4.0, "signed powers of two, one scale a channel"),
    *(
        (f"shared{k}", f"shared{k}", float(k), f"{2**k} values shared by a layer")
        for k in range(2, 9)
    ),
    *(
        (f"coded{bits:g}", "coded", bits, f"about {bits:g} bits a weight once the file is packed")
        for bits in (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0)
    ),
)


_SPARSE = ("weights-sparse0.5", "weights-sparse2:4", "weights-sparse0.5-int8")
_SPARSE_WORD = re.compile(
    r"weights-sparse(?:(?P<share>0\.[0-9]{1,3})|(?P<keep>[1-9][0-9]?):(?P<of>[1-9][0-9]?))"
    r"(?:-int(?P<bits>[2-8]))?"
)

LEAST_CODED, MOST_CODED = 0.05, 6.0
"""Bits a weight of choices that are coded."""

_CODED_WORD = re.compile(r"weights-coded(?P<bits>[0-9](?:\.[0-9]{1,3})?)")


def _sparse_choice(word: str) -> Choice | None:
    """Weights with zeros, `weights-sparse0.5` or `weights-sparse2:4`, perhaps with their bits."""
    found = _SPARSE_WORD.fullmatch(word)
    if found is None:
        return None
    keep, of = found["keep"], found["of"]
    zeros = Zeros(share=float(found["share"])) if keep is None else Zeros(None, int(keep), int(of))
    if not 0 < zeros.kept < 1:
        return None
    if keep is None:
        which = f"{100 * (1 - zeros.kept):g} % of the weights are 0"
    else:
        which = f"{keep} of {of} neighbouring weights stay, the others are 0"
    # Where zeros are takes up to a bit a weight.
    places = -sum(share * math.log2(share) for share in (zeros.kept, 1 - zeros.kept))
    form, wide, rest = "sparse", 32, ""
    if found["bits"] is not None:
        form, wide = f"int{found['bits']}", int(found["bits"])
        rest = f", {wide} bits for the others"
    about = f"{which}{rest}: smaller once the file is packed, computed in float"
    return Choice(word, form, "float", 32, wide * zeros.kept + places, about, zeros)


def _coded_choice(word: str) -> Choice | None:
    """Weights coded with any number of bits, `weights-coded0.35`."""
    found = _CODED_WORD.fullmatch(word)
    if found is None or not LEAST_CODED <= float(found["bits"]) <= MOST_CODED:
        return None
    bits = float(found["bits"])
    about = f"about {bits:g} bits a weight once the file is packed, computed in float"
    return Choice(word, "coded", "float", 32, bits, about)


def _list_choices() -> tuple[Choice, ...]:
    static = "weights and 8-bit activations, computed in integers"
    stored = "computed in float"
    blocks = "in blocks of 32, packed in memory too"
    found = [
        Choice("float32", "float32", "float", 32, 32.0, "left as it is"),
        Choice("int8", "int8", "static", 8, 8.0, f"8-bit {static} (static)"),
    ]
    for bits in range(7, 1, -1):
        about = f"{bits}-bit {static}, stored in 8 bits or fewer once packed"
        found.append(Choice(f"int{bits}", f"int{bits}", "static", 8, float(bits), about))
    found.append(
        Choice("int8-wide", "int8", "static", 16, 8.0, "8-bit weights, 16-bit activations")
    )
    for bits in (8, 4, 3):
        about = f"{bits}-bit weights, activations rounded to 4 bits, {stored}"
        found.append(Choice(f"int{bits}-a4", f"int{bits}", "static", 4, float(bits), about))
    about = "8-bit weights, activations quantized while the model runs"
    found.append(Choice("int8-dynamic", "int8", "dynamic", 8, 8.0, about))
    for bits in range(8, 1, -1):
        about = f"{bits}-bit weights in the file, one scale a channel, {stored}"
        found.append(Choice(f"weights-int{bits}", f"int{bits}", "float", 32, float(bits), about))
    for bits in (8, 4, 2):
        about = f"{bits}-bit weights {blocks}"
        word, size = f"weights-int{bits}-blocks", bits + (32 + bits) / 32
        found.append(Choice(word, f"int{bits}", "blocks", 32, size, about))
    for word, form, size, about in _FORMATS:
        found.append(Choice(f"weights-{word}", form, "float", 32, size, f"{about}, {stored}"))
    found += [one for word in _SPARSE if (one := _sparse_choice(word)) is not None]
    half = "16-bit floats in the file, computed in float32"
    found.append(Choice("float16", "float16", "float", 32, 16.0, half))
    return tuple(found)


_CHOICES: dict[str, Choice] = {choice.word: choice for choice in _list_choices()}

CHOICES: dict[str, str] = {word: choice.about for word, choice in _CHOICES.items()}


def parse_choice(word: str) -> Choice:
    """The choice of that word. Raises UnusableRecipe with the nearest one otherwise.

    Besides those listed, weights may be coded with any number of bits (`weights-coded0.35`) and
    have any share of zeros, or so many kept of so many (`weights-sparse0.8`,
    `weights-sparse4:8-int4`).
    """
    found = _CHOICES.get(word) or _coded_choice(word) or _sparse_choice(word)
    if found is None:
        raise UnusableRecipe(f"There is no choice {word!r}{nearest_choices(word)}.")
    return found


def is_choice(word: str) -> bool:
    """Whether there is such a choice."""
    return word in _CHOICES or _coded_choice(word) is not None or _sparse_choice(word) is not None


def size_only(word: str) -> bool:
    """Whether a choice makes the file smaller and nothing else: the runtime computes in float."""
    choice = parse_choice(word)
    rounded = choice.activation_bits == 4
    return word != "float32" and (choice.compute == "float" or rounded)


def nearest_choices(word: object) -> str:
    """Words for the end of a sentence: the choice that was meant, or some that are like it."""
    others = difflib.get_close_matches(str(word)[:200], CHOICES, 6, 0.0)
    return f"{did_you_mean(word, CHOICES)}; like it are {', '.join(others)}"
