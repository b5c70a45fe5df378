"""Samples from a Python iterable or a PyTorch DataLoader: read once, then kept in a spool."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Number
from typing import IO, Any

import numpy as np

from packlight.errors import UnusableSamples
from packlight.samples.archives import map_spool, spool_file
from packlight.samples.arrays import LABELS, ArraySamples, samples_from_arrays
from packlight.samples.fitting import expectations
from packlight.samples.missing import required_inputs
from packlight.samples.naming import batch_axis
from packlight.samples.protocol import Array
from packlight.tensors import TensorSpec

MEMORY_BYTES = 256 << 20
MOST_SAMPLES = 1_000_000
_MOST_BYTES = 64 << 30
_LABEL_NAMES = (LABELS, "label")


class Spool:
    """Blocks of equal rows, appended one by one: in memory at first, then in a temporary file."""

    def __init__(self, *, memory_bytes: int) -> None:
        self._memory_bytes = memory_bytes
        self._blocks: list[Array] = []
        self._held = 0
        self._file: IO[bytes] | None = None
        self.rows = 0
        self.row_shape: tuple[int, ...] = ()
        self.dtype: np.dtype[Any] = np.dtype(np.float32)

    def append(self, block: Array) -> None:
        """Adds rows [k, ...] of the same shape and type as those before."""
        if self.rows == 0:
            self.row_shape, self.dtype = block.shape[1:], block.dtype
        self.rows += len(block)
        # A copy: loaders often fill the same buffer again for the next batch.
        self._blocks.append(np.array(block, dtype=self.dtype, order="C", copy=True))
        self._held += block.nbytes
        if self._held > self._memory_bytes:
            self._write()

    def _write(self) -> None:
        if self._file is None:
            self._file = spool_file(self._held)
        try:
            for block in self._blocks:
                self._file.write(block.data)
        except OSError as error:
            raise UnusableSamples(
                f"the samples don't fit into the temporary folder ({error.strerror}); make room, "
                "set TMPDIR, or give fewer samples"
            ) from error
        self._blocks, self._held = [], 0

    def finish(self) -> Array:
        """All rows as one array, mapped from the file where there is one."""
        if self._file is None:
            empty = np.empty((0, *self.row_shape), self.dtype)
            return np.concatenate(self._blocks) if self._blocks else empty
        self._write()
        with self._file as file:
            return map_spool(file, (self.rows, *self.row_shape), self.dtype)

    def close(self) -> None:
        """Lets go of the temporary file where the samples turned out unusable."""
        if self._file is not None:
            self._file.close()


def samples_from_iterable(
    items: Iterable[Any],
    inputs: Sequence[TensorSpec],
    *,
    preprocess: str | None = None,
    memory_bytes: int = MEMORY_BYTES,
    most_samples: int = MOST_SAMPLES,
) -> ArraySamples:
    """Every item of the iterable, single samples or batches, read once and kept.

    An item is an array, a dictionary of arrays by input, a tuple with an array for each
    input, or one of these with a label (a batch: labels) behind it.
    memory_bytes: up to here samples stay in memory, more goes into a temporary file.
    Raises UnusableSamples where items don't fit the inputs or differ in shape.
    """
    place = "the iterable that was passed"
    spools: dict[str, Spool] = {}
    notes = []
    try:
        count = 0
        for number, item in enumerate(items):
            blocks = _blocks_of(item, inputs, number)
            for name, block in blocks.items():
                spool = spools.setdefault(
                    name, Spool(memory_bytes=memory_bytes // max(1, len(blocks)))
                )
                _check_alike(name, block, spool, number)
                spool.append(block)
            if set(blocks) != set(spools):
                odd = ", ".join(f"'{name}'" for name in sorted(set(blocks) ^ set(spools)))
                raise UnusableSamples(
                    f"sample {number} has other parts than those before ({odd}); "
                    "give the same parts with every sample"
                )
            count = max(spool.rows for spool in spools.values())
            size = sum(
                s.rows * int(np.prod(s.row_shape)) * s.dtype.itemsize for s in spools.values()
            )
            if count >= most_samples or size > _MOST_BYTES:
                notes.append(f"only the first {count} samples of the iterable were read")
                break
        if count == 0:
            raise UnusableSamples(
                "the iterable holds zero samples (one that was used up before gives none); "
                f"the model expects {expectations(inputs)}"
            )
        arrays = {name: spool.finish() for name, spool in spools.items()}
    finally:
        for spool in spools.values():
            spool.close()
    samples = samples_from_arrays(arrays, inputs, place=place, preprocess=preprocess)
    return _with_notes(samples, notes)


def _with_notes(samples: ArraySamples, notes: Sequence[str]) -> ArraySamples:
    return replace(samples, notes=(*samples.notes, *notes)) if notes else samples


def _check_alike(name: str, block: Array, spool: Spool, number: int) -> None:
    if spool.rows and block.shape[1:] != spool.row_shape:
        raise UnusableSamples(
            f"sample {number}: '{name}' has shape {list(block.shape[1:])}, but those before have "
            f"{list(spool.row_shape)}; pad or crop all samples to one shape"
        )
    if spool.rows and block.dtype != spool.dtype:
        raise UnusableSamples(
            f"sample {number}: '{name}' holds {block.dtype}, but those before hold {spool.dtype}; "
            "give all samples in one type"
        )


def _blocks_of(item: Any, inputs: Sequence[TensorSpec], number: int) -> dict[str, Array]:
    """The item's arrays with the samples' axis first, {input: [k, ...], "labels": [k]}."""
    parts, label = _parts_of(item, inputs, number)
    specs = {spec.name: spec for spec in inputs}
    blocks = {}
    for name, part in parts.items():
        array = to_array(part, label=f"sample {number}: '{name}'")
        spec = specs.get(name)
        if spec is None:
            continue
        stacked = array.ndim > len(spec.shape) or (
            array.ndim == len(spec.shape) > 0 and batch_axis(spec) == 0
        )
        blocks[name] = array if stacked else array[None]
    if not blocks:
        raise UnusableSamples(
            f"sample {number} has nothing for the model, which expects {expectations(inputs)}"
        )
    if label is not None:
        labels = to_array(label, label=f"sample {number}: its label")
        rows = len(next(iter(blocks.values())))
        labels = labels.reshape(1) if labels.ndim == 0 else labels
        if len(labels) != rows:
            raise UnusableSamples(
                f"sample {number} has {len(labels)} labels for {rows} "
                f"sample{'s' if rows != 1 else ''}; give one label a sample"
            )
        blocks[LABELS] = labels
    return blocks


def _parts_of(
    item: Any, inputs: Sequence[TensorSpec], number: int
) -> tuple[dict[str, Any], Any | None]:
    names = [spec.name for spec in inputs]
    required = [spec.name for spec in required_inputs(inputs)]
    if isinstance(item, Mapping):
        parts = {str(name): part for name, part in item.items()}
        labels = [parts.pop(name) for name in _LABEL_NAMES if name in parts and name not in names]
        return _named(parts, required, names), labels[0] if labels else None
    if isinstance(item, tuple | list) and not all(isinstance(part, Number) for part in item):
        if len(item) == 2 and isinstance(item[0], Mapping):
            parts, _ = _parts_of(item[0], inputs, number)
            return parts, item[1]
        for wanted in (names, required):
            if len(item) == len(wanted) and not _ends_with_label(item, inputs, required):
                return dict(zip(wanted, item, strict=True)), None
        for wanted in (names, required):
            if len(item) == len(wanted) + 1:
                return dict(zip(wanted, item, strict=False)), item[-1]
        raise UnusableSamples(
            f"sample {number} has {len(item)} parts, but the model expects {expectations(inputs)} "
            "(and a label, if any, behind them)"
        )
    if len(required) != 1:
        raise UnusableSamples(
            f"sample {number} is a single array, but the model expects {expectations(inputs)}; "
            "give a dictionary with an array for each"
        )
    return {required[0]: item}, None


def _ends_with_label(
    item: Sequence[Any], inputs: Sequence[TensorSpec], required: Sequence[str]
) -> bool:
    """Whether a tuple as long as the inputs is rather the required ones and a label."""
    if len(item) != len(required) + 1:
        return False
    rank = len(inputs[-1].shape)
    return np.ndim(item[-1]) <= 1 and np.ndim(item[-1]) != rank


def _named(parts: dict[str, Any], required: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    if len(parts) == 1 and len(required) == 1 and not set(parts) & set(names):
        return {required[0]: next(iter(parts.values()))}
    return parts


def to_array(value: Any, *, label: str) -> Array:
    """A NumPy array of what may be a PyTorch tensor, a list or a number.

    Raises UnusableSamples where it is none of these.
    """
    try:
        if hasattr(value, "detach"):  # a PyTorch tensor: off its device, out of its graph
            value = value.detach().cpu().numpy()
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).split("\n", 1)[0]
        raise UnusableSamples(f"{label} is no array of numbers ({reason})") from error
    if array.dtype.kind not in "fiub":
        kind = type(value).__name__ if array.dtype.hasobject else str(array.dtype)
        raise UnusableSamples(f"{label} is no array of numbers but {kind}; give NumPy arrays")
    return array
