"""How a layer is taken apart into two thinner ones, and the words for it in a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

FactorKind: TypeAlias = Literal["matrix", "channel", "spatial"]
KINDS: tuple[FactorKind, ...] = get_args(FactorKind)


@dataclass(frozen=True)
class Rank:
    """Two layers in the place of one.

    kind: "matrix" for Gemm and MatMul; for Conv "channel" (the kernel with fewer outputs, then
    1 x 1; Zhang et al. 2015) or "spatial" (k x 1, then 1 x k; Jaderberg et al. 2014).
    rank: what passes between the parts.
    """

    kind: FactorKind
    rank: int

    @property
    def word(self) -> str:
        """As a recipe says it: "spatial 12"."""
        return f"{self.kind} {self.rank}"


def parse_rank(text: object) -> Rank | None:
    """The rank that a recipe names: "matrix 64", "channel 16", "spatial 12"; None for others."""
    words = text.split() if isinstance(text, str) else []
    if len(words) != 2 or not (words[1].isascii() and words[1].isdigit()) or int(words[1]) < 1:
        return None
    for kind in KINDS:
        if words[0] == kind:
            return Rank(kind, int(words[1]))
    return None
