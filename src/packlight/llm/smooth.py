"""Activations made easier to round by what stands before them: SmoothQuant, by powers of two.

Where a runtime rounds what reaches a layer to integers, one channel that is far above the others
takes the digits of all. Divided by s in the norm before, and multiplied in the layers that read it,
it says the same (Xiao et al. 2023, section 4); so it does with what `ffn_up`, whose rows have steps
of their own, gives a gate to multiply and `ffn_down` to read. Powers of two are exact in any float.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from packlight.errors import UnusableModel
from packlight.llm.blocks import (
    Site,
    Tensor,
    embed_tokens,
    finish_walk,
    run_block,
    walk_block,
)
from packlight.llm.blocks_states import States
from packlight.llm.blocks_wiring import Wiring, read_wiring
from packlight.llm.calibrate_curvature import choose_windows
from packlight.llm.checkpoint import Checkpoint
from packlight.llm.checkpoint.parts import Scales
from packlight.llm.checkpoint.scaled import scale_tensors
from packlight.llm.compress_blocks import load_weights
from packlight.llm.text import Windows
from packlight.maths.balance import search_token_smoothing
from packlight.progress import SILENT, Progress

READERS = {
    "attn_norm": ("attn_q", "attn_k", "attn_v", "attn_qkv"),
    "ffn_norm": (
        *("ffn_gate", "ffn_up", "ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps"),
        *("ffn_gate_shexp", "ffn_up_shexp", "ffn_gate_inp_shexp"),
    ),
    "ffn_up": ("ffn_down",),
}
"""What reads the outputs of a norm, or of a layer that a gate multiplies."""

TOKENS = 8192
"""Tokens of the calibration text that activations are seen of."""

ROWS = 2048
"""Of them, tokens that the scales of a norm are searched with."""

GAIN = 0.9
"""Share of the error without scales that may be left at most, or nothing is touched."""

AGREES = 1e-3
"""How far a block's outputs may be from what they were, relative to what the block adds."""


def smooth_inputs(
    checkpoint: Checkpoint, windows: Windows, *, scratch: Path, progress: Progress = SILENT
) -> Checkpoint:
    """Give the checkpoint with what stands before layers and the layers scaled, where it is of use.

    The function of each block is held against the original's: where it is another, the block
    stays as it was. Norms that are stored as their difference from 1 (Gemma) do too, since powers
    of two are not exact there.
    """
    wiring = read_wiring(checkpoint)
    tokens = choose_windows(windows.calibration, TOKENS)
    scales: dict[str, Scales] = {}
    groups = 0
    progress.stage("smoothing activations", wiring.layers)
    with (
        torch.no_grad(),
        States(len(tokens), tokens.shape[1], wiring.width, scratch=scratch) as states,
    ):
        outer = load_weights(checkpoint, None)
        for rows in states.batches():
            ids = torch.from_numpy(np.asarray(tokens[rows], np.int64))
            states.write(rows, embed_tokens(outer, wiring, ids))
        del outer
        for layer in range(wiring.layers):
            weights = load_weights(checkpoint, layer)
            few = states.read(slice(0, 1))
            seen = _pass_block(weights, wiring, layer, states)
            found: dict[str, Scales] = {}
            for name, one in _smooth_block(checkpoint, weights, layer, seen):
                found[name] = found[name].also(one) if name in found else one
            if found and _agree(weights, found, wiring, layer, few):
                scales |= {f"blk.{layer}.{name}": by for name, by in found.items()}
                groups += sum(f"{first}.weight" in found for first in READERS)
            progress.step(f"block {layer}")
    if not scales:
        return checkpoint
    note = (
        f"what reaches {groups} groups of layers is divided by powers of two before, by which "
        "their weights were multiplied (SmoothQuant): the function is the same, and activations "
        "lose less in 8 bits"
    )
    return scale_tensors(checkpoint, scales, note)


def _pass_block(
    weights: Mapping[str, Tensor], wiring: Wiring, layer: int, states: States
) -> dict[str, list[Tensor]]:
    """What reaches the readers of each norm or layer; states become those after the block."""
    seen: dict[str, list[Tensor]] = {}

    def look(site: Site) -> None:
        for first, readers in READERS.items():
            if site.names[0].removesuffix(".weight") in readers:
                seen.setdefault(first, []).append(site.inputs.flatten(0, -2))

    for rows in states.batches():
        walk = walk_block(weights, wiring, layer, states.read(rows))
        states.write(rows, finish_walk(walk, look))
    return seen


def _smooth_block(
    checkpoint: Checkpoint,
    weights: Mapping[str, Tensor],
    layer: int,
    seen: Mapping[str, list[Tensor]],
) -> Iterator[tuple[str, Scales]]:
    """What tensors of a block are to be multiplied by, by their names in it."""
    for first, some in seen.items():
        x = torch.cat(some)
        names = sorted({f"{name}.weight" for name in READERS[first]} & set(weights))
        part = checkpoint.parts.get(f"blk.{layer}.{first}.weight")
        if part is None or part.change == "plus_one":
            continue
        layers = [weights[name].reshape(-1, x.shape[1]).numpy() for name in names]
        try:
            found = search_token_smoothing(layers, x[:: max(len(x) // ROWS, 1)].numpy())
        except ValueError as broken:
            raise UnusableModel(
                f"block {layer}: what reaches {', '.join(names)} is not usable: {broken}; the "
                "checkpoint's weights may be damaged"
            ) from broken
        if found.error > GAIN * found.error_without:
            continue
        scales = np.asarray(found.scales, np.float32)
        before = _divided(weights, first, scales)
        if before:
            yield from before.items()
            yield from ((name, Scales(scales)) for name in names)


def _divided(
    weights: Mapping[str, Tensor], first: str, scales: NDArray[np.float32]
) -> dict[str, Scales]:
    """What divides by scales what the first of a pair gives; nothing where that cannot be."""
    names = [name for name in (f"{first}.weight", f"{first}.bias") if name in weights]
    inverse = (1 / scales).astype(np.float32)
    if first != "ffn_up":
        return {name: Scales(inverse) for name in names}
    rows, gated = len(weights["ffn_up.weight"]), "ffn_gate.weight" in weights
    if rows == 2 * len(inverse):  # gate and up in one
        inverse, gated = np.concatenate([np.ones_like(inverse), inverse]), True
    if not gated:
        return {}
    return {
        name: Scales(outputs=inverse) if name.endswith("weight") else Scales(inverse)
        for name in names
    }


def _agree(
    weights: Mapping[str, Tensor],
    scales: Mapping[str, Scales],
    wiring: Wiring,
    layer: int,
    states: Tensor,
) -> bool:
    """Whether the block still does what it did."""
    scaled = {
        name: _scaled(one, scales[name]) if name in scales else one for name, one in weights.items()
    }
    before, after = (run_block(one, wiring, layer, states) for one in (weights, scaled))
    return bool(torch.linalg.norm(after - before) <= AGREES * torch.linalg.norm(before - states))


def _scaled(weight: Tensor, scales: Scales) -> Tensor:
    rows = weight.reshape(-1, weight.shape[-1])
    return torch.from_numpy(scales.of_rows(rows.numpy(), 0, len(rows))).reshape(weight.shape)
