"""What is summed at a group of linear layers over the rows that reach it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from packlight.errors import UnusableModel
from packlight.llm.blocks import Site
from packlight.maths.moments import (
    Moments,
    add_to_cross_moments,
    add_to_moments,
    empty_moments,
    join_moments,
)

Aim: TypeAlias = Literal["own", "outputs", "stream"]
"""What a layer's outputs are fitted to: what its own weight makes of the inputs as they come now;
what the original's outputs are; or what the original's stream is after they were added to it.

    own      V y ~ W y           outputs  V y ~ W x          stream   V y ~ W x + r_x - r_y
"""


@dataclass(frozen=True)
class Sums:
    """Sums over rows of a site. own: of y y^T. cross: of x y^T. stream: of (r_x - r_y) y^T."""

    own: Moments
    cross: Moments | None = None
    stream: Moments | None = None


Gathered: TypeAlias = dict[int | None, Sums]
"""Of a group, by expert; by None where it has none."""


def add_site(found: Gathered, site: Site, other: Site | None, aim: Aim, layer: int) -> None:
    """Add what reaches a site to its expert's sums; other: the same site in the original.

    Raises UnusableModel for NaN.
    """
    try:
        found[site.expert] = _add(found.get(site.expert), site, other, aim)
    except ValueError as broken:
        raise UnusableModel(
            f"block {layer}: what reaches {', '.join(site.names)} is not usable: "
            f"{broken}; the checkpoint's weights may be damaged"
        ) from broken


def add_sums(found: Gathered, expert: int | None, more: Sums) -> None:
    """Add sums over other rows. Those of batches, one after another, give what `add_site` gives:
    a batch of at most 4,096 rows is one product.
    """
    known = found.get(expert)
    if known is not None:
        more = Sums(
            join_moments(known.own, more.own),
            _join(known.cross, more.cross),
            _join(known.stream, more.stream),
        )
    found[expert] = more


def _join(first: Moments | None, second: Moments | None) -> Moments | None:
    return first if first is None or second is None else join_moments(first, second)


def _add(sums: Sums | None, site: Site, other: Site | None, aim: Aim) -> Sums:
    y = site.inputs.flatten(0, -2)
    inputs = int(y.shape[1])
    # Experts see other tokens in the original: there is nothing to pair.
    pair = other is not None and site.expert is None
    stream = pair and aim == "stream" and site.stream is not None
    if sums is None:
        sums = Sums(
            empty_moments(inputs, like=y),
            empty_moments(inputs, like=y) if pair else None,
            empty_moments(inputs, outputs=int(site.stream.shape[-1]), like=y)
            if stream and site.stream is not None
            else None,
        )
    sums = replace(sums, own=add_to_moments(sums.own, y))
    if sums.cross is not None and other is not None:
        x = other.inputs.flatten(0, -2)
        sums = replace(sums, cross=add_to_cross_moments(sums.cross, x, y))
        if sums.stream is not None and site.stream is not None and other.stream is not None:
            gap = (other.stream - site.stream).flatten(0, -2)
            sums = replace(sums, stream=add_to_cross_moments(sums.stream, gap, y))
    return sums
