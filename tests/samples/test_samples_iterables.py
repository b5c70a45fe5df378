"""Iterables and loaders as samples."""

from __future__ import annotations

import numpy as np
import pytest

from packlight.errors import UnusableSamples
from packlight.samples import open_samples
from packlight.samples.iterables import samples_from_iterable
from packlight.tensors import TensorSpec

SPEC = TensorSpec("x", "float32", ("batch", 4))
DATA = np.arange(40, dtype=np.float32).reshape(10, 4)
LABELS = np.arange(10) % 3


class Tensor:
    """Quacks like a PyTorch tensor on another device."""

    def __init__(self, array):
        self._array = array

    def detach(self):
        return self

    def cpu(self):
        return self

    def numpy(self):
        return self._array


def check(samples, labels=True):
    assert len(samples) == 10
    assert np.array_equal(samples.read(range(10))["x"], DATA)
    if labels:
        assert np.array_equal(samples.labels, LABELS)
    else:
        assert samples.labels is None


def test_single_samples_and_batches_are_stacked():
    check(open_samples(list(DATA), [SPEC]), labels=False)
    check(open_samples(iter([DATA[:3], DATA[3:7], DATA[7:]]), [SPEC]), labels=False)
    check(open_samples(({"x": row} for row in DATA), [SPEC]), labels=False)
    check(open_samples(DATA.tolist(), [SPEC]), labels=False)


def test_labels_come_behind_or_by_name():
    check(open_samples(zip(DATA, LABELS, strict=True), [SPEC]))
    pairs = [{"x": row, "label": label} for row, label in zip(DATA, LABELS, strict=True)]
    check(open_samples(pairs, [SPEC]))
    check(open_samples([({"x": DATA}, LABELS)], [SPEC]))


def test_a_loader_of_tensors_is_read_in_batches():
    batches = [[Tensor(DATA[i : i + 4]), Tensor(LABELS[i : i + 4])] for i in (0, 4, 8)]
    check(open_samples(batches, [SPEC]))
    check(open_samples({"x": Tensor(DATA), "labels": Tensor(LABELS)}, [SPEC]))
    check(open_samples(Tensor(DATA), [SPEC]), labels=False)


def test_tuples_feed_several_inputs_in_order():
    inputs = (SPEC, TensorSpec("y", "float32", ("batch", 1)))
    items = [(row, row[:1], label) for row, label in zip(DATA, LABELS, strict=True)]
    samples = open_samples(items, inputs)
    check(samples)
    assert np.array_equal(samples.read([3])["y"], DATA[3:4, :1])
    assert np.array_equal(
        open_samples([item[:2] for item in items], inputs).read([3])["x"], DATA[3:4]
    )


def test_a_label_is_not_mistaken_for_an_input_that_can_be_filled_in():
    inputs = (
        TensorSpec("ids", "int64", ("batch", "seq")),
        TensorSpec("mask", "int64", ("batch", "seq")),
    )
    ids = np.ones((2, 5), np.int64)
    labelled = open_samples([(ids, np.array([1, 0]))], inputs)
    assert labelled.labels.tolist() == [1, 0] and labelled.read([0])["mask"].tolist() == [[1] * 5]
    masked = open_samples([(ids, 0 * ids)], inputs)
    assert masked.labels is None and masked.read([0])["mask"].tolist() == [[0] * 5]


def test_much_is_spooled_to_a_file_and_read_back(monkeypatch):
    samples = samples_from_iterable(zip(DATA, LABELS, strict=True), [SPEC], memory_bytes=64)
    check(samples)
    root = samples.columns[0].array
    while isinstance(root, np.ndarray):
        root = root.base
    assert "mmap" in repr(type(getattr(root, "obj", root)))


def test_a_buffer_that_is_used_again_is_copied():
    def loader():
        buffer = np.empty((1, 4), np.float32)
        for row in DATA:
            buffer[:] = row
            yield buffer

    check(open_samples(loader(), [SPEC]), labels=False)


def test_an_endless_iterable_is_cut_with_a_note():
    def endless():
        while True:
            yield DATA[0]

    samples = samples_from_iterable(endless(), [SPEC], most_samples=50)
    assert len(samples) == 50
    assert any("first 50 samples" in note for note in samples.notes)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "zero samples"),
        ([DATA[0], DATA[0, :3]], r"sample 1: 'x' has shape \[3\].*pad or crop"),
        ([DATA[0], DATA[0].astype(np.float64)], "sample 1: 'x' holds float64"),
        ([(DATA, LABELS[:9])], "sample 0 has 9 labels for 10 samples"),
        ([(DATA[0], 1), DATA[1]], "sample 1 has other parts"),
        (["a.png"], "no array of numbers"),
        ([(DATA[0], 1, 2, 3)], r"4 parts, but the model expects x: float32\[batch, 4\]"),
        ([{"y": DATA, "z": DATA}], "nothing for the model, which expects x"),
        ([DATA, np.full((1, 4), np.nan, np.float32)], "sample 10 of 'x' holds NaN"),
        ([np.ones(5)], r"shape \[1, 5\], but the model expects x: float32\[batch, 4\]"),
    ],
)
def test_items_that_do_not_fit_are_refused(items, message):
    with pytest.raises(UnusableSamples, match=message):
        open_samples(items, [SPEC])


def test_a_dataset_that_is_only_indexed_is_read_by_its_length():
    class Dataset:
        def __len__(self):
            return 10

        def __getitem__(self, index):
            return DATA[index % 10], LABELS[index % 10]  # never raises: the length ends it

    check(open_samples(Dataset(), [SPEC]))
