"""What blocks are worth, measured, and the refit of those that stay: the part that sees text.

A gap is bridged by the down-projection of the block before it. With r the stream that its outputs
W h are added to, and t the original's stream behind the gap,

    W' = argmin E|t - r - W' h|^2 + l |W' - W|^2,

in closed form from second moments, block after block, each seeing what those before it now give.
(Fitting the blocks behind a gap too, each to the original's stream behind it, brought nothing on a
Llama of six blocks.)
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from packlight.llm.blocks import (
    Tensor,
    Weights,
    embed_tokens,
    head_inputs,
    head_logits,
    run_block,
    walk_block,
)
from packlight.llm.blocks_states import States, pass_states
from packlight.llm.blocks_wiring import Wiring, read_wiring
from packlight.llm.calibrate_curvature import choose_windows
from packlight.llm.checkpoint import Checkpoint
from packlight.llm.compress_blocks import load_weights
from packlight.llm.compress_forecast import HEAD_LOGITS
from packlight.llm.depth_plan import DepthForecast, RemovedBlock
from packlight.llm.rounding import Floats, Settings
from packlight.llm.text import Tokens
from packlight.maths.moments import (
    add_to_cross_moments,
    add_to_moments,
    empty_moments,
    refit_to_targets,
)
from packlight.progress import Progress

DOWN = "ffn_down.weight"

DAMPING = 0.1
"""Pull towards the given weight, as a share of the power of what reaches it."""


class _Run:
    """A checkpoint with windows that pass through its blocks."""

    def __init__(
        self, checkpoint: Checkpoint, tokens: Tokens, settings: Settings, scratch: Path
    ) -> None:
        self.checkpoint, self.tokens = checkpoint, tokens
        self.wiring: Wiring = read_wiring(checkpoint)
        self._settings, self._scratch = settings, scratch

    def begin(self, stack: ExitStack, streams: int) -> States:
        """The windows as they enter the first block; `streams`: that share the memory."""
        windows, length = self.tokens.shape
        states = stack.enter_context(
            States(
                windows,
                length,
                self.wiring.width,
                scratch=self._scratch,
                limit_bytes=self._settings.states_bytes // streams,
            )
        )
        outer = load_weights(self.checkpoint, None)
        for rows in states.batches():
            ids = torch.from_numpy(np.asarray(self.tokens[rows], np.int64))
            states.write(rows, embed_tokens(outer, self.wiring, ids))
        return states

    def load(self, layer: int) -> dict[str, Tensor]:
        return load_weights(self.checkpoint, layer)


def choose(
    checkpoint: Checkpoint,
    tokens: Tokens,
    count: int,
    forecast: DepthForecast,
    settings: Settings,
    scratch: Path,
    progress: Progress,
) -> tuple[RemovedBlock, ...]:
    """The blocks to remove, in order: by divergence or, where that takes too long, influence."""
    some = choose_windows(tokens, forecast.tokens)
    influences = measure_influences(checkpoint, some, settings, scratch)
    if forecast.measured:
        found = choose_by_divergence(checkpoint, some, count, settings, scratch, progress)
        return tuple(RemovedBlock(number, influences[number], kl) for number, kl in found)
    order = sorted(range(len(influences)), key=lambda number: influences[number])
    return tuple(RemovedBlock(number, influences[number]) for number in order[:count])


def measure_influences(
    checkpoint: Checkpoint, tokens: Tokens, settings: Settings, scratch: Path
) -> tuple[float, ...]:
    """Give each block's influence, 1 - E[cos(x, f(x))], x and f(x) the stream before and behind it
    (Men et al. 2024, ShortGPT, equation 1). tokens: [windows, length].
    """
    run = _Run(checkpoint, tokens, settings, scratch)
    found = []
    with ExitStack() as stack, torch.no_grad():
        states = run.begin(stack, 1)
        for layer in range(run.wiring.layers):
            weights, total = run.load(layer), 0.0
            for rows in states.batches():
                x = states.read(rows)
                y = run_block(weights, run.wiring, layer, x)
                total += float(F.cosine_similarity(x, y, dim=-1).double().sum())
                states.write(rows, y)
            found.append(1 - total / tokens.size)
    return tuple(found)


def choose_by_divergence(
    checkpoint: Checkpoint,
    tokens: Tokens,
    count: int,
    settings: Settings,
    scratch: Path,
    progress: Progress,
) -> Iterator[tuple[int, float]]:
    """Yield the blocks to remove, one after another, with the divergence that is then measured.

    Each is the one without which, and without those that went before it, the mean KL divergence of
    the next token's probabilities to the original is least, in nats a token. Blocks of equal
    divergence go from the last one on. tokens: [windows, length].
    """
    run = _Run(checkpoint, tokens, settings, scratch)
    kept = list(range(run.wiring.layers))
    with ExitStack() as all_rounds, torch.no_grad():
        original = run.begin(all_rounds, len(kept) + 2)
        for layer in kept:
            pass_states(run.load(layer), run.wiring, layer, original)
        for _ in range(count):
            progress.stage("measuring what blocks are worth", len(kept))
            with ExitStack() as stack:
                streams = _run_without_each(run, kept, stack, progress)
                losses = _divergences(run, original, streams)
            chosen = min(reversed(kept), key=lambda layer: losses[layer])
            kept.remove(chosen)
            yield chosen, losses[chosen]


def compare_streams(
    checkpoint: Checkpoint,
    others: Sequence[Checkpoint],
    tokens: Tokens,
    settings: Settings,
    scratch: Path,
) -> list[float]:
    """Give the mean KL divergence of each of the others to the checkpoint, in nats a token."""
    with ExitStack() as stack, torch.no_grad():
        streams = []
        for one in (checkpoint, *others):
            run = _Run(one, tokens, settings, scratch)
            states = run.begin(stack, 1 + len(others))
            for layer in range(run.wiring.layers):
                pass_states(run.load(layer), run.wiring, layer, states)
            streams.append(states)
        found = _divergences(run, streams[0], dict(enumerate(streams[1:])))
    return [found[number] for number in range(len(others))]


def _run_without_each(
    run: _Run, kept: Sequence[int], stack: ExitStack, progress: Progress
) -> dict[int, States]:
    """The last block's outputs without each of the blocks; every block is loaded once."""
    share = len(kept) + 2
    whole = run.begin(stack, share)
    streams: dict[int, States] = {}
    for layer in kept:
        weights = run.load(layer)
        for other in streams.values():
            pass_states(weights, run.wiring, layer, other)
        streams[layer] = run.begin(stack, share)
        for rows in whole.batches():
            x = whole.read(rows)
            streams[layer].write(rows, x)
            whole.write(rows, run_block(weights, run.wiring, layer, x))
        progress.step(f"block {layer}")
    return streams


