"""How an array of samples is read for an input of the model.

For an input of rank r, an array with r axes holds one row of the batch a sample, one with
r + 1 axes holds a whole feed a sample, and a single number serves every sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from packlight.errors import UnusableSamples
from packlight.samples.naming import batch_axis, dynamic, numpy_dtype, picture_layout
from packlight.samples.protocol import Array
from packlight.tensors import TensorSpec

Shape = tuple[int | str | None, ...]


def expectations(inputs: Sequence[TensorSpec]) -> str:
    """What the model expects, for a message: every input with type and shape."""
    return "; ".join(str(spec) for spec in inputs) or "no input at all"


@dataclass(frozen=True)
class Fit:
    """One way to read an array for an input.

    count: number of samples, None where the array serves every sample.
    shape: of one sample after reading: the input's (a whole feed) or one row of its batch.
    transpose: order of the array's axes, the samples' axis first; None to leave them.
    """

    count: int | None
    shape: tuple[int, ...]
    transpose: tuple[int, ...] | None = None
    note: str = ""

    def arrange(self, block: Array) -> Array:
        """A block of samples [k, ...] in the arrangement that the input takes."""
        if self.transpose is not None:
            block = block.transpose(self.transpose)
        return block.reshape(len(block), *self.shape)


def matches(shape: Sequence[int], wanted: Shape) -> bool:
    """Whether a shape fits one whose axes may be open."""
    return len(shape) == len(wanted) and all(
        dynamic(size) or size == found for found, size in zip(shape, wanted, strict=True)
    )


def fits_of(shape: tuple[int, ...], spec: TensorSpec) -> list[Fit]:
    """Every way in which an array of this shape can be read for the input, likeliest first."""
    return list(_fits(shape, spec))


def _fits(shape: tuple[int, ...], spec: TensorSpec) -> Iterator[Fit]:
    wanted, rank = spec.shape, len(spec.shape)
    if not shape:
        if all(size == 1 for size in wanted):
            yield Fit(None, (1,) * rank)
        return
    count, rest = shape[0], shape[1:]
    if matches(rest, wanted):
        yield Fit(count, rest)
    if rank == 0:
        return
    if batch_axis(spec) == 1:
        if matches(rest, (wanted[0], *wanted[2:])):
            yield Fit(count, (rest[0], 1, *rest[1:]))
    elif matches(rest, wanted[1:]):
        yield Fit(count, rest)
    else:
        yield from _rearranged(count, rest, spec)
    if matches(shape, wanted) and not dynamic(wanted[0]) and (count > 1 or batch_axis(spec) == 1):
        note = f"'{spec.name}' has the input's own shape, so it was fed unchanged with every sample"
        yield Fit(None, shape, note=note)


def _rearranged(count: int, rest: tuple[int, ...], spec: TensorSpec) -> Iterator[Fit]:
    """Pictures with their channels at the other end, and rows that lack axes of size 1."""
    wanted = spec.shape[1:]
    layout = picture_layout(spec)
    if layout is not None and len(rest) == 3:
        order = (2, 0, 1) if layout.channels_first else (1, 2, 0)
        turned = tuple(rest[axis] for axis in order)
        if matches(turned, wanted) and turned[0 if layout.channels_first else 2] in (1, 3):
            ends = ("last", "first") if layout.channels_first else ("first", "last")
            note = f"'{spec.name}' had its channels {ends[0]}; they were moved {ends[1]}"
            yield Fit(count, turned, (0, *(axis + 1 for axis in order)), note)
    bare = [size for size in wanted if size != 1]
    squeezed = [size for size in rest if size != 1]
    if (dynamic(spec.shape[0]) or spec.shape[0] == 1) and matches(squeezed, tuple(bare)):
        sizes = iter(squeezed)
        yield Fit(count, tuple(1 if size == 1 else next(sizes) for size in wanted))


def check_type(dtype: np.dtype[np.generic], spec: TensorSpec, *, source: str) -> None:
    """Refuses an array whose type of numbers cannot become the input's.

    Raises UnusableSamples: text, objects, complex numbers; fractions for whole numbers.
    """
    wanted = numpy_dtype(spec)
    if wanted is None:
        raise UnusableSamples(
            f"the model's input {spec} takes {spec.dtype}, which packlight cannot feed; "
            "only numbers and booleans are supported"
        )
    if dtype.kind not in "fiub" or (dtype.kind == "f" and wanted.kind != "f"):
        raise UnusableSamples(
            f"{source}: '{spec.name}' holds {'text' if dtype.kind in 'SU' else dtype}, but the "
            f"model expects {spec}; "
            "convert the array to that type"
        )


def cast(block: Array, spec: TensorSpec, indices: Sequence[int], *, source: str) -> Array:
    """The block [len(indices), ...] in the input's type, without a loss that matters.

    Raises UnusableSamples naming tensor and sample: NaN, infinity, or a whole number that
    the input's type cannot hold.
    """
    wanted = numpy_dtype(spec)
    assert wanted is not None, "check_type comes first"
    if block.dtype.kind == "f":
        _refuse_unless(
            np.isfinite(block), block, spec, indices, source, "correct or remove this sample"
        )
    elif block.dtype.kind in "iu" and block.size:
        _refuse_unless(
            _holds(block, wanted),
            block,
            spec,
            indices,
            source,
            f"{spec.dtype} cannot hold that number; the model expects {spec}",
        )
    with np.errstate(over="ignore"):
        result = np.ascontiguousarray(block, dtype=wanted)
    if wanted.kind == "f" and wanted != block.dtype:
        _refuse_unless(
            np.isfinite(result),
            block,
            spec,
            indices,
            source,
            f"that is too large for {spec.dtype}; the model expects {spec}",
        )
    return _as_bfloat16(result) if spec.dtype == "bfloat16" else result


def _holds(block: Array, wanted: np.dtype[np.generic]) -> Array:
    """Which whole numbers the type holds exactly."""
    if wanted.kind == "b":
        low, high = 0, 1
    elif wanted.kind == "f":
        high = 2 ** (
            int(np.finfo(wanted.name).nmant) + 1
        )  # beyond it, some whole numbers are missing
        low = -high
    else:
        low, high = int(np.iinfo(wanted.name).min), int(np.iinfo(wanted.name).max)
    result: Array = (block >= low) & (block <= high)
    return result


def _refuse_unless(
    good: Array, block: Array, spec: TensorSpec, indices: Sequence[int], source: str, advice: str
) -> None:
    if good.all():
        return
    bad = ~good.reshape(len(good), -1)
    row = int(np.argmax(bad.any(axis=1)))
    value = block.reshape(len(block), -1)[row][bad[row]][0]
    name = "NaN" if value != value else str(value)
    many = int(bad[row].sum())
    times = f"{many} of its values" if many > 1 else "1 of its values"
    raise UnusableSamples(
        f"{source}: sample {indices[row]} of '{spec.name}' holds {name} ({times}); {advice}"
    )


def _as_bfloat16(block: Array) -> Array:
    """The upper halves of the float32 bits, rounded to nearest even, as uint16."""
    bits = np.ascontiguousarray(block, dtype=np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded >> np.uint32(16)).astype(np.uint16)


@dataclass(frozen=True)
class Chosen:
    """The fits of all arrays together: every one of them serves `count` samples."""

    count: int
    fits: dict[str, Fit] = field(default_factory=dict)


def choose_fits(
    shapes: dict[str, tuple[int, ...]], inputs: Sequence[TensorSpec], *, source: str
) -> Chosen:
    """One fit for each array, all with the same number of samples.

    Raises UnusableSamples where a shape doesn't fit, lengths differ or there are no samples.
    """
    options: dict[str, list[Fit]] = {}
    for spec in inputs:
        if spec.name not in shapes:
            continue
        shape = shapes[spec.name]
        options[spec.name] = fits_of(shape, spec)
        if not options[spec.name]:
            raise UnusableSamples(
                f"{source}: '{spec.name}' has shape {list(shape)}, but the model expects {spec}; "
                f"give samples along the first axis, {_advice(spec)}"
            )
    counts = [fit.count for fits in options.values() for fit in fits if fit.count is not None]
    for count in dict.fromkeys(counts):
        fits = {name: _first_of(found, count) for name, found in options.items()}
        chosen = {name: fit for name, fit in fits.items() if fit is not None}
        if len(chosen) == len(options):
            if count == 0:
                raise UnusableSamples(f"{source} holds zero samples; give at least one")
            return Chosen(count, chosen)
    if not counts:  # single numbers only: that is one sample
        return Chosen(1, {name: fits[0] for name, fits in options.items()})
    lengths = ", ".join(f"'{name}' {shapes[name][0]}" for name in options if shapes[name])
    raise UnusableSamples(
        f"{source}: the arrays hold different numbers of samples ({lengths}); "
        "give one sample of every input for each index of the first axis"
    )


def _first_of(fits: Sequence[Fit], count: int) -> Fit | None:
    return next((fit for fit in fits if fit.count in (count, None)), None)


def _advice(spec: TensorSpec) -> str:
    def text(sizes: Sequence[int | str | None]) -> str:
        return f"[samples, {', '.join(str(size or '?') for size in sizes)}]".replace(", ]", "]")

    whole = text(spec.shape)
    if not spec.shape or batch_axis(spec) == 1 or math.prod(_known(spec.shape)) == 0:
        return f"as {whole}"
    return f"as {text(spec.shape[1:])} or {whole}"


def _known(shape: Shape) -> list[int]:
    return [size for size in shape if isinstance(size, int) and size > 0]
