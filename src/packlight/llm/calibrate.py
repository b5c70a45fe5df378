"""One block compressed on calibration windows: a group of linear layers after the other.

Each group is rounded under the second moments H = E[y y^T] of what reaches it once the groups
before it, in this block and in those before, are compressed: y. What the original gives there, x,
may be followed side by side; a layer is then first moved to where its outputs come nearest to the
original's (`Aim`), which makes up for errors made before it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from packlight.errors import UnusableModel
from packlight.llm.blocks import Site, Tensor, Walk, finish_walk, walk_block
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
    waiting_bytes: int = 0,
) -> dict[str, Tensor]:
    """Compress a block, and have the states pass through it.

    weights: the original's, by their names in the block. states: what the compressed blocks before
    give; replaced by what this one gives, compressed. original: likewise of the original, where
    `aim` is not "own". wanted: names of the weights to round, of which `finished` are already (a
    run that goes on). pull: towards the given weight in fitting, as a share of the inputs' power.
    waiting_bytes: windows that this has room for are computed once, from group to group; the others
    from the block's beginning for each group, which gives the same.
    Returns the block's weights as they are now. Raises UnusableModel for NaN in the states.
    """
    done = dict(finished or {})
    current = dict(weights)
    followed = original if aim != "own" else None
    with torch.no_grad():
        groups = _list_sites(weights, wiring, layer, states)

        def begin(rows: slice) -> tuple[Walk, Walk | None]:
            """The block on some windows, and the original's beside it, before the first group."""
            beside = None
            if followed is not None:
                beside = walk_block(weights, wiring, layer, followed.read(rows))
            return walk_block(current, wiring, layer, states.read(rows)), beside

        batches = list(states.batches(batch_tokens))
        each = batches[0].stop * states.shape[1] * bytes_of_walk(weights, wiring.width)
        most = waiting_bytes // (each * (1 if followed is None else 2))
        waiting = {number: begin(rows) for number, rows in enumerate(batches[:most])}
        passed = 0
        for names, count in groups:
            open_names = [name for name in names if name in wanted and name not in done]
            gathered: dict[int | None, _Gathered] = {}
            for number, rows in enumerate(batches):
                if number not in waiting and not open_names:
                    continue
                walk, beside = waiting.get(number) or begin(rows)
                skipped = 0 if number in waiting else passed
                for place in range(skipped + count):
                    site, other = next(walk), next(beside) if beside is not None else None
                    if place >= skipped and open_names:
                        _gather(gathered, site, other, aim, layer)
            passed += count
            for name in names:
                if name in open_names:
                    done[name] = _round(name, weights[name], gathered, solve, aim, pull)
                if name in done:
                    current[name] = torch.from_numpy(done[name])
        for number, rows in enumerate(batches):
            walk, beside = waiting.pop(number) if number in waiting else begin(rows)
            states.write(rows, finish_walk(walk))
            if followed is not None and beside is not None:
                followed.write(rows, finish_walk(beside))
    return current


def bytes_of_walk(weights: Mapping[str, Tensor], width: int) -> int:
    """Bytes, rather too many, that a walk of a block holds for each token while it waits."""
    widest = max((int(one.shape[-1]) for one in weights.values()), default=width)
    return 4 * (3 * width + 2 * widest)


def _list_sites(
    weights: Mapping[str, Tensor], wiring: Wiring, layer: int, states: States
) -> list[tuple[tuple[str, ...], int]]:
    """The groups of linear layers of a block, in the order in which they are computed.

    Each with the number of its sites: of experts there is one for every one, all in a row.
    """
    few = states.read(slice(0, 1))[:, :2]
    found: dict[tuple[str, ...], int] = {}
    for site in walk_block(weights, wiring, layer, few):
        found[site.names] = found.get(site.names, 0) + 1
    return list(found.items())


def _gather(
    found: dict[int | None, _Gathered], site: Site, other: Site | None, aim: Aim, layer: int
) -> None:
    """Add what reaches a site to its expert's sums."""
    try:
        found[site.expert] = _add(found.get(site.expert), site, other, aim)
    except ValueError as broken:
        raise UnusableModel(
            f"block {layer}: what reaches {', '.join(site.names)} is not usable: "
            f"{broken}; the checkpoint's weights may be damaged"
        ) from broken


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
