"""One block compressed on calibration windows: a group of linear layers after the other.

Each group is rounded under the second moments H = E[y y^T] of what reaches it once the groups
before it, in this block and in those before, are compressed: y. What the original gives there, x,
may be followed side by side; a layer is then first moved to where its outputs come nearest to the
original's (`Aim`), which makes up for errors made before it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from packlight.errors import UnusableModel
from packlight.llm.blocks import Site, Tensor, Walk, run_block, walk_block
from packlight.llm.blocks_states import States
from packlight.llm.blocks_wiring import Wiring
from packlight.maths.moments import (
    Moments,
    add_to_cross_moments,
    add_to_moments,
    empty_moments,
    refit_to_targets,
)

Floats: TypeAlias = NDArray[np.float32]

Solve: TypeAlias = Callable[[str, Floats, NDArray[np.float64] | None], Floats]
"""Rounds a weight [out, in] (or [experts, out, in]) of a block, by its name there, under second
moments [in, in] (or [experts, in, in]), and gives what its codes stand for."""

Aim: TypeAlias = Literal["own", "outputs", "stream"]
"""What a layer's outputs are fitted to: what its own weight makes of the inputs as they come now;
what the original's outputs are; or what the original's stream is after they were added to it.

    own      V y ~ W y           outputs  V y ~ W x          stream   V y ~ W x + r_x - r_y
"""

REFIT_DAMPING = 0.01


@dataclass(frozen=True)
class _Gathered:
    """Sums over rows of a site. own: of y y^T. cross: of x y^T. stream: of (r_x - r_y) y^T."""

    own: Moments
    cross: Moments | None = None
    stream: Moments | None = None


def calibrate_block(
    weights: Mapping[str, Tensor],
    wiring: Wiring,
    layer: int,
    states: States,
    original: States | None,
    solve: Solve,
    *,
    wanted: Collection[str],
    finished: Mapping[str, Floats] | None = None,
    aim: Aim = "own",
    pull: float = REFIT_DAMPING,
    batch_tokens: int = 4096,
) -> dict[str, Tensor]:
    """Compress a block, and have the states pass through it.

    weights: the original's, by their names in the block. states: what the compressed blocks before
    give; replaced by what this one gives, compressed. original: likewise of the original, where
    `aim` is not "own". wanted: names of the weights to round, of which `finished` are already (a
    run that goes on). pull: towards the given weight in fitting, as a share of the inputs' power.
    Returns the block's weights as they are now. Raises UnusableModel for NaN in the states.
    """
    done = dict(finished or {})
    current = dict(weights)
    with torch.no_grad():
        for names in _list_sites(weights, wiring, layer, states):
            open_names = [name for name in names if name in wanted and name not in done]
            gathered: dict[int | None, _Gathered] = {}
            if open_names:
                gathered = _gather(
                    weights, current, wiring, layer, states, original, names, aim, batch_tokens
                )
            for name in names:
                if name in open_names:
                    done[name] = _round(name, weights[name], gathered, solve, aim, pull)
                if name in done:
                    current[name] = torch.from_numpy(done[name])
        pass_states(current, wiring, layer, states, batch_tokens)
        if original is not None:
            pass_states(weights, wiring, layer, original, batch_tokens)
    return current


def pass_states(
    weights: Mapping[str, Tensor],
    wiring: Wiring,
    layer: int,
    states: States,
    batch_tokens: int = 4096,
) -> None:
    """Replace states by what a block makes of them."""
    with torch.no_grad():
        for rows in states.batches(batch_tokens):
            states.write(rows, run_block(weights, wiring, layer, states.read(rows)))


def _list_sites(
    weights: Mapping[str, Tensor], wiring: Wiring, layer: int, states: States
) -> list[tuple[str, ...]]:
    """The groups of linear layers of a block, in the order in which they are computed."""
    few = states.read(slice(0, 1))[:, :2]
    found: dict[tuple[str, ...], None] = {}
    for site in _sites(walk_block(weights, wiring, layer, few)):
        found.setdefault(site.names)
    return list(found)


def _sites(walk: Walk) -> Iterator[Site]:
    yield from walk


def _gather(
    weights: Mapping[str, Tensor],
    current: Mapping[str, Tensor],
    wiring: Wiring,
    layer: int,
    states: States,
    original: States | None,
    names: tuple[str, ...],
    aim: Aim,
    batch_tokens: int,
) -> dict[int | None, _Gathered]:
    """Second moments of what reaches one group, by expert."""
    found: dict[int | None, _Gathered] = {}
    for rows in states.batches(batch_tokens):
        with ExitStack() as stack:
            walk = walk_block(current, wiring, layer, states.read(rows))
            stack.callback(walk.close)
            beside = None
            if original is not None and aim != "own":
                beside = walk_block(weights, wiring, layer, original.read(rows))
                stack.callback(beside.close)
            seen = False
            for site in walk:
                other = next(beside) if beside is not None else None
                if site.names == names:
                    seen = True
                    try:
                        found[site.expert] = _add(found.get(site.expert), site, other, aim)
                    except ValueError as broken:
                        raise UnusableModel(
                            f"block {layer}: what reaches {', '.join(names)} is not usable: "
                            f"{broken}; the checkpoint's weights may be damaged"
                        ) from broken
                elif seen:
                    break
    return found


def _add(sums: _Gathered | None, site: Site, other: Site | None, aim: Aim) -> _Gathered:
    y = site.inputs.flatten(0, -2)
    inputs = int(y.shape[1])
    # Experts see other tokens in the original: there is nothing to pair.
    pair = other is not None and site.expert is None
    stream = pair and aim == "stream" and site.stream is not None
    if sums is None:
        sums = _Gathered(
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


def _round(
    name: str,
    weight: Tensor,
    gathered: Mapping[int | None, _Gathered],
    solve: Solve,
    aim: Aim,
    pull: float,
) -> Floats:
    if None in gathered:
        sums = gathered[None]
        return solve(name, _fit(weight, sums, aim, pull), np.asarray(sums.own.second))
    experts, inputs = int(weight.shape[0]), int(weight.shape[-1])
    moments = np.zeros((experts, inputs, inputs))
    for e in range(experts):
        if e in gathered:
            moments[e] = gathered[e].own.second.numpy()
    return solve(name, weight.numpy(), moments)


def _fit(weight: Tensor, sums: _Gathered, aim: Aim, pull: float) -> Floats:
    """The weight that comes nearest to what it aims at, from the inputs as they come now."""
    if sums.cross is None or aim == "own":
        return np.asarray(weight.numpy(), np.float32)
    targets = weight.double() @ sums.cross.second
    if sums.stream is not None:
        targets = targets + sums.stream.second
    fitted: Any = refit_to_targets(weight, targets, sums.own.second, damping=pull)
    return np.asarray(fitted.numpy(), np.float32)
