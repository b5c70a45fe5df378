"""What a linear layer's types lose, once its gradients are known: here, or in other processes.

Rounding a layer to each of its types, if only roughly, takes longer than its gradients did, and
layers know nothing of each other. What goes elsewhere lies in files, on a disk that all share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch

from packlight.llm.blocks import Tensor
from packlight.llm.compress_alone import Spread
from packlight.llm.shared_folder import SharedFolder, cannot_share

Change: TypeAlias = Callable[[str, Tensor, "Tensor | None"], Iterator[tuple[str, Tensor]]]
"""Gives for a weight (full name) and its second moments each type with the rounded weight. Where
layers go to other processes it must be a value that can go there too."""

Losses: TypeAlias = dict[str, float]
"""KL divergence in nats a token, by type."""


@dataclass
class LayerSums:
    """Of a linear layer, sums over tokens. halves: G, [out, out] or [out], of one half of the
    tokens and of the other. inputs: H by expert. counts: of their tokens.
    """

    halves: list[Tensor] = field(default_factory=list)
    inputs: dict[int | None, Tensor] = field(default_factory=dict)
    counts: dict[int | None, int] = field(default_factory=dict)

    @property
    def outputs(self) -> Tensor | None:
        """G over all tokens, an array of its own, where there was a gradient."""
        if not self.halves:
            return None
        first, *others = self.halves
        whole = first.clone()
        for other in others:
            whole += other
        return whole


def weigh_layers(
    weights: Mapping[str, Tensor],
    sums: Mapping[str, LayerSums],
    tokens: int,
    change: Change,
    *,
    spread: Spread | None = None,
    scratch: Path | None = None,
) -> Iterator[tuple[str, Losses]]:
    """Yield what each type loses, layer after layer, by full names.

    tokens: that all sums are of. spread: over whom layers are spread; None: this process.
    """
    if spread is None:
        for name, weight in weights.items():
            yield name, linear_losses(name, weight, sums[name], tokens, change)
        return
    threads = torch.get_num_threads()
    with SharedFolder("weighing-", scratch) as folder:
        errands = []
        for name, weight in weights.items():
            path = folder.file(".sums")
            try:
                _write(path, sums[name])
            except OSError as full:
                raise cannot_share(folder.path, full) from full
            stored = folder.store(weight.numpy())
            errands.append(_Errand(name, stored, path, tokens, change, threads))
        yield from zip(weights, spread(weigh_errand, errands), strict=True)


def linear_losses(
    name: str, weight: Tensor, sums: LayerSums, tokens: int, change: Change
) -> Losses:
    """1/2 tr(G D H D^T) a token; of experts the sum, with one G for all of them."""
    outputs = sums.outputs
    if outputs is None:
        return {}
    slopes = outputs.div_(max(sum(sums.counts.values()), 1))
    losses: Losses = {}
    for expert, moments in sums.inputs.items():
        count = sums.counts[expert]
        own = weight if expert is None else weight[expert]
        known = moments / count if count else None
        for kind, near in change(name, own, known):
            gap = (own - near).double()
            seen = gap @ (moments / tokens)
            pulled = slopes @ gap if slopes.ndim == 2 else slopes[:, None] * gap
            losses[kind] = losses.get(kind, 0.0) + 0.5 * float((pulled * seen).sum())
    return losses


@dataclass(frozen=True)
class _Errand:
    """A layer that is weighed elsewhere. threads: PyTorch's, on which last bits depend."""

    name: str
    weight: Path
    sums: Path
    tokens: int
    change: Change
    threads: int


def weigh_errand(errand: _Errand) -> Losses:
    """Weigh a layer that lies in files. Nothing that is read is changed."""
    torch.set_num_threads(errand.threads)
    try:
        weight = torch.from_numpy(np.load(errand.weight, allow_pickle=False))
        sums = _read(errand.sums)
    except OSError as lost:
        raise cannot_share(errand.weight.parent, lost) from lost
    with torch.no_grad():
        return linear_losses(errand.name, weight, sums, errand.tokens, errand.change)


def _write(path: Path, sums: LayerSums) -> None:
    """Array after array, each as NumPy stores it; of G the whole."""
    with path.open("wb") as file:
        experts = [-1 if expert is None else expert for expert in sums.inputs]
        np.save(file, np.array([experts, [sums.counts[expert] for expert in sums.inputs]]))
        for one in (*sums.inputs.values(), sums.outputs):
            if one is not None:
                np.save(file, one.numpy(), allow_pickle=False)


def _read(path: Path) -> LayerSums:
    sums, size = LayerSums(), path.stat().st_size
    with path.open("rb") as file:

        def read() -> Tensor:
            return torch.from_numpy(np.load(file, allow_pickle=False))

        for expert, count in np.load(file, allow_pickle=False).T.tolist():
            key = None if expert < 0 else expert
            sums.inputs[key], sums.counts[key] = read(), count
        while file.tell() < size:
            sums.halves.append(read())
    return sums
