"""The schemes of compressed-tensors that can be written here, as data.

A scheme says how the linear layers of the blocks are stored; embeddings, output head, routers,
norms and biases stay in 16 bits. Names and arguments are those of the presets in
compressed-tensors 0.20 (quantization/quant_scheme.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from packlight.errors import WrongUsage
from packlight.maths.grids import Grid, IntegerGrid, LevelGrid
from packlight.maths.levels import E2M1, E4M3, float_levels
from packlight.maths.sparsity import Pattern
from packlight.nearest import did_you_mean

DEFAULT = "w4a16"
"""What most people serve with vLLM."""


@dataclass(frozen=True)
class Scheme:
    """How the weights of linear layers are stored.

    what: in words. format: of compressed-tensors; empty where weights are stored as they are,
    zeros included. grid: that weights are rounded to. bits: of one code. groups: sizes of groups
    of inputs that share a scale, of which the first that divides a row is taken; none: one scale
    an output. activations: how inputs of layers are rounded while the model runs. pattern, solver:
    where zeros are, and how the rest makes up for them.
    """

    name: str
    what: str
    format: str = ""
    grid: Grid | None = None
    bits: int = 16
    groups: tuple[int, ...] = ()
    activations: Mapping[str, Any] | None = None
    pattern: Pattern | None = None
    solver: Literal["refit", "sparsegpt", "wanda"] = "refit"

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        """A scheme goes to another process by its name."""
        return find_scheme, (self.name,)

    @property
    def rounds_inputs(self) -> bool:
        """Whether inputs of layers become integers, all on the step of the largest."""
        return self.activations is not None and self.activations["type"] == "int"

    def group_of(self, inputs: int) -> int | None:
        """Inputs that share a scale, in rows of so many; None where no group divides them."""
        if not self.groups:
            return inputs
        return next((size for size in self.groups if inputs % size == 0), None)


def _integers(bits: int) -> IntegerGrid:
    return IntegerGrid(bits, signed=True, symmetric=True, low=-(1 << (bits - 1)))


def _by_token(kind: str) -> Mapping[str, Any]:
    return MappingProxyType(
        {"num_bits": 8, "type": kind, "strategy": "token", "symmetric": True, "dynamic": True}
    )


_TWO_OF_FOUR, _HALF = Pattern(keep=2, of=4), Pattern(share=0.5, within="row")
_E2M1 = LevelGrid("e2m1", float_levels(E2M1))
_E4M3 = LevelGrid("e4m3", float_levels(E4M3))

_TABLE = (
    Scheme("w4a16", "4-bit integers in groups of 128 (or 32)", "pack-quantized", _integers(4), 4,
           (128, 32)),
    Scheme("w4a16-g32", "4-bit integers in groups of 32", "pack-quantized", _integers(4), 4, (32,)),
    Scheme("w8a16", "8-bit integers in groups of 128 (or 32)", "pack-quantized", _integers(8), 8,
           (128, 32)),
    Scheme("w8a8", "8-bit integers, inputs too", "int-quantized", _integers(8), 8,
           activations=_by_token("int")),
    Scheme("fp8", "8-bit floats, inputs too", "float-quantized", _E4M3, 8,
           activations=_by_token("float")),
    Scheme("nvfp4", "4-bit floats in groups of 16 (weights only)", "nvfp4-pack-quantized", _E2M1, 4,
           (16,)),
    Scheme("2:4", "two of four weights are 0", pattern=_TWO_OF_FOUR),
    Scheme("2:4-sparsegpt", "the same by SparseGPT", pattern=_TWO_OF_FOUR, solver="sparsegpt"),
    Scheme("2:4-wanda", "the same by Wanda", pattern=_TWO_OF_FOUR, solver="wanda"),
    Scheme("50%", "half of the weights are 0", pattern=_HALF),
    Scheme("50%-sparsegpt", "the same by SparseGPT", pattern=_HALF, solver="sparsegpt"),
    Scheme("50%-wanda", "the same by Wanda", pattern=_HALF, solver="wanda"),
)  # fmt: skip

SCHEMES: Mapping[str, Scheme] = MappingProxyType({one.name: one for one in _TABLE})


def find_scheme(name: str) -> Scheme:
    """The scheme of a name, in any case. Raises WrongUsage with the nearest name."""
    found = SCHEMES.get(name.strip().lower())
    if found is None:
        raise WrongUsage(
            f"There is no scheme {name!r}{did_you_mean(name, SCHEMES)}: use one of "
            f"{', '.join(SCHEMES)}."
        )
    return found
