"""Samples that lie in arrays: in memory, or mapped from a file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from packlight.errors import UnusableSamples, WrongUsage
from packlight.samples.fitting import Fit, cast, check_type, choose_fits, expectations
from packlight.samples.missing import fill_missing, required_inputs
from packlight.samples.naming import numpy_dtype, picture_layout
from packlight.samples.preprocess import Normalization, parse_preprocess
from packlight.samples.protocol import Array
from packlight.tensors import TensorSpec

LABELS = "labels"
_CHECKED_AT_ONCE = 1 << 30  # bytes: up to here every value is looked at before work begins
_BLOCK = 1 << 24


@dataclass(frozen=True)
class Column:
    """The samples of one input.

    array: as given; normalization: for 8-bit pictures that are to be preprocessed.
    """

    spec: TensorSpec
    array: Array
    fit: Fit
    normalization: Normalization | None = None

    def read(self, indices: Sequence[int], *, source: str) -> Array:
        """These samples in the input's type and arrangement, [len(indices), ...]."""
        if self.fit.count is None:
            one = cast(self.array.reshape(1, *self.fit.shape), self.spec, indices, source=source)
            return np.repeat(one, len(indices), axis=0)
        block = self.fit.arrange(np.asarray(self.array[np.asarray(indices, dtype=np.intp)]))
        if self.normalization is not None:
            layout = picture_layout(self.spec)
            first = layout is not None and layout.channels_first
            block = self.normalization.apply(block, channel_axis=-3 if first else -1)
        return cast(block, self.spec, indices, source=source)


@dataclass(frozen=True)
class ArraySamples:
    """Samples that lie in arrays, read and converted where they are asked for."""

    source: str
    columns: tuple[Column, ...]
    filled: Mapping[str, Array]
    count: int
    labels: Array | None = None
    notes: tuple[str, ...] = ()
    generated: bool = False
    place: str = field(default="the samples")

    def __len__(self) -> int:
        return self.count

    def read(self, indices: Sequence[int]) -> dict[str, Array]:
        """These samples: {input: [len(indices), ...]}.

        Raises UnusableSamples where one holds NaN, infinity or a number out of range.
        """
        feeds = {
            column.spec.name: column.read(indices, source=self.place) for column in self.columns
        }
        for name, value in self.filled.items():
            feeds[name] = np.repeat(value[None], len(indices), axis=0)
        return feeds

    def fingerprints(self, indices: Sequence[int]) -> list[bytes]:
        """One digest a sample over the arrays as given."""
        digests = [hashlib.blake2b(digest_size=16) for _ in indices]
        for column in self.columns:
            if column.fit.count is not None:
                for digest, index in zip(digests, indices, strict=True):
                    digest.update(np.ascontiguousarray(column.array[index]).tobytes())
        return [digest.digest() for digest in digests]


def samples_from_arrays(
    arrays: Mapping[str, Array],
    inputs: Sequence[TensorSpec],
    *,
    place: str,
    preprocess: str | None = None,
) -> ArraySamples:
    """Samples out of named arrays, one for each input, samples along the first axis.

    arrays: {input: [n, ...]}, optionally "labels"; a single array of any name does where the
        model needs a single input.
    place: what to call them in messages (a file's name).
    Raises UnusableSamples where names, types, shapes or lengths don't fit the inputs.
    """
    given = dict(arrays)
    has_labels = LABELS in given and all(spec.name != LABELS for spec in inputs)
    labels = given.pop(LABELS) if has_labels else None
    notes: list[str] = []
    named = _by_input(given, inputs, place=place, notes=notes)
    for spec in inputs:
        if spec.name in named:
            check_type(named[spec.name].dtype, spec, source=place)
    shapes = {name: array.shape for name, array in named.items()}
    chosen = choose_fits(shapes, inputs, source=place)
    filled, guesses = fill_missing(
        inputs, {name: fit.shape for name, fit in chosen.fits.items()}, source=place
    )
    columns = tuple(
        _column(spec, named[spec.name], chosen.fits[spec.name], preprocess, notes)
        for spec in inputs
        if spec.name in named
    )
    if preprocess is not None and all(column.normalization is None for column in columns):
        raise WrongUsage(
            f"--preprocess {preprocess} is for pictures, but {place} holds no 8-bit pictures "
            "(uint8, [n, height, width, channels]); leave it out, the numbers are fed as they are"
        )
    samples = ArraySamples(
        source=_sentence(place, chosen.count, preprocess),
        columns=columns,
        filled=filled,
        count=chosen.count,
        labels=check_labels(labels, chosen.count, source=place),
        notes=(*notes, *guesses),
        place=place,
    )
    _check_values(samples)
    return samples


