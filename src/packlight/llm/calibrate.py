"""One block compressed on calibration windows: a group of linear layers after the other.

Each group is rounded under the second moments H = E[y y^T] of what reaches it once the groups
before it, in this block and in those before, are compressed: y. What the original gives there, x,
may be followed side by side; a layer is then first moved to where its outputs come nearest to the
original's (`Aim`), which makes up for errors made before it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from packlight.llm.blocks import Tensor, walk_block
from packlight.llm.blocks_states import States
from packlight.llm.blocks_wiring import Wiring
from packlight.llm.calibrate_passes import Block, Passes, PassesHere
from packlight.llm.calibrate_sums import Aim, Gathered, Sums
from packlight.llm.calibrate_workers import PassesElsewhere
from packlight.llm.compress_alone import Spread
from packlight.llm.compress_forecast import BATCH_TOKENS
from packlight.maths.moments import refit_to_targets

Floats: TypeAlias = NDArray[np.float32]

Solve: TypeAlias = Callable[[Mapping[str, Floats], NDArray[np.float64]], Mapping[str, Floats]]
"""Rounds weights [out, in] (or [experts, out, in]) of a block that read the same, by their names
there, under its second moments [in, in] (or [experts, in, in]), and gives what codes stand for."""

REFIT_DAMPING = 0.01


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
    batch_tokens: int = BATCH_TOKENS,
    waiting_bytes: int = 0,
    spread: Spread | None = None,
) -> dict[str, Tensor]:
    """Compress a block, and have the states pass through it.

    weights: the original's, by their names in the block. states: what the compressed blocks before
    give; replaced by what this one gives, compressed. original: likewise of the original, where
    `aim` is not "own". wanted: names of the weights to round, of which `finished` are already (a
    run that goes on). pull: towards the given weight in fitting, as a share of the inputs' power.
    waiting_bytes: see `PassesHere`. spread: over whom windows are spread, which gives the same;
    None: this process. States must then lie in files.
    Returns the block's weights as they are now. Raises UnusableModel for NaN in the states.
    """
    done = dict(finished or {})
    current = dict(weights)
    block = Block(weights, wiring, layer, states, original if aim != "own" else None, aim)
    begun = begin_passes(block, batch_tokens, waiting_bytes, spread)
    with torch.no_grad(), closing(begun) as passes:
        for names, sites in _list_groups(weights, wiring, layer, states):
            open_names = [name for name in names if name in wanted and name not in done]
            if open_names:
                some = {name: weights[name] for name in open_names}
                done |= _round(some, passes.gather(sites), solve, aim, pull)
            else:
                passes.skip(sites)
            for name in names:
                if name in done:
                    current[name] = torch.from_numpy(done[name])
                    passes.replace(name, current[name])
        passes.finish()
    return current


def begin_passes(
    block: Block,
    batch_tokens: int = BATCH_TOKENS,
    waiting_bytes: int = 0,
    spread: Spread | None = None,
) -> Passes:
    """Windows before a block's first group; see `calibrate_block`."""
    if spread is None:
        return PassesHere(block, batch_tokens, waiting_bytes)
    return PassesElsewhere(block, batch_tokens, spread)


def _list_groups(
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


def _round(
    weights: Mapping[str, Tensor], gathered: Gathered, solve: Solve, aim: Aim, pull: float
) -> Mapping[str, Floats]:
    if None in gathered:
        sums = gathered[None]
        fitted = {name: _fit(weight, sums, aim, pull) for name, weight in weights.items()}
        return solve(fitted, np.asarray(sums.own.second))
    experts, _, inputs = next(iter(weights.values())).shape
    moments = np.zeros((experts, inputs, inputs))
    for e, sums in gathered.items():
        assert e is not None
        moments[e] = sums.own.second.numpy()
    return solve({name: weight.numpy() for name, weight in weights.items()}, moments)


def _fit(weight: Tensor, sums: Sums, aim: Aim, pull: float) -> Floats:
    """The weight that comes nearest to what it aims at, from the inputs as they come now."""
    if sums.cross is None or aim == "own":
        return np.asarray(weight.numpy(), np.float32)
    targets = weight.double() @ sums.cross.second
    if sums.stream is not None:
        targets = targets + sums.stream.second
    fitted: Any = refit_to_targets(weight, targets, sums.own.second, damping=pull)
    return np.asarray(fitted.numpy(), np.float32)
