"""Windows pass through a block in other processes, or on other machines, which share a disk.

States, weights and sums lie in files; tasks say where. Each batch of windows is a task that knows
of no other, and whose sums are added in the order of the windows, so that who takes it changes no
byte. (A worker has one thread, and the process that rounds has several: PyTorch's products were the
same on 1 to 4 of them. Processors of another kind may give other last bits.) No task changes what
it reads: one that is done twice gives the same. Gradients, which are taken of few tokens
(`calibrate_curvature`), are not shared out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from packlight.llm.blocks import Tensor, Walk, finish_walk, walk_block
from packlight.llm.blocks_states import States, StatesFile
from packlight.llm.blocks_wiring import Wiring
from packlight.llm.calibrate_passes import Block, gather_sites
from packlight.llm.calibrate_sums import Aim, Gathered, Sums, add_sums
from packlight.llm.compress_alone import Spread
from packlight.llm.compress_forecast import HELD
from packlight.llm.shared_folder import SharedFolder, cannot_share
from packlight.maths.moments import Moments


@dataclass(frozen=True)
class Stream:
    """States that enter a block, and its weights: each tensor's name, and the file it lies in.

    threads: PyTorch's. Sums that are shared out among them differ in their last bits with their
    number, so that everybody has as many as the process that began.
    """

    states: StatesFile
    weights: tuple[tuple[str, Path], ...]
    wiring: Wiring
    layer: int
    threads: int

    def begin(self, rows: slice) -> Walk:
        """The walk of some windows. Weights are mapped: whoever else maps them shares them."""
        torch.set_num_threads(self.threads)
        try:
            weights = {
                name: torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))
                for name, path in self.weights
            }
            states = self.states.read(rows)
        except OSError as lost:
            raise cannot_share(self.states.path.parent, lost) from lost
        return walk_block(weights, self.wiring, self.layer, states)


@dataclass(frozen=True)
class Gathering:
    """Sums of a group are asked for. original: followed beside. out: a file for the sums."""

    stream: Stream
    original: Stream | None
    rows: slice
    skipped: int
    sites: int
    aim: Aim
    out: Path


@dataclass(frozen=True)
class Passing:
    """What a block gives is asked for. after: where it is written."""

    stream: Stream
    rows: slice
    after: StatesFile


def gather_batch(task: Gathering) -> Path:
    """Write what reaches a group in some windows, summed up; give the file."""
    found: Gathered = {}
    with torch.no_grad():
        walk = task.stream.begin(task.rows)
        beside = None if task.original is None else task.original.begin(task.rows)
        layer = task.stream.layer
        gather_sites(found, walk, beside, task.skipped, task.sites, task.aim, layer)
    try:
        write_sums(task.out, found)
    except OSError as full:
        raise cannot_share(task.out.parent, full) from full
    return task.out


def pass_batch(task: Passing) -> None:
    """Write what a block gives for some windows."""
    with torch.no_grad():
        outputs = finish_walk(task.stream.begin(task.rows))
    try:
        task.after.write(task.rows, outputs)
    except OSError as lost:
        raise cannot_share(task.after.path.parent, lost) from lost


class PassesElsewhere:
    """See `packlight.llm.calibrate_passes.Passes`. Windows do not wait from group to group: each
    task begins with the block.
    """

    def __init__(self, block: Block, batch_tokens: int, spread: Spread) -> None:
        self._block, self._spread = block, spread
        self._batches = list(block.states.batches(batch_tokens))
        self._folder = SharedFolder("passes-", block.states.file.path.parent)
        self._passed = 0
        try:
            self._original = {
                name: self._folder.store(one.numpy()) for name, one in block.weights.items()
            }
        except BaseException:
            self.close()
            raise
        self._weights = dict(self._original)

    def gather(self, sites: int) -> Gathered:
        """See `Passes`."""
        block = self._block
        stream, original = self._stream(block.states, self._weights), None
        if block.original is not None:
            original = self._stream(block.original, self._original)
        tasks = [
            Gathering(
                stream,
                original,
                rows,
                self._passed,
                sites,
                block.aim,
                self._folder.file(".sums"),
            )
            for rows in self._batches
        ]
        found: Gathered = {}
        for path in self._spread(gather_batch, tasks, held=HELD):
            for expert, sums in read_sums(path):
                add_sums(found, expert, sums)
            path.unlink()
        self.skip(sites)
        return found

    def skip(self, sites: int) -> None:
        """See `Passes`."""
        self._passed += sites

    def replace(self, name: str, weight: Tensor) -> None:
        """See `Passes`."""
        self._weights[name] = self._folder.store(weight.numpy())

    def finish(self) -> None:
        """See `Passes`."""
        block = self._block
        for states, weights in (
            (block.states, self._weights),
            (block.original, self._original),
        ):
            if states is not None:
                stream = self._stream(states, weights)
                with states.begin_next() as after:
                    tasks = [Passing(stream, rows, after.file) for rows in self._batches]
                    for _ in self._spread(pass_batch, tasks):
                        pass
                    states.replace(after)

    def close(self) -> None:
        """See `Passes`."""
        self._folder.close()

    def _stream(self, states: States, weights: Mapping[str, Path]) -> Stream:
        wiring, layer, threads = self._block.wiring, self._block.layer, torch.get_num_threads()
        return Stream(states.file, (*weights.items(),), wiring, layer, threads)


def write_sums(path: Path, found: Gathered) -> None:
    """Write a group's sums: array after array, each as NumPy stores it."""
    with path.open("wb") as file:
        for expert, sums in found.items():
            kinds = (sums.own, sums.cross, sums.stream)
            counts = [-1 if one is None else one.count for one in kinds]
            np.save(file, np.array([-1 if expert is None else expert, *counts]))
            for one in kinds:
                if one is not None:
                    for array in (one.products, one.left, one.right):
                        np.save(file, array.numpy(), allow_pickle=False)


def read_sums(path: Path) -> Iterator[tuple[int | None, Sums]]:
    """Yield what `write_sums` wrote, an expert after another."""

    def read(count: int) -> Moments | None:
        if count < 0:
            return None
        products, left, right = (
            torch.from_numpy(np.load(file, allow_pickle=False)) for _ in range(3)
        )
        return Moments(products, left, right, count)

    size = path.stat().st_size
    with path.open("rb") as file:
        while file.tell() < size:
            expert, *counts = np.load(file, allow_pickle=False).tolist()
            own, cross, stream = map(read, counts)
            assert own is not None
            yield None if expert < 0 else expert, Sums(own, cross, stream)