def _sentence(place: str, count: int, preprocess: str | None) -> str:
    prepared = f"prepared as {preprocess}" if preprocess is not None else "fed as they are"
    return f"{count} sample{'s' if count != 1 else ''} from {place}, {prepared}"


def _by_input(
    given: Mapping[str, Array], inputs: Sequence[TensorSpec], *, place: str, notes: list[str]
) -> dict[str, Array]:
    names = {spec.name for spec in inputs}
    if not given:
        raise UnusableSamples(
            f"{place} holds no arrays for the model, which expects {expectations(inputs)}"
        )
    required = required_inputs(inputs)
    if len(given) == 1 and len(required) == 1 and not names & set(given):
        (name, array) = next(iter(given.items()))
        if name:
            notes.append(f"the array '{name}' was taken for the input '{required[0].name}'")
        return {required[0].name: array}
    unknown = [name for name in given if name not in names]
    lacking = [spec for spec in required if spec.name not in given]
    if lacking:
        held = ", ".join(f"'{name}'" for name in list(given)[:20])
        raise UnusableSamples(
            f"{place} holds {held} but nothing for {expectations(lacking)}; "
            f"the model expects {expectations(inputs)}: name each array as its input"
        )
    if unknown:
        held = ", ".join(f"'{name}'" for name in unknown[:20])
        notes.append(f"{held} in {place} is no input of the model and was not used")
    return {name: array for name, array in given.items() if name in names}


def _column(
    spec: TensorSpec, array: Array, fit: Fit, preprocess: str | None, notes: list[str]
) -> Column:
    if fit.note:
        notes.append(fit.note)
    layout, wanted = picture_layout(spec), numpy_dtype(spec)
    pictures = layout is not None and array.dtype == np.uint8 and fit.count is not None
    if preprocess is not None and pictures and layout is not None:
        channels = layout.channels
        normalization = parse_preprocess(preprocess, channels=channels)
        if wanted is not None and wanted.kind != "f" and not normalization.keeps_bytes:
            raise WrongUsage(
                f"--preprocess {preprocess} makes fractions, but the model expects {spec}; "
                "use --preprocess 0..255"
            )
        return Column(spec, array, fit, normalization)
    if pictures and wanted is not None and wanted.kind == "f":
        notes.append(
            f"'{spec.name}' holds 8-bit numbers and the model takes {spec.dtype}: they were fed "
            "as the numbers 0..255; name the model's preprocessing if it expects another range"
        )
    return Column(spec, array, fit)


def check_labels(labels: Array | None, count: int, *, source: str) -> Array | None:
    """The labels, one a sample.

    Raises UnusableSamples where they are of another length, no numbers, or NaN.
    """
    if labels is None:
        return None
    found = len(labels) if labels.ndim else 0
    if found != count:
        raise UnusableSamples(
            f"{source}: '{LABELS}' has {found} entries for {count} samples; "
            "give one label for each sample"
        )
    if labels.dtype.kind not in "fiub":
        raise UnusableSamples(
            f"{source}: '{LABELS}' holds {labels.dtype}; give class numbers that match the model's "
            "output, or target values"
        )
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    finite = np.isfinite(labels.reshape(count, -1)).all(axis=1)
    if not finite.all():
        raise UnusableSamples(
            f"{source}: '{LABELS}' of sample {int(np.argmin(finite))} is NaN or infinite; "
            "correct or remove this sample"
        )
    return labels


def _check_values(samples: ArraySamples) -> None:
    """Reads everything once where that is quick, so that a NaN is met before work begins."""
    size = sum(column.array.nbytes for column in samples.columns)
    if size > _CHECKED_AT_ONCE:
        samples.read(range(min(len(samples), 16)))
        return
    step = max(1, _BLOCK * len(samples) // max(size, 1))
    for start in range(0, len(samples), step):
        samples.read(range(start, min(start + step, len(samples))))
