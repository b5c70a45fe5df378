"""Golden samples: a few held-out samples with what both models gave for them, as `golden.npz`.

An array for each sample and each tensor: `s0_input0`, `s0_original0`, `s0_compressed0`. The names
of tensors, which come from strangers, stand in the manifest. Nothing is compressed or pickled, so
that a browser reads the file with a few lines; the same samples give the same bytes.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from packlight.errors import RuntimeFailure, UnusableProof, UnusableSamples
from packlight.measure.outputs import Comparison, add_to_comparison
from packlight.proof.manifest import GOLDEN, GoldenEntry
from packlight.proof.tolerance import OutputPromise, promise_output
from packlight.runtime import Process
from packlight.samples import Samples, batches_of, feeds_of
from packlight.samples.archives import read_npz
from packlight.tensors import TensorSpec

Arrays = dict[str, NDArray[Any]]

MOST_SAMPLES = 8
MOST_BYTES = 1 << 20
"""Of all golden samples with their outputs; a larger one comes alone, up to `MOST_OF_ONE`."""

MOST_OF_ONE = 8 << 20
MOST_FILE = 16 << 20
"""Of a `golden.npz` that is read."""

SEEN_FOR_TOLERANCE = 32
_FIRST_DAY = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class GoldenSample:
    """One run: what goes in, and what each model gave for it."""

    feeds: Arrays
    original: Arrays
    compressed: Arrays


@dataclass(frozen=True)
class Golden:
    """Golden samples, and what is promised of each output."""

    samples: tuple[GoldenSample, ...]
    promises: tuple[OutputPromise, ...]

    @property
    def entry(self) -> GoldenEntry:
        """What the manifest says of them."""
        return GoldenEntry(len(self.samples), tuple(self.samples[0].feeds), self.promises)


def take_golden(
    original: Path,
    compressed: Path,
    samples: Samples,
    indices: Sequence[int],
    inputs: Sequence[TensorSpec],
) -> Golden:
    """Run both files on a few of these samples, spread evenly, one at a time and on one thread.

    Raises UnusableProof where a single sample with its outputs is too large to travel, and
    RuntimeFailure where onnxruntime does not run a file.
    """
    taken: list[GoldenSample] = []
    held = 0
    with Process() as process:
        first, second = (process.load(path) for path in (original, compressed))
        for index in _spread_evenly(indices, MOST_SAMPLES):
            feeds = next(iter(feeds_of(samples, (index,), inputs, batch=1)))
            one = GoldenSample(dict(feeds), first.run(feeds), second.run(feeds))
            parts = (one.feeds, one.original, one.compressed)
            size = sum(array.nbytes for part in parts for array in part.values())
            if not taken and size > MOST_OF_ONE:
                raise UnusableProof(
                    f"one sample with its outputs has {size} bytes, more than the {MOST_OF_ONE} "
                    "that may lie in a folder"
                )
            if taken and held + size > MOST_BYTES:
                break
            taken.append(one)
            held += size
    return Golden(tuple(taken), _promise(original, compressed, samples, indices, inputs))


def _promise(
    original: Path,
    compressed: Path,
    samples: Samples,
    indices: Sequence[int],
    inputs: Sequence[TensorSpec],
) -> tuple[OutputPromise, ...]:
    """Run both files by their kernels and as they are written; give what follows for outputs."""
    runs = list(batches_of(samples, _spread_evenly(indices, SEEN_FOR_TOLERANCE), inputs))
    found: list[list[Arrays]] = []
    for path, optimize in ((original, True), (original, False), (compressed, True),
                           (compressed, False)):  # fmt: skip
        try:
            with Process() as process:
                session = process.load(path, optimize=optimize)
                given = [(run, session.run(run.feeds)) for run in runs]
                found.append([{n: run.trim(a) for n, a in one.items()} for run, one in given])
        except RuntimeFailure:
            if optimize:
                raise
            found.append([])  # some operators exist in their optimized form only
    comparison = Comparison()
    for run, first, second in zip(runs, found[0], found[2], strict=True):
        comparison = add_to_comparison(comparison, first, second, rows=run.rows)
    return tuple(
        promise_output(
            record,
            [one[record.name] for one in found[2]],
            [one[record.name] for one in found[3]],
            [one[record.name] for one in found[0]],
            [one[record.name] for one in found[1]],
        )
        for record in comparison.outputs
    )


def write_golden(golden: Golden, folder: Path) -> Path:
    """Write `golden.npz` into a folder."""
    path = folder / GOLDEN
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for number, sample in enumerate(golden.samples):
            for name, array in _members(number, sample, golden.promises):
                member = zipfile.ZipInfo(f"{name}.npy", _FIRST_DAY)
                with archive.open(member, "w") as file:
                    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
                    np.lib.format.write_array(file, np.asarray(little, order="C"), (1, 0), False)
    return path


def _members(
    number: int, sample: GoldenSample, promises: Sequence[OutputPromise]
) -> Iterator[tuple[str, NDArray[Any]]]:
    for place, array in enumerate(sample.feeds.values()):
        yield f"s{number}_input{place}", array
    # Both models' outputs in one order, which need not be that of either.
    for part, outputs in (("original", sample.original), ("compressed", sample.compressed)):
        for place, promise in enumerate(promises):
            yield f"s{number}_{part}{place}", outputs[promise.name]


def read_golden(path: Path, entry: GoldenEntry) -> tuple[GoldenSample, ...]:
    """Read the samples of a `golden.npz` of which the manifest says `entry`.

    Raises UnusableProof for a file that is too large, packed, damaged, holds objects, or lacks
    an array.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        size = sum(member.file_size for member in members)
        stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
        if size > MOST_FILE or not stored:
            raise UnusableProof(
                f"{path} holds {size} bytes{'' if stored else ', packed'}: at most {MOST_FILE} are "
                "read, not packed. Compress the model again."
            )
        arrays = read_npz(path)
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile, UnusableSamples) as error:
        raise UnusableProof(f"{path} cannot be read: {error}") from None
    outputs = [promise.name for promise in entry.outputs]
    parts = {"input": entry.inputs, "original": outputs, "compressed": outputs}
    found = []
    for number in range(entry.samples):
        given: dict[str, Arrays] = {}
        for part, names in parts.items():
            wanted = {name: f"s{number}_{part}{place}" for place, name in enumerate(names)}
            missing = [member for member in wanted.values() if member not in arrays]
            if missing:
                raise UnusableProof(
                    f"{path} lacks the array {missing[0]}, which the manifest speaks of: copy the "
                    "folder again, or compress the model again."
                )
            given[part] = {name: _native(arrays[member]) for name, member in wanted.items()}
        found.append(GoldenSample(given["input"], given["original"], given["compressed"]))
    return tuple(found)


def _native(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _spread_evenly(indices: Sequence[int], most: int) -> tuple[int, ...]:
    count = min(most, len(indices))
    return tuple(int(indices[place * len(indices) // count]) for place in range(count))
