"""How much the model's predictions suffer when a tensor changes: a second-order estimate.

For a small change D of a weight, whose inputs are x and the gradients at whose outputs are g,

    KL(original, changed) ~ 1/2 E[(g^T D x)^2] ~ 1/2 tr(G D H D^T),  G = E[g g^T], H = E[x x^T]

a token, where g is the gradient of the log likelihood of tokens drawn from the model's own
predictions: its Fisher information (Amari 1998), factored as by Martens and Grosse (2015). Forwards
with every block's inputs kept, backwards from the head (`packlight.llm.calibrate_head`), a block at
a time: memory is that of one block, with its gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from packlight.llm.blocks import (
    EMBEDDING,
    Site,
    Tensor,
    embed_tokens,
    finish_walk,
    head_name,
    run_block,
    walk_block,
)
from packlight.llm.blocks_states import States
from packlight.llm.blocks_wiring import Wiring
from packlight.llm.calibrate_head import embedding_losses, head_losses, head_slopes
from packlight.llm.calibrate_losses import Change, LayerSums, Losses, weigh_layers
from packlight.llm.compress_alone import Spread
from packlight.llm.compress_forecast import GRADIENT_TOKENS, WIDEST
from packlight.llm.text import Tokens

Floats: TypeAlias = NDArray[np.float32]
Load: TypeAlias = Callable[[int | None], Mapping[str, Tensor]]
"""Gives the tensors of a block by their names in it, or with None those outside of blocks."""


def estimate_losses(
    load: Load,
    wiring: Wiring,
    tokens: Tokens,
    change: Change,
    *,
    wanted: Callable[[str], bool],
    scratch: Path | None = None,
    limit_bytes: int = 2 << 30,
    seed: int = 0,
    progress: Callable[[str], None] = lambda name: None,
    keep_slopes: Callable[[str, Floats], None] | None = None,
    spread: Spread | None = None,
) -> dict[str, Losses]:
    """Give for each wanted tensor (full name) and each type the estimated KL in nats a token.

    tokens: [windows, length]. load: see `Load`; block weights are asked for twice. wanted: says
    of a full name whether its types are asked for. keep_slopes: is given G [out, out] of each layer
    that is not of experts, where it is whole. spread: over whom layers are spread while they are
    weighed; gradients are taken in this process, of few tokens.
    """
    windows, length = tokens.shape
    losses: dict[str, Losses] = {}
    with ExitStack() as stack, torch.no_grad():

        def keep() -> States:
            return stack.enter_context(
                States(windows, length, wiring.width, scratch=scratch, limit_bytes=share)
            )

        share = limit_bytes // (wiring.layers + 2)
        # What is outside of the blocks is large, and asked for again each time it is needed.
        states = [keep()]
        outer = load(None)
        for rows in states[0].batches(GRADIENT_TOKENS):
            states[0].write(rows, embed_tokens(outer, wiring, _ids(tokens[rows])))
        del outer
        for layer in range(wiring.layers):
            weights = load(layer)
            states.append(keep())
            for rows in states[layer].batches(GRADIENT_TOKENS):
                after = run_block(weights, wiring, layer, states[layer].read(rows))
                states[layer + 1].write(rows, after)
        slopes = keep()
        outer = load(None)
        head = head_name(outer)
        log_sums = head_slopes(outer, wiring, states[-1], slopes, seed=seed)
        if wanted(head):
            losses[head] = head_losses(outer, wiring, states[-1], log_sums, change)
        del outer
        for layer in reversed(range(wiring.layers)):
            states.pop().close()
            weights = load(layer)
            sums = _backwards(weights, wiring, layer, states[layer], slopes)
            full = {f"blk.{layer}.{short}": short for short in sums}
            some = {name: weights[short] for name, short in full.items() if wanted(name)}
            named = {name: sums[short] for name, short in full.items()}
            for name, found in weigh_layers(
                some, named, windows * length, change, spread=spread, scratch=scratch
            ):
                losses[name] = found
                progress(name)
                one = named[name]
                whole = bool(one.halves) and one.halves[0].ndim == 2
                if keep_slopes is not None and whole and None in one.inputs:
                    keep_slopes(name, _agreed(one.halves, windows * length))
                one.halves.clear()
        if wanted(EMBEDDING):  # which may be the head, too
            own = losses.setdefault(EMBEDDING, {})
            for kind, loss in embedding_losses(load(None), wiring, tokens, slopes, change).items():
                own[kind] = own.get(kind, 0.0) + loss
    return losses


def _backwards(
    weights: Mapping[str, Tensor], wiring: Wiring, layer: int, states: States, slopes: States
) -> dict[str, LayerSums]:
    """Sums of the block's linear layers; slopes at its outputs become those at its inputs."""
    found: dict[str, LayerSums] = {}

    def see(name: str, outputs: Tensor) -> None:
        if outputs.requires_grad:
            outputs.register_hook(lambda slope: _add_slope(found[name], slope))

    def look(site: Site) -> None:
        inputs = site.inputs.detach().flatten(0, -2)
        products = inputs.mT @ inputs
        for name in site.names:
            own, e = found.setdefault(name, LayerSums()), site.expert
            if e not in own.inputs:
                own.inputs[e] = torch.zeros_like(products, dtype=torch.float64)
            own.inputs[e] += products  # large: nothing is copied
            own.counts[e] = own.counts.get(e, 0) + inputs.shape[0]

    for rows in states.batches(GRADIENT_TOKENS):
        with torch.enable_grad():
            x = states.read(rows).requires_grad_()
            outputs = finish_walk(walk_block(weights, wiring, layer, x, see), look)
            (slope,) = torch.autograd.grad(outputs, x, slopes.read(rows))
        slopes.write(rows, slope)
    return found


def _add_slope(sums: LayerSums, slope: Tensor) -> None:
    flat = slope.detach().flatten(0, -2)
    middle, wide = flat.shape[0] // 2, flat.shape[-1] > WIDEST
    shape = flat.shape[-1:] if wide else (flat.shape[-1], flat.shape[-1])
    if not sums.halves:
        sums.halves = [torch.zeros(shape, dtype=torch.float64) for _ in range(2)]
    for known, half in zip(sums.halves, (flat[:middle], flat[middle:]), strict=True):
        known += (half**2).sum(0) if wide else half.mT @ half  # large: nothing is copied


def _agreed(halves: Sequence[Tensor], tokens: int) -> Floats:
    """G a token, what is beside its diagonal shrunk to what both halves of the tokens agree on.

    With c the correlation of the halves there, 2 c / (1 + c) of the sum is no noise (Spearman
    1910, Brown 1910). The halves are large, and are used up.
    """
    first, second = halves
    diagonal = torch.diagonal(first) + torch.diagonal(second)
    for half in halves:
        half.fill_diagonal_(0)
    size = float(torch.linalg.norm(first) * torch.linalg.norm(second))
    found = torch.dot(first.flatten(), second.flatten())
    share = max(float(found) / size, 0.0) if size > 0 else 0.0
    first += second
    first *= 2 * share / (1 + share)
    torch.diagonal(first)[:] = diagonal
    shrunk: Floats = first.div_(tokens).float().numpy()
    return shrunk


def _ids(tokens: Tokens) -> Any:
    return torch.from_numpy(np.asarray(tokens, np.int64))


def choose_windows(tokens: Tokens, most: int) -> Tokens:
    """Evenly spread windows with at most so many tokens together, one at least."""
    count = min(max(most // tokens.shape[1], 1), len(tokens))
    picked: Sequence[int] = [(i * len(tokens)) // count for i in range(count)]
    return tokens[list(picked)]
