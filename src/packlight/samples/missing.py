"""Values for inputs that nobody gave: states, caches, masks, positions, the sampling rate.

Such inputs have one natural value at the start of a sequence. Anything else is the
user's to give.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from packlight.errors import UnusableSamples
from packlight.samples.axes import axis_key, axis_roles, axis_sizes, past_size, shape_of
from packlight.samples.fitting import expectations
from packlight.samples.naming import (
    batch_axis,
    dynamic,
    is_integer,
    is_mask,
    is_positions,
    is_sample_rate,
    is_state,
    is_token_types,
    numpy_dtype,
)
from packlight.samples.protocol import Array
from packlight.tensors import TensorSpec

SAMPLE_RATE = 16_000


def fillable(spec: TensorSpec) -> bool:
    """Whether the input has a natural value where none is given."""
    if numpy_dtype(spec) is None:
        return False
    sequence = (is_integer(spec) or spec.dtype == "bool") and is_mask(spec)
    return (
        is_state(spec)
        or is_sample_rate(spec)
        or sequence
        or is_positions(spec)
        or is_token_types(spec)
    )


def required_inputs(inputs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """The inputs that only the user can give; all of them if every one could be filled in."""
    return tuple(spec for spec in inputs if not fillable(spec)) or tuple(inputs)


def fill_missing(
    inputs: Sequence[TensorSpec], shapes: Mapping[str, tuple[int, ...]], *, source: str
) -> tuple[dict[str, Array], tuple[str, ...]]:
    """A value for every input without samples, the same for each sample, and notes on them.

    shapes: of one sample of each given input, a row of its batch or a whole feed.
    Returns {input: one row, or one whole feed} and one sentence for each.
    Raises UnusableSamples where an input is missing that cannot be guessed.
    """
    missing = [spec for spec in inputs if spec.name not in shapes]
    lost = [spec for spec in missing if not fillable(spec)]
    if lost:
        raise UnusableSamples(
            f"{source} has nothing for the input {expectations(lost)}; "
            f"the model expects {expectations(inputs)}: name each array as its input"
        )
    if not missing:
        return {}, ()
    sizes = axis_sizes(inputs, _bound_sizes(inputs, shapes))
    values: dict[str, Array] = {}
    notes = []
    for spec in missing:
        value, meaning = _value(spec, shape_of(spec, sizes), past_size(inputs, sizes))
        # A batch that is open grows with the samples: there the value is one row of it.
        row = bool(spec.shape) and dynamic(spec.shape[0]) and batch_axis(spec) == 0
        values[spec.name] = value[0] if row else value
        notes.append(f"'{spec.name}' was not given and was filled with {meaning}")
    return values, tuple(notes)


def _bound_sizes(
    inputs: Sequence[TensorSpec], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, int]:
    """Sizes of open axes as the given samples have them; batches of one, empty caches."""
    sizes = {key: 0 for key, role in axis_roles(inputs).items() if role == "past"}
    for spec in inputs:
        shape = shapes.get(spec.name)
        if shape is None:
            continue
        whole = shape if len(shape) == len(spec.shape) else (1, *shape)
        for axis, size in enumerate(whole):
            key = axis_key(spec, axis)
            if key is not None:
                sizes[key] = size
    return sizes


def _value(spec: TensorSpec, shape: tuple[int, ...], past: int) -> tuple[Array, str]:
    dtype = numpy_dtype(spec)
    if is_sample_rate(spec):
        return np.full(shape, SAMPLE_RATE, dtype), f"{SAMPLE_RATE} (hertz)"
    if is_mask(spec) and not is_state(spec):
        return np.ones(shape, dtype), "ones: every position counts"
    if is_positions(spec):
        length = shape[-1] if shape else 1
        row = np.arange(past, past + length).reshape(shape[-1:])
        return np.broadcast_to(row, shape).astype(dtype), "the positions in order"
    if is_state(spec):
        return np.zeros(shape, dtype), "zeros, as at the start of a sequence"
    return np.zeros(shape, dtype), "zeros"
