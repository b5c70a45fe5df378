"""What types of the output head and of the embedding lose, and the gradients at the last block.

At the head the curvature is known without drawing: for a change of logits m under predictions p the
divergence is about 1/2 (E_p[m^2] - E_p[m]^2). A vocabulary may have a quarter of a million words:
logits are in memory of all words for a few tokens, or of a few words, and so are rounded rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from packlight.llm.blocks import EMBEDDING, Tensor, head_inputs, head_logits, head_name
from packlight.llm.blocks_states import States
from packlight.llm.blocks_wiring import Wiring
from packlight.llm.calibrate_losses import Change, Losses
from packlight.llm.compress_forecast import GRADIENT_TOKENS, HEAD_LOGITS, HEAD_WORDS
from packlight.llm.text import Tokens

Outer = Mapping[str, Tensor]
"""The tensors outside of blocks."""


def head_slopes(
    outer: Outer, wiring: Wiring, states: States, slopes: States, *, seed: int
) -> Tensor:
    """Write the gradients at the last block's outputs, of the log likelihood of drawn tokens.

    states: those outputs. Gives log(sum(exp(logits))) of every token, float32 [tokens].
    """
    generator = torch.Generator().manual_seed(seed)
    weight = outer[head_name(outer)]
    few = max(HEAD_LOGITS // len(weight), 1)
    # What stays is there before what is large comes and goes, or memory would fall to pieces.
    log_sums = torch.empty(states.shape[0] * states.shape[1])
    begin = 0
    for rows in states.batches(GRADIENT_TOKENS):
        with torch.enable_grad():
            x = states.read(rows).requires_grad_()
            inputs = head_inputs(outer, wiring, x)
        found = torch.empty_like(x)
        for some, slope in zip(_split(inputs.detach(), few), _split(found, few), strict=True):
            logits = head_logits(outer, wiring, some)
            own = log_sums[begin : begin + len(some)]
            torch.logsumexp(logits, -1, out=own)
            shares = (logits - own[:, None]).exp_()
            drawn = _draw(shares, generator)
            shares.neg_().scatter_add_(1, drawn, torch.ones(drawn.shape))
            slope_of_cap = _softcap_slope(logits, wiring)
            if slope_of_cap is not None:
                shares *= slope_of_cap
            torch.mm(shares, weight, out=slope)
            begin += len(some)
        slopes.write(rows, *torch.autograd.grad(inputs, x, found))
    return log_sums


def head_losses(
    outer: Outer, wiring: Wiring, states: States, log_sums: Tensor, change: Change
) -> Losses:
    """Give what each type of the head loses. log_sums: as `head_slopes` gives them."""
    name = head_name(outer)
    weight = outer[name]
    moments = _second_moments(outer, wiring, states)
    squares: Losses = {}
    means: dict[str, Tensor] = {}
    for words in _pieces(len(weight)):
        own = weight[words]
        gaps = {kind: own - near for kind, near in change(name, own, moments)}
        for kind in gaps.keys() - means.keys():
            squares[kind], means[kind] = 0.0, torch.zeros(len(log_sums), dtype=torch.float64)
        for tokens, inputs in _inputs(outer, wiring, states) if gaps else ():
            logits = head_logits(outer, wiring, inputs, words=words)
            shares = (logits - log_sums[tokens, None]).exp()
            slope_of_cap = _softcap_slope(logits, wiring)
            for kind, gap in gaps.items():
                moved = inputs @ gap.mT
                if slope_of_cap is not None:
                    moved *= slope_of_cap
                weighted = shares * moved
                means[kind][tokens] += weighted.sum(-1)
                squares[kind] += float(torch.linalg.vecdot(weighted, moved).double().sum())
    return {
        kind: 0.5 * (squares[kind] - float((mean**2).sum())) / len(log_sums)
        for kind, mean in means.items()
    }


def embedding_losses(
    outer: Outer, wiring: Wiring, tokens: Tokens, slopes: States, change: Change
) -> Losses:
    """Give what each type of the embedding loses: 1/2 E[(g^T d)^2], d the change of a token's row.

    slopes: gradients at what enters the first block. Only rows of words in the text are rounded.
    """
    used, places = np.unique(tokens, return_inverse=True)
    words, places = torch.from_numpy(used.astype(np.int64)), places.reshape(tokens.shape)
    sums: Losses = {}
    for some in _pieces(len(words)):
        own = outer[EMBEDDING][words[some]]
        for kind, near in change(EMBEDDING, own, None):
            gap = (own - near) * wiring.embedding_scale
            for rows in slopes.batches(GRADIENT_TOKENS):
                at = torch.from_numpy(places[rows] - some.start)
                mine = (at >= 0) & (at < len(gap))
                moved = (gap[at[mine]] * slopes.read(rows)[mine]).sum(-1)
                sums[kind] = sums.get(kind, 0.0) + float((moved**2).double().sum())
    return {kind: 0.5 * one / tokens.size for kind, one in sums.items()}


def _softcap_slope(logits: Tensor, wiring: Wiring) -> Tensor | None:
    """Of cap * tanh(values / cap), by what it gives; None where there is no cap."""
    cap = wiring.final_softcap
    return None if cap is None else 1 - (logits / cap) ** 2


def _draw(shares: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a word of each row of shares [n, words], by one number a row: int64 [n, 1]."""
    edges = shares.cumsum(-1)
    at = torch.rand((len(shares), 1), generator=generator) * edges[:, -1:]
    return torch.searchsorted(edges, at, right=True).clamp_(max=shares.shape[1] - 1)


def _inputs(outer: Outer, wiring: Wiring, states: States) -> Iterator[tuple[slice, Tensor]]:
    """What reaches the head, [n, width], with the places of those tokens among all."""
    begin = 0
    for rows in states.batches(GRADIENT_TOKENS):
        for inputs in (
            head_inputs(outer, wiring, states.read(rows)).flatten(0, -2).split(GRADIENT_TOKENS)
        ):
            yield slice(begin, begin + len(inputs)), inputs
            begin += len(inputs)


def _split(states: Tensor, tokens: int) -> Sequence[Tensor]:
    """Views [tokens, width] of so many tokens of [windows, length, width] at a time."""
    views: Sequence[Tensor] = states.flatten(0, -2).split(tokens)
    return views


def _second_moments(outer: Outer, wiring: Wiring, states: States) -> Tensor:
    """Of what reaches the head, E[x x^T]: float64 [width, width]."""
    moments = torch.zeros((wiring.width, wiring.width), dtype=torch.float64)
    count = 0
    for _, inputs in _inputs(outer, wiring, states):
        moments += (inputs.mT @ inputs).double()
        count += len(inputs)
    return moments / count


def _pieces(words: int) -> Iterator[slice]:
    """Rows of a matrix that are rounded to all types at a time."""
    return (slice(at, min(at + HEAD_WORDS, words)) for at in range(0, words, HEAD_WORDS))