def _divergences(run: _Run, original: States, others: dict[int, States]) -> dict[int, float]:
    """Mean KL(original || other) of the next token's probabilities, for each of the streams."""
    outer = load_weights(run.checkpoint, None)
    sums = dict.fromkeys(others, 0.0)
    step = max(1, HEAD_LOGITS // run.checkpoint.config.vocabulary)

    def predict(states: Tensor) -> Tensor:
        logits = head_logits(outer, run.wiring, head_inputs(outer, run.wiring, states))
        return torch.log_softmax(logits, dim=-1)

    for window in range(len(run.tokens)):
        rows = slice(window, window + 1)
        first = original.read(rows)[0]
        streams = {layer: states.read(rows)[0] for layer, states in others.items()}
        for at in range(0, len(first), step):
            p = predict(first[at : at + step])
            share = p.exp()
            for layer, states in streams.items():
                # Summed as `sum (q - p - p d)`, whose terms are not negative.
                d = predict(states[at : at + step]) - p
                sums[layer] += float((share * (d.exp() - 1 - d)).double().sum())
    return {layer: total / run.tokens.size for layer, total in sums.items()}


def refit_outputs(
    checkpoint: Checkpoint,
    tokens: Tokens,
    removed: Collection[int],
    settings: Settings,
    scratch: Path,
    progress: Progress,
) -> Iterator[tuple[str, Floats]]:
    """Yield tensors, by their names in the checkpoint, that stand in for the removed blocks.

    Of each block before a gap the down-projection, of which no expert has its own; where the first
    blocks went, that of the first one that stays. tokens: [windows, length].
    """
    run = _Run(checkpoint, tokens, settings, scratch)
    kept = [layer for layer in range(run.wiring.layers) if layer not in removed]
    begins = [0, *kept[1:]]
    ends = [*kept[1:], run.wiring.layers]
    left = sum(end - begin > 1 for begin, end in zip(begins, ends, strict=True))
    progress.stage("refitting what stays", left)
    with ExitStack() as stack, torch.no_grad():
        states, original = run.begin(stack, 2), run.begin(stack, 2)
        for layer, begin, end in zip(kept, begins, ends, strict=True):
            if not left:
                break
            for one in range(begin, end):
                pass_states(run.load(one), run.wiring, one, original)
            weights = run.load(layer)
            if end - begin > 1:
                if DOWN in weights:
                    fitted = refit_output(weights, run.wiring, layer, states, original, DOWN)
                    weights[DOWN] = fitted
                    yield f"blk.{layer}.{DOWN}", fitted.numpy()
                left -= 1
                progress.step(f"block {layer}")
            pass_states(weights, run.wiring, layer, states)


def refit_output(
    weights: Weights,
    wiring: Wiring,
    layer: int,
    states: States,
    targets: States,
    name: str,
    damping: float = DAMPING,
) -> Tensor:
    """Give the output projection with which the stream behind it comes nearest to the targets.

    states: what enters the block. targets: streams [windows, length, width]. name: of a weight
    [width, in] whose outputs are added to the stream with nothing between but its bias.
    """
    weight = weights[name]
    bias = weights.get(name.removesuffix("weight") + "bias", 0.0)
    own = empty_moments(weight.shape[1], like=weight)
    aims = empty_moments(weight.shape[1], outputs=weight.shape[0], like=weight)
    for rows in states.batches():
        for site in walk_block(weights, wiring, layer, states.read(rows)):
            if site.names == (name,) and site.stream is not None:
                h = site.inputs.flatten(0, -2)
                gap = targets.read(rows) - site.stream - bias
                own = add_to_moments(own, h)
                aims = add_to_cross_moments(aims, gap.flatten(0, -2), h)
    fitted = refit_to_targets(weight, aims.second, own.second, damping=damping)
    return fitted.to(weight.dtype)
