"""Made-up samples that fit a model's inputs, for when nobody gave any."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from packlight.errors import UnusableSamples, WrongUsage
from packlight.samples.axes import axis_roles, axis_sizes, past_size, shape_of
from packlight.samples.fitting import cast
from packlight.samples.missing import SAMPLE_RATE
from packlight.samples.naming import (
    batch_axis,
    dynamic,
    is_cache,
    is_float,
    is_mask,
    is_positions,
    is_sample_rate,
    is_scalar,
    is_state,
    is_token_types,
    numpy_dtype,
    picture_layout,
    words_of,
)
from packlight.samples.noise import natural_noise
from packlight.samples.protocol import Array
from packlight.tensors import TensorSpec

# Where the vocabulary is not known: below all that are met in practice.
_TOKENS = 100


@dataclass(frozen=True)
class GeneratedSamples:
    """Samples made up one by one from a seed; reading one again gives the same numbers.

    sizes: of the open axes, by name. rows: whether a sample is one row of the model's batch.
    limits: by input of tokens, how many there are.
    """

    inputs: tuple[TensorSpec, ...]
    sizes: Mapping[str, int]
    count: int
    seed: int
    rows: bool
    source: str
    notes: tuple[str, ...] = ()
    limits: Mapping[str, int] = field(default_factory=dict)
    labels: None = None
    generated: bool = True

    def __len__(self) -> int:
        return self.count

    def read(self, indices: Sequence[int]) -> dict[str, Array]:
        """These samples: {input: [len(indices), ...]}."""
        feeds = {}
        for spec in self.inputs:
            block = np.stack([self._value(spec, index) for index in indices])
            feeds[spec.name] = cast(
                block[:, 0] if self.rows else block, spec, indices, source=self.source
            )
        return feeds

    def fingerprints(self, indices: Sequence[int]) -> list[bytes]:
        """One digest a sample: each is drawn from its own number."""
        return [int(index).to_bytes(8, "little") for index in indices]

    def _value(self, spec: TensorSpec, index: int) -> Array:
        if not 0 <= index < self.count:
            raise IndexError(f"sample {index} of {self.count}")
        entropy = (self.seed, zlib.crc32(spec.name.encode()), index)
        generator = np.random.default_rng(entropy)
        shape = shape_of(spec, self.sizes)
        if is_float(spec):
            return _numbers(spec, shape, generator)
        tokens = self.limits.get(spec.name, _TOKENS)
        value = _whole_numbers(spec, shape, generator, self.inputs, self.sizes, tokens)
        return np.asarray(value).astype(numpy_dtype(spec))


def generate_samples(
    inputs: Sequence[TensorSpec],
    *,
    count: int = 64,
    seed: int = 0,
    axes: Mapping[str, int] | None = None,
    limits: Mapping[str, int] | None = None,
) -> GeneratedSamples:
    """Made-up samples in the shapes and types of the inputs.

    Pictures are noise with the spectrum of photographs, other floats unit normal, tokens small
    numbers, masks ones. axes: sizes of open axes by name ("input[1]" for axis 1 of an input that
    has no name for it), in place of the guesses; see `alternative_axes`. limits: by input, how
    many different tokens the model knows: they are then drawn from all of them.
    Raises UnusableSamples for an input that takes no numbers, WrongUsage for an unknown axis.
    """
    if count < 1:
        raise WrongUsage(f"{count} samples cannot be generated; ask for at least one")
    for spec in inputs:
        if numpy_dtype(spec) is None:
            raise UnusableSamples(
                f"the model's input {spec} takes {spec.dtype}, for which samples cannot be "
                "generated; only numbers and booleans are supported"
            )
    roles = axis_roles(inputs)
    unknown = sorted(set(axes or {}) - set(roles))
    if unknown:
        raise WrongUsage(
            f"the model has no open axis '{unknown[0]}'; it has {', '.join(roles) or 'none'}"
        )
    sizes = axis_sizes(inputs, axes)
    rows = bool(inputs) and all(
        bool(spec.shape)
        and dynamic(spec.shape[0])
        and batch_axis(spec) == 0
        and sizes_of_first(spec, sizes) == 1
        for spec in inputs
    )
    chosen = ", ".join(f"{name} = {size}" for name, size in sizes.items())
    return GeneratedSamples(
        inputs=tuple(inputs),
        sizes=sizes,
        count=count,
        seed=seed,
        rows=rows,
        source=f"{count} samples generated to fit the model's inputs",
        notes=(f"open axes were given sizes: {chosen}",) if chosen else (),
        limits={name: limit for name, limit in (limits or {}).items() if limit > 0},
    )


def sizes_of_first(spec: TensorSpec, sizes: Mapping[str, int]) -> int:
    """The size of the input's first axis."""
    return shape_of(spec, sizes)[0]


def _numbers(spec: TensorSpec, shape: tuple[int, ...], generator: np.random.Generator) -> Array:
    layout = picture_layout(spec)
    if is_scalar(spec):
        return np.full(shape, 0.5 if "thresh" in spec.name.lower() else 1.0, np.float32)
    if is_mask(spec):
        return np.ones(shape, np.float32)
    if layout is not None and shape[1 if layout.channels_first else 3] == layout.channels:
        return _pictures(shape, layout.channels_first, generator)
    values = generator.standard_normal(shape, dtype=np.float32)
    # A recurrent cell's state lies within -1..1; a cache holds keys and values, which don't.
    return np.tanh(values) if is_state(spec) and not is_cache(spec) else values


def _pictures(
    shape: tuple[int, ...], channels_first: bool, generator: np.random.Generator
) -> Array:
    channels, height, width = shape[1:] if channels_first else (shape[3], *shape[1:3])
    block = np.stack([natural_noise(channels, height, width, generator) for _ in range(shape[0])])
    return block if channels_first else block.transpose(0, 2, 3, 1)


def _whole_numbers(
    spec: TensorSpec,
    shape: tuple[int, ...],
    generator: np.random.Generator,
    inputs: Sequence[TensorSpec],
    sizes: Mapping[str, int],
    tokens: int,
) -> Array:
    words = words_of(spec.name)
    layout = picture_layout(spec)
    if is_sample_rate(spec):
        return np.full(shape, SAMPLE_RATE)
    if is_mask(spec):
        return np.ones(shape)
    if is_positions(spec):
        past = past_size(inputs, sizes)
        length = shape[-1] if shape else 1
        return np.broadcast_to(np.arange(past, past + length).reshape(shape[-1:]), shape)
    if is_token_types(spec):
        return np.zeros(shape)
    if spec.dtype == "bool":
        return np.zeros(shape) if is_scalar(spec) else generator.integers(0, 2, shape)
    if len(shape) <= 1 and words & {"len", "length", "lengths", "lens"}:
        return np.full(shape, _length_of_others(spec, inputs, sizes))
    if is_scalar(spec):
        return np.ones(shape)
    if layout is not None and spec.dtype == "uint8":
        pictures = _pictures(shape, layout.channels_first, generator)
        return np.asarray(np.clip(128 + 48 * pictures, 0, 255).round())
    return generator.integers(0, tokens, shape)


def _length_of_others(
    spec: TensorSpec, inputs: Sequence[TensorSpec], sizes: Mapping[str, int]
) -> int:
    for other in inputs:
        if other.name != spec.name and len(other.shape) > 1:
            return shape_of(other, sizes)[1]
    return 1
