"""Which decoder blocks go, and what stands in for them: depth pruning, before anything is rounded.

    checkpoint + text -> blocks that are missed least -> what stays refitted -> a smaller checkpoint

What a block is worth is how far the next token's probabilities move without it, measured on
calibration windows for every block that is left, one removal after another. Where a model is too
large for so many passes, block influence says it, from one. A killed run goes on with what it had
found out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from packlight.errors import WrongUsage
from packlight.llm.checkpoint import Checkpoint
from packlight.llm.checkpoint.shorten import check_alike, drop_blocks
from packlight.llm.compress_forecast import FLOPS
from packlight.llm.depth_plan import (
    DepthForecast,
    Plan,
    RemovedBlock,
    keep_plan,
    read_plan,
    write_tensors,
)
from packlight.llm.rounding import Settings, check_torch
from packlight.llm.text import Windows
from packlight.progress import SILENT, Progress
from packlight.version import __version__

TOKENS, FEWEST_TOKENS = 8192, 2048
"""Tokens that the worth of blocks is measured on, and how few do where a model is large."""

MOST_WORK = 4e14
"""Multiplications and additions that measuring may take, some hours on two cores; beyond,
influence decides."""


@dataclass(frozen=True)
class Shortened:
    """A checkpoint with fewer blocks. removed: in the order in which they went. refitted: tensors
    that make up for them, by their names in the original.
    """

    checkpoint: Checkpoint
    removed: tuple[RemovedBlock, ...] = ()
    refitted: tuple[str, ...] = ()


def count_removed(checkpoint: Checkpoint, share: float) -> int:
    """How many blocks come nearest to a share of their weights, at least one of them staying.

    Raises UnusableModel where blocks are not alike, WrongUsage where it is less than half a block.
    """
    check_alike(checkpoint)
    layers = checkpoint.config.layers
    count = min(int(share * layers + 0.5), layers - 1)
    if count < 1:
        raise WrongUsage(
            f"--prune {share:.3g}: the model has {layers} blocks, of which so small a share is "
            f"less than half a one; give at least {50 / layers:.0f}%, or leave it out."
            if layers > 1
            else f"--prune {share:.3g}: the model has one block, which must stay; leave it out."
        )
    return count


def forecast_depth(checkpoint: Checkpoint, count: int) -> DepthForecast:
    """Every round tries all blocks that are left: about layers^2 / 2 passes for each removal."""
    layers = checkpoint.config.layers
    block = sum(
        info.weights for name, info in checkpoint.tensors.items() if checkpoint.block_of(name) == 0
    )
    passes = sum((layers - gone) * (layers - gone + 1) // 2 for gone in range(count))
    tokens = TOKENS
    while tokens >= FEWEST_TOKENS and 2.0 * passes * block * tokens > MOST_WORK:
        tokens //= 2
    measured = tokens >= FEWEST_TOKENS
    if not measured:
        passes, tokens = layers, TOKENS
    return DepthForecast(passes, tokens, measured, 2.0 * passes * block * tokens / FLOPS)


def shorten_checkpoint(
    checkpoint: Checkpoint,
    windows: Windows,
    folder: Path,
    *,
    count: int = 0,
    removed: Sequence[int] | None = None,
    settings: Settings | None = None,
    progress: Progress = SILENT,
) -> Shortened:
    """Remove the blocks that are missed least, and refit what stays to the original.

    count: how many. removed: these instead, as a recipe has them. folder: where what was found out
    is kept, and the refitted tensors for as long as the result is read.
    Raises UnusableModel where blocks are not alike, UnusableOutput, MissingExtra (PyTorch),
    WrongUsage for blocks that are not there.
    """
    check_torch()
    check_alike(checkpoint)
    settings = settings or Settings()
    layers = checkpoint.config.layers
    if removed is not None and not set(removed) < set(range(layers)):
        raise WrongUsage(
            f"The recipe removes the blocks {', '.join(map(str, removed))}, and the model has "
            f"0 to {layers - 1}, of which one must stay: it is the recipe of another model."
        )
    key = _key(checkpoint, windows, count, removed)
    plan = read_plan(folder, key)
    if plan is None:
        plan = _make_plan(checkpoint, windows, folder, count, removed, settings, progress, key)
    small = drop_blocks(
        checkpoint,
        [one.number for one in plan.removed],
        replaced=plan.tensors,
        mark=plan.digest,
    )
    return Shortened(small, plan.removed, tuple(plan.tensors))


def _make_plan(
    checkpoint: Checkpoint,
    windows: Windows,
    folder: Path,
    count: int,
    removed: Sequence[int] | None,
    settings: Settings,
    progress: Progress,
    key: str,
) -> Plan:
    from packlight.llm import blocks_depth

    if removed is not None:
        blocks = tuple(RemovedBlock(number) for number in removed)
    else:
        blocks = blocks_depth.choose(
            checkpoint,
            windows.calibration,
            count,
            forecast_depth(checkpoint, count),
            settings,
            folder,
            progress,
        )
    gone = frozenset(one.number for one in blocks)
    tensors = blocks_depth.refit_outputs(
        checkpoint, windows.calibration, gone, settings, folder, progress
    )
    plan = write_tensors(folder, blocks, tensors)
    if plan.tensors and not _helps(checkpoint, plan, windows, settings, folder):
        plan = write_tensors(folder, blocks, ())
    keep_plan(folder, key, plan)
    return plan


def _helps(
    checkpoint: Checkpoint, plan: Plan, windows: Windows, settings: Settings, folder: Path
) -> bool:
    """Whether the refit lowers the divergence on other text: one to few tokens may not."""
    from packlight.llm.blocks_depth import compare_streams

    gone = [one.number for one in plan.removed]
    without, fitted = compare_streams(
        checkpoint,
        [drop_blocks(checkpoint, gone, replaced=found) for found in ({}, plan.tensors)],
        windows.search,
        settings,
        folder,
    )
    return fitted < without


def _key(
    checkpoint: Checkpoint, windows: Windows, count: int, removed: Sequence[int] | None
) -> str:
    """What the blocks chosen and the tensors refitted depend on."""
    said = [__version__, checkpoint.fingerprint, windows.fingerprint, count, removed and [*removed]]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()
