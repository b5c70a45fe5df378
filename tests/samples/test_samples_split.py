"""The three parts have nothing in common, are drawn fairly, and are the same every time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packlight.samples import generate_samples, hold_out, open_samples, split_samples
from packlight.tensors import TensorSpec

SPEC = TensorSpec("x", "float32", ("batch", 1))


def samples_of(values, labels=None):
    data = {"x": np.asarray(values, np.float32).reshape(-1, 1)}
    return open_samples(data | ({} if labels is None else {"labels": labels}), [SPEC])


def sizes(split):
    return len(split.calibration), len(split.search), len(split.proof)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, (1, 0, 0)),
        (2, (1, 0, 1)),
        (3, (1, 1, 1)),
        (4, (1, 1, 2)),
        (64, (16, 16, 32)),
        (2048, (512, 512, 1024)),
        (10_000, (512, 1024, 8464)),
    ],
)
def test_sizes(count, expected):
    assert sizes(split_samples(samples_of(np.arange(count)))) == expected


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(0, 3))
def test_every_sample_is_in_one_part_and_no_copy_in_two(values, seed):
    split = split_samples(samples_of(values), seed=seed)
    parts = [split.calibration, split.search, split.proof]
    assert sorted(index for part in parts for index in part) == list(range(len(values)))
    contents = [{values[index] for index in part} for part in parts]
    assert sum(map(len, contents)) == len(set(values))
    assert all(contents[: min(3, len(set(values)))]) or len(set(values)) < 3
    assert contents[2] or len(set(values)) == 1


def test_classes_are_spread_evenly():
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    split = split_samples(samples_of(np.arange(1000), labels))
    for part in (split.calibration, split.search, split.proof):
        shares = np.bincount(labels[list(part)]) / len(part)
        assert np.abs(shares - [0.6, 0.3, 0.1]).max() < 0.01


def test_the_seed_decides():
    samples = samples_of(np.arange(100))
    assert split_samples(samples, seed=1) == split_samples(samples, seed=1)
    assert split_samples(samples, seed=1) != split_samples(samples, seed=2)


def test_labels_that_are_no_classes_are_left_alone():
    split = split_samples(samples_of(np.arange(8), np.linspace(0, 1, 8)))
    assert sizes(split) == (2, 2, 4)


def test_generated_samples_are_split_without_being_read():
    samples = generate_samples([TensorSpec("x", "float32", (1, 3, 4096, 4096))])
    assert sizes(split_samples(samples)) == (16, 16, 32)


def test_samples_without_fingerprints_are_compared_by_content():
    class Plain:
        source, notes, labels, generated = "plain", (), None, False

        def __len__(self):
            return 8

        def read(self, indices):
            return {"x": np.array([[index % 4] for index in indices], np.float32)}

    split = split_samples(Plain())
    contents = [{i % 4 for i in part} for part in (split.calibration, split.search, split.proof)]
    assert sum(map(len, contents)) == 4 and all(contents)


@given(st.lists(st.integers(0, 10_000), max_size=60, unique=True), st.integers(0, 99))
def test_what_is_held_out_is_a_tenth_and_the_same_for_a_seed(indices: list[int], seed: int) -> None:
    apart, rest = hold_out(indices, seed=seed)
    assert sorted((*apart, *rest)) == sorted(indices)
    assert len(apart) == len(indices) // 10
    assert hold_out(indices, seed=seed) == (apart, rest)


def test_no_more_is_held_out_than_tells_enough() -> None:
    apart, rest = hold_out(range(20_000))
    assert len(apart) == 512 and len(rest) == 19_488
