"""The part of a compression that sees text: types weighed, and block after block rounded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from packlight.llm.blocks import EMBEDDING, HEAD, Tensor, embed_tokens, head_inputs
from packlight.llm.blocks_states import States
from packlight.llm.blocks_wiring import Wiring, read_wiring
from packlight.llm.calibrate import begin_passes, calibrate_block
from packlight.llm.calibrate_curvature import choose_windows, estimate_losses
from packlight.llm.calibrate_outputs import SlopeStore
from packlight.llm.calibrate_passes import Block
from packlight.llm.checkpoint import Checkpoint
from packlight.llm.compress_alone import Spread, spread_over_threads
from packlight.llm.compress_forecast import rounded_names
from packlight.llm.costs import GGUF, FormatTable, TensorCosts, TypeCost, bytes_of
from packlight.llm.rounding import Floats, Moments, Settings, relative_error
from packlight.llm.rounding_matrices import Taking, round_together
from packlight.llm.text import Windows
from packlight.maths.moments import add_to_moments, empty_moments
from packlight.progress import Progress


def round_blocks(
    run: Taking, windows: Windows, scratch: Path, spread: Spread = spread_over_threads
) -> None:
    """Round everything, from the embedding to the output head.

    spread: over whom windows are spread on their way through a block, and the matrices that read
    the same while they are rounded; this process's threads are PyTorch's own already.
    """
    checkpoint, settings = run.checkpoint, run.settings
    workers = None if spread is spread_over_threads else spread
    wiring = read_wiring(checkpoint)
    tokens = windows.calibration
    tied = HEAD not in checkpoint.tensors
    small = {
        name: torch.from_numpy(checkpoint.read(name))
        for name in checkpoint.tensors
        if checkpoint.block_of(name) is None and name not in (EMBEDDING, HEAD)
    }
    for name in small:
        run.keep(name)
    run.progress.stage("rounding", sum(map(run.wants, checkpoint.tensors)))
    with ExitStack() as stack:

        def keep() -> States:
            size = (len(tokens), windows.length, wiring.width)
            share = settings.states_bytes // 2 if workers is None else 0
            return stack.enter_context(States(*size, scratch=scratch, limit_bytes=share))

        embedding = torch.from_numpy(checkpoint.read(EMBEDDING))
        original = None
        if settings.aim != "own":
            original = keep()
            _embed(original, {**small, EMBEDDING: embedding}, wiring, tokens)
        moments = None
        if tied and run.wants(EMBEDDING) and run.finished(EMBEDDING) is None:
            with keep() as ahead:
                _embed(ahead, {**small, EMBEDDING: embedding}, wiring, tokens)
                moments = _original_head_moments(checkpoint, wiring, small, ahead, workers)
        if run.wants(EMBEDDING):
            embedding = _round_outer(run, EMBEDDING, embedding, moments)
        else:
            run.keep(EMBEDDING)
        states = keep()
        _embed(states, {**small, EMBEDDING: embedding}, wiring, tokens)
        del embedding
        for layer in range(wiring.layers):
            _round_block(run, wiring, layer, states, original, workers, scratch)
        if not tied and not run.wants(HEAD):
            run.keep(HEAD)
        elif not tied and run.finished(HEAD) is None:
            head = torch.from_numpy(checkpoint.read(HEAD))
            _round_outer(run, HEAD, head, _head_moments(small, wiring, states))


def estimate_costs(
    checkpoint: Checkpoint,
    windows: Windows,
    candidates: Sequence[str],
    settings: Settings,
    scratch: Path,
    progress: Progress,
    slopes: SlopeStore | None = None,
    formats: FormatTable = GGUF,
    spread: Spread = spread_over_threads,
) -> tuple[TensorCosts, ...]:
    """What each candidate costs each tensor: bytes, and the estimated KL divergence.

    slopes: where what else is found out on the way, G of each layer, is kept. formats: of which
    the candidates are some. spread: over whom layers are spread.
    """
    names = rounded_names(checkpoint)
    progress.stage("weighing types", len(names))
    losses = estimate_losses(
        lambda layer: load_weights(checkpoint, layer),
        read_wiring(checkpoint),
        choose_windows(windows.calibration, settings.curvature_tokens),
        CheapRounding(tuple(candidates), formats, settings.damping),
        wanted=lambda name: name in names,
        scratch=scratch,
        limit_bytes=settings.states_bytes,
        seed=settings.seed,
        progress=lambda name: progress.step(name),
        keep_slopes=None if slopes is None else slopes.add,
        spread=None if spread is spread_over_threads or not candidates else spread,
    )
    found = []
    for name in names:
        shape = checkpoint.tensors[name].shape
        options = [
            TypeCost(kind, bytes_of(kind, shape, formats), loss)
            for kind, loss in losses.get(name, {}).items()
        ]
        found.append(TensorCosts(name, int(np.prod(shape)), tuple(options)))
    return tuple(found)


@dataclass(frozen=True)
class CheapRounding:
    """See `packlight.llm.calibrate_losses.Change`."""

    candidates: tuple[str, ...]
    formats: FormatTable
    damping: float

    def __call__(
        self, name: str, weight: Tensor, moments: Tensor | None
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield each type that fits, with the weight as it would about be."""
        kinds = [kind for kind in self.candidates if self.formats.fits(kind, weight.shape[-1])]
        h = None if moments is None else moments.numpy().astype(np.float32)
        original = weight.detach().numpy()
        for kind, near in _round_cheaply(kinds, original, h, self.damping, self.formats):
            yield kind, torch.from_numpy(near)


