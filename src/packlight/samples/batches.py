"""Turns samples into what a session of the runtime is fed with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from packlight.errors import UnusableSamples
from packlight.samples.fitting import expectations
from packlight.samples.naming import dynamic
from packlight.samples.protocol import Array, Samples
from packlight.tensors import TensorSpec

BATCH = 32
"""Samples in a run, where the model's first axis is open."""


@dataclass(frozen=True)
class Batch:
    """One run of the model.

    feeds: {input: array}. indices: the samples in it, without those that only fill it up.
    stacked: the first axis of every output counts samples; False where the run serves one
        sample, whose outputs are whole. fed: how many samples there are with those that fill.
    """

    feeds: dict[str, Array]
    indices: tuple[int, ...]
    stacked: bool
    fed: int

    @property
    def rows(self) -> int:
        """How many samples of the run count."""
        return len(self.indices)

    def trim(self, output: Array) -> Array:
        """The output without the rows of samples that only filled the batch up.

        Inside a model the first axis may count parts of samples (tokens of all of them, say).
        """
        whole = not self.stacked or self.fed == self.rows or not output.ndim
        if whole or len(output) % self.fed:
            return output
        trimmed: Array = output[: len(output) // self.fed * self.rows]
        return trimmed


def batches_of(
    samples: Samples, indices: Sequence[int], inputs: Sequence[TensorSpec], *, batch: int = BATCH
) -> Iterator[Batch]:
    """The runs that take these samples through the model, in order.

    Several samples share a run only where the first axis of every input is open (then `batch`
    of them) or fixed to a number (then that many; the last run is filled up by repeating its
    last sample). A sample that is a whole feed has a run of its own.
    Raises UnusableSamples where the samples don't fit the inputs.
    """
    if not indices:
        return
    size = _batch_size(samples.read(indices[:1]), inputs, batch, source=samples.source)
    fixed = any(spec.shape and spec.shape[0] == size for spec in inputs)
    for start in range(0, len(indices), size or 1):
        chunk = tuple(int(index) for index in indices[start : start + (size or 1)])
        filled = chunk
        if fixed and size:
            filled = (*chunk, *([chunk[-1]] * (size - len(chunk))))
        arrays = samples.read(filled)
        feeds = {}
        for spec in inputs:
            array = arrays[spec.name]
            whole = array.ndim == len(spec.shape) + 1
            # An array even for a scalar: runtimes refuse NumPy's scalar types.
            feeds[spec.name] = np.asarray(array[0]) if whole else array
        yield Batch(feeds, chunk, stacked=size > 0, fed=len(filled))


def feeds_of(
    samples: Samples, indices: Sequence[int], inputs: Sequence[TensorSpec], *, batch: int = 32
) -> Iterator[dict[str, Array]]:
    """The feeds of `batches_of`, for those who don't need to tell outputs apart by sample."""
    for run in batches_of(samples, indices, inputs, batch=batch):
        yield run.feeds


def feeds_of_one(
    samples: Samples, indices: Sequence[int], inputs: Sequence[TensorSpec]
) -> dict[str, Array]:
    """What the model is fed with for the first of these samples alone, by input."""
    return dict(next(iter(batches_of(samples, indices[:1], inputs, batch=1))).feeds)


def shapes_of_one(
    samples: Samples, indices: Sequence[int], inputs: Sequence[TensorSpec]
) -> dict[str, tuple[int, ...]]:
    """By input, the shape of what the model is fed with for the first of these samples alone."""
    feeds = feeds_of_one(samples, indices, inputs)
    return {name: array.shape for name, array in feeds.items()}


def _batch_size(
    arrays: Mapping[str, Array], inputs: Sequence[TensorSpec], batch: int, *, source: str
) -> int:
    """Samples in a run; 0 where a sample is a whole feed and has a run of its own."""
    whole = False
    sizes = set()
    for spec in inputs:
        array = arrays.get(spec.name)
        if array is None or array.ndim not in (len(spec.shape), len(spec.shape) + 1):
            found = "nothing" if array is None else f"arrays of shape {list(array.shape)}"
            raise UnusableSamples(
                f"{source}: there is {found} for the input '{spec.name}'; "
                f"the model expects {expectations(inputs)}"
            )
        if array.ndim == len(spec.shape) + 1:
            whole = True
        elif not dynamic(spec.shape[0]):
            sizes.add(int(spec.shape[0] or 1))
    if len(sizes) > 1 or (whole and sizes - {1}):
        raise UnusableSamples(
            f"{source}: the inputs take different numbers of samples in a run; give whole feeds, "
            f"arrays of shape [n, ...] with one of {expectations(inputs)} for each sample"
        )
    if whole:
        return 0
    return sizes.pop() if sizes else max(1, batch)
