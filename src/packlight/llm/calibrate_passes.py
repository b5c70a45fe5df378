"""Windows pass through a block, from one group of linear layers to the next, in this process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from packlight.llm.blocks import Tensor, Walk, finish_walk, walk_block
from packlight.llm.blocks_states import States
from packlight.llm.blocks_wiring import Wiring
from packlight.llm.calibrate_sums import Aim, Gathered, add_site


@dataclass(frozen=True)
class Block:
    """A block of the original, by its weights' names in it, and the windows that enter it.

    states: what the compressed blocks before give. original: likewise of the original, where it is
    followed side by side. Both are replaced by what the block gives, once windows have passed.
    """

    weights: Mapping[str, Tensor]
    wiring: Wiring
    layer: int
    states: States
    original: States | None = None
    aim: Aim = "own"


class Passes(Protocol):
    """The way of all windows through a block whose weights are replaced meanwhile."""

    def gather(self, sites: int) -> Gathered:
        """Sums over what reaches the next group, of so many sites, as the weights are now."""

    def skip(self, sites: int) -> None:
        """Leave a group out, of which nothing need be known."""

    def replace(self, name: str, weight: Tensor) -> None:
        """Take another weight from now on. Only of groups that were gathered or skipped."""

    def finish(self) -> None:
        """Replace the states by what the block gives."""

    def close(self) -> None:
        """Let go of what was kept from group to group."""


class PassesHere:
    """See `Passes`.

    waiting_bytes: windows that this has room for are computed once, from group to group; the others
    from the block's beginning for each group, which gives the same.
    """

    def __init__(self, block: Block, batch_tokens: int, waiting_bytes: int) -> None:
        self._block, self._current = block, dict(block.weights)
        self._batches = list(block.states.batches(batch_tokens))
        streams = 1 if block.original is None else 2
        token = bytes_of_walk(block.weights, block.wiring.width)
        each = self._batches[0].stop * block.states.shape[1] * token * streams
        most = waiting_bytes // each
        self._waiting = dict(enumerate(map(self._begin, self._batches[:most])))
        self._passed = 0

    def gather(self, sites: int) -> Gathered:
        """See `Passes`."""
        found: Gathered = {}
        for number, rows in enumerate(self._batches):
            walk, beside = self._waiting.get(number) or self._begin(rows)
            skipped = 0 if number in self._waiting else self._passed
            gather_sites(found, walk, beside, skipped, sites, self._block.aim, self._block.layer)
        self._passed += sites
        return found

    def skip(self, sites: int) -> None:
        """See `Passes`."""
        for walk, beside in self._waiting.values():
            for _ in range(sites):
                next(walk)
                if beside is not None:
                    next(beside)
        self._passed += sites

    def replace(self, name: str, weight: Tensor) -> None:
        """See `Passes`."""
        self._current[name] = weight

    def finish(self) -> None:
        """See `Passes`."""
        states, original = self._block.states, self._block.original
        for number, rows in enumerate(self._batches):
            waited = self._waiting.pop(number, None)
            walk, beside = waited or self._begin(rows)
            states.write(rows, finish_walk(walk))
            if original is not None and beside is not None:
                original.write(rows, finish_walk(beside))

    def close(self) -> None:
        """See `Passes`."""
        self._waiting.clear()

    def _begin(self, rows: slice) -> tuple[Walk, Walk | None]:
        """The block on some windows, and the original's beside it, before the first group."""
        block = self._block
        wiring, layer, beside = block.wiring, block.layer, None
        if block.original is not None:
            beside = walk_block(block.weights, wiring, layer, block.original.read(rows))
        return walk_block(self._current, wiring, layer, block.states.read(rows)), beside


def gather_sites(
    found: Gathered,
    walk: Walk,
    beside: Walk | None,
    skipped: int,
    sites: int,
    aim: Aim,
    layer: int,
) -> None:
    """Walk on, and add up what reaches so many sites, after some that were looked at before."""
    for place in range(skipped + sites):
        site, other = next(walk), next(beside) if beside is not None else None
        if place >= skipped:
            add_site(found, site, other, aim, layer)


def bytes_of_walk(weights: Mapping[str, Tensor], width: int) -> int:
    """Bytes, rather too many, that a walk of a block holds for each token while it waits."""
    widest = max((int(one.shape[-1]) for one in weights.values()), default=width)
    return 4 * (3 * width + 2 * widest)