def _round_cheaply(
    kinds: Sequence[str],
    weight: Floats,
    moments: Floats | None,
    damping: float,
    formats: FormatTable,
) -> Iterator[tuple[str, Floats]]:
    """The weight in each type, about as far off as the rounding that follows will leave it.

    That takes long, and betters all types of a tensor nearly alike (on a Llama to 0.505 to 0.535 of
    the diagonal's error from 2 to 6 bits). So one type is compensated, and the errors of the
    others, rounded by the diagonal alone, shrunk as much as its own.
    """
    share = 1.0
    diagonal = None if moments is None else np.ascontiguousarray(np.diagonal(moments))
    if moments is not None and kinds:
        middle = kinds[len(kinds) // 2]
        best, plain = (
            formats.round_quickly(middle, weight, h, damping) for h in (moments, diagonal)
        )
        after, before = (relative_error(weight, near, moments)[0] for near in (best, plain))
        share = min(after / before, 1.0) if before > 0 else 1.0
    for kind in kinds:
        near = formats.round_quickly(kind, weight, diagonal, damping)
        yield kind, weight - np.float32(np.sqrt(share)) * (weight - near)


def load_weights(checkpoint: Checkpoint, layer: int | None) -> dict[str, Tensor]:
    """Tensors of a block by their names in it, or with None those outside of blocks."""
    prefix = "" if layer is None else f"blk.{layer}."
    return {
        name.removeprefix(prefix): torch.from_numpy(checkpoint.read(name))
        for name in checkpoint.tensors
        if checkpoint.block_of(name) == layer
    }


def _round_block(
    run: Taking,
    wiring: Wiring,
    layer: int,
    states: States,
    original: States | None,
    workers: Spread | None,
    scratch: Path,
) -> None:
    prefix = f"blk.{layer}."
    weights = load_weights(run.checkpoint, layer)
    wanted = [name for name in weights if run.wants(prefix + name)]
    finished: dict[str, Floats] = {}
    for name in weights:
        if name not in wanted:
            run.keep(prefix + name)
            continue
        done = run.finished(prefix + name)
        if done is not None:
            finished[name] = done
            run.progress.step(prefix + name)

    def solve(some: Mapping[str, Floats], moments: Moments) -> Mapping[str, Floats]:
        named = {prefix + name: weight for name, weight in some.items()}
        near = round_together(run, named, moments, spread=workers, scratch=scratch)
        return {name: near[prefix + name] for name in some}

    calibrate_block(
        weights,
        wiring,
        layer,
        states,
        original,
        solve,
        wanted=wanted,
        finished=finished,
        aim=run.settings.aim,
        pull=run.settings.pull,
        waiting_bytes=run.settings.states_bytes // 2,
        spread=workers,
    )


def _round_outer(run: Taking, name: str, weight: Tensor, moments: Moments | None) -> Tensor:
    done = run.finished(name)
    if done is None:
        done = round_together(run, {name: weight.numpy()}, moments)[name]
    return torch.from_numpy(done)


def _embed(states: States, outer: Mapping[str, Tensor], wiring: Wiring, tokens: object) -> None:
    with torch.no_grad():
        for rows in states.batches():
            ids = torch.from_numpy(np.asarray(tokens, np.int64)[rows])
            states.write(rows, embed_tokens(outer, wiring, ids))


def _head_moments(outer: Mapping[str, Tensor], wiring: Wiring, states: States) -> Moments:
    found = empty_moments(wiring.width, like=torch.zeros(1))
    with torch.no_grad():
        for rows in states.batches():
            inputs = head_inputs(outer, wiring, states.read(rows))
            found = add_to_moments(found, inputs.flatten(0, -2))
    return np.asarray(found.second.numpy())


def _original_head_moments(
    checkpoint: Checkpoint,
    wiring: Wiring,
    outer: Mapping[str, Tensor],
    states: States,
    workers: Spread | None,
) -> Moments:
    """What reaches a head that is the embedding too: it is rounded first, but used last."""
    with torch.no_grad():
        for layer in range(wiring.layers):
            weights = load_weights(checkpoint, layer)
            block = Block(weights, wiring, layer, states)
            with closing(begin_passes(block, spread=workers)) as passes:
                passes.finish()
    return _head_moments(outer, wiring, states)
