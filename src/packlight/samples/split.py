"""Divides samples into those for calibration, for searching and for the proof."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from packlight.errors import UnusableSamples
from packlight.samples.protocol import Array, Fingerprinted, Samples

MOST_CALIBRATION = 512
MOST_SEARCH = 1024
MOST_HELD_OUT = 512
_READ_AT_ONCE = 64


@dataclass(frozen=True)
class Split:
    """Indices of samples, in order; no sample, and no copy of one, is in two parts."""

    calibration: tuple[int, ...]
    search: tuple[int, ...]
    proof: tuple[int, ...]


def split_samples(samples: Samples, *, seed: int = 0, training: bool = False) -> Split:
    """Three parts that have no sample in common, drawn at random from a seed.

    A quarter each for calibration, up to 512, and for search, up to 1024; the rest for the proof.
    training: calibration trains too, and gets seven tenths of them instead.
    Classes are spread evenly where labels are whole numbers. Exact duplicates stay together,
    since a proof on a sample that was used before proves nothing. Three different samples give
    one to each part, two give one to calibration and one to the proof, one goes to calibration.
    Raises UnusableSamples where there are no samples.
    """
    count = len(samples)
    if count == 0:
        raise UnusableSamples(f"{samples.source}: there are zero samples; give at least one")
    groups = _groups_of_equal(samples)
    order = _spread(groups, samples.labels, np.random.default_rng(seed))
    wanted_calibration = min(MOST_CALIBRATION, max(1, count // 4))
    wanted_search = min(MOST_SEARCH, max(1, count // 4)) if len(groups) > 2 else 0
    if training:
        wanted_calibration = max(1, int(0.7 * count))
        wanted_search = min(MOST_SEARCH, max(1, count * 3 // 20)) if len(groups) > 2 else 0
    calibration, order = _take(groups, order, wanted_calibration, leave=min(2, len(groups) - 1))
    search, order = _take(groups, order, wanted_search, leave=1)
    proof = [index for group in order for index in groups[group]]
    return Split(tuple(sorted(calibration)), tuple(sorted(search)), tuple(sorted(proof)))


def hold_out(indices: Sequence[int], *, seed: int = 0) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two parts of samples to train with: those that only tell when it no longer gains, the rest.

    The first is a tenth, up to 512. Nothing may be fitted on it: what is at its best there before
    training has nothing to gain.
    """
    order = np.random.default_rng(seed).permutation(np.asarray(indices))
    count = min(MOST_HELD_OUT, len(order) // 10)
    apart, rest = ([int(index) for index in part] for part in (order[:count], order[count:]))
    return tuple(apart), tuple(rest)


def _groups_of_equal(samples: Samples) -> list[list[int]]:
    """Indices of equal samples together, in the order of their first."""
    groups: dict[bytes, list[int]] = {}
    for index, fingerprint in enumerate(fingerprints_of(samples)):
        groups.setdefault(fingerprint, []).append(index)
    return list(groups.values())


def fingerprints_of(samples: Samples) -> Sequence[bytes]:
    """A hash of each sample: equal samples have equal ones."""
    if isinstance(samples, Fingerprinted):
        return samples.fingerprints(range(len(samples)))
    found = []
    for start in range(0, len(samples), _READ_AT_ONCE):
        indices = range(start, min(start + _READ_AT_ONCE, len(samples)))
        feeds = samples.read(indices)
        for row in range(len(indices)):
            digest = hashlib.blake2b(digest_size=16)
            for name in sorted(feeds):
                digest.update(np.ascontiguousarray(feeds[name][row]).tobytes())
            found.append(digest.digest())
    return found


def _spread(
    groups: Sequence[Sequence[int]], labels: Array | None, generator: np.random.Generator
) -> list[int]:
    """A random order of the groups in which every stretch has about its share of each class."""
    order = generator.permutation(len(groups))
    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iub":
        return [int(group) for group in order]
    classes = np.asarray(labels)[[groups[group][0] for group in order]]
    places = np.empty(len(order))
    for label in np.unique(classes):
        members = np.flatnonzero(classes == label)
        places[members] = (np.arange(len(members)) + generator.random()) / len(members)
    return [int(order[place]) for place in np.argsort(places, kind="stable")]


def _take(
    groups: Sequence[Sequence[int]], order: Sequence[int], wanted: int, *, leave: int
) -> tuple[list[int], list[int]]:
    """The first groups that fit into `wanted` samples, and the order of those that are left.

    `leave` groups at least are left. Many copies of one sample that don't fit are left too,
    for the proof; where nothing fits, the smallest group has to do.
    """
    taken: list[int] = []
    left = list(order)
    for group in order:
        if len(left) > leave and len(taken) + len(groups[group]) <= wanted:
            taken += groups[group]
            left.remove(group)
        if len(taken) >= wanted:
            break
    if not taken and wanted and len(left) > leave:
        smallest = min(left, key=lambda group: len(groups[group]))
        left.remove(smallest)
        taken = list(groups[smallest])
    return taken, left
