"""Arrays as samples: names, shapes, types, labels, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from packlight.errors import UnusableSamples, WrongUsage
from packlight.samples import Samples, batches_of, feeds_of, open_samples
from packlight.tensors import TensorSpec

FEATURES = TensorSpec("x", "float32", ("batch", 4))
PICTURE = TensorSpec("image", "float32", ("batch", 3, 5, 6))
SILERO = (
    TensorSpec("input", "float32", (None, None)),
    TensorSpec("state", "float32", (2, None, 128)),
    TensorSpec("sr", "int64", ()),
)


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_rows_are_read_and_batched_with_the_last_batch_short():
    data = numbers(70, 4)
    samples = open_samples({"x": data, "labels": np.arange(70)}, [FEATURES])
    assert isinstance(samples, Samples)
    assert len(samples) == 70
    assert np.array_equal(samples.read([3, 1])["x"], data[[3, 1]])
    assert np.array_equal(samples.labels, np.arange(70))
    runs = list(batches_of(samples, range(70), [FEATURES], batch=32))
    assert [run.rows for run in runs] == [32, 32, 6]
    assert np.array_equal(np.concatenate([run.feeds["x"] for run in runs]), data)


def test_a_single_array_of_any_name_does_for_a_single_input():
    data = numbers(3, 4)
    for given in (data, {"whatever": data}, {"x": data}):
        assert np.array_equal(open_samples(given, [FEATURES]).read([2])["x"], data[2:3])
    # An input that has a natural value doesn't count: the array is for the other one.
    window = numbers(3, 512)
    assert np.array_equal(open_samples(window, SILERO).read([1])["input"], window[1:2])


def test_a_fixed_batch_of_one_is_fed_one_by_one():
    spec = TensorSpec("x", "float32", (1, 4))
    data = numbers(3, 4)
    feeds = list(feeds_of(open_samples(data, [spec]), [2, 0], [spec]))
    assert [feed["x"].shape for feed in feeds] == [(1, 4), (1, 4)]
    assert np.array_equal(feeds[0]["x"], data[2:3])


def test_a_fixed_batch_is_filled_up_and_trimmed():
    spec = TensorSpec("x", "float32", (4, 2))
    data = numbers(6, 2)
    runs = list(batches_of(open_samples(data, [spec]), range(6), [spec]))
    assert [run.rows for run in runs] == [4, 2]
    assert np.array_equal(runs[1].feeds["x"], data[[4, 5, 5, 5]])
    assert np.array_equal(runs[1].trim(runs[1].feeds["x"]), data[4:])


def test_inner_axes_that_count_parts_of_samples_are_trimmed_by_sample():
    spec = TensorSpec("x", "float32", ("n", 2))
    (run,) = batches_of(open_samples(numbers(3, 2), [spec]), range(3), [spec])
    tokens_of_all = numbers(3 * 5, 2)
    assert np.array_equal(run.trim(tokens_of_all), tokens_of_all)
    fixed = TensorSpec("x", "float32", (4, 2))
    runs = list(batches_of(open_samples(numbers(6, 2), [fixed]), range(6), [fixed]))
    tokens = numbers(4 * 5, 2)
    assert np.array_equal(runs[1].trim(tokens), tokens[:10])
    assert runs[1].trim(numbers(7, 2)).shape == (7, 2)  # another axis than that of samples


def test_an_axis_more_is_a_whole_feed_for_each_sample():
    spec = TensorSpec("x", "float32", ("time", 4))
    data = numbers(3, 7, 4)
    runs = list(batches_of(open_samples(data, [spec]), range(3), [spec]))
    assert [run.feeds["x"].shape for run in runs] == [(7, 4)] * 3
    assert not runs[0].stacked
    assert np.array_equal(runs[2].feeds["x"], data[2])
    assert runs[0].trim(np.zeros((9, 2))).shape == (9, 2)


def test_missing_states_and_rates_are_filled_and_noted():
    samples = open_samples({"input": numbers(2, 512)}, SILERO)
    feeds = next(feeds_of(samples, [1], SILERO))
    assert feeds["input"].shape == (1, 512)
    assert feeds["state"].shape == (2, 1, 128) and not feeds["state"].any()
    assert isinstance(feeds["sr"], np.ndarray) and feeds["sr"] == 16000
    assert feeds["sr"].dtype == np.int64
    assert any("'state'" in note and "zeros" in note for note in samples.notes)
    assert any("'sr'" in note and "16000" in note for note in samples.notes)


def test_caches_start_empty_and_masks_cover_what_there_is():
    inputs = (
        TensorSpec("input_ids", "int64", ("batch", "seq")),
        TensorSpec("attention_mask", "int64", ("batch", "past_seq + seq")),
        TensorSpec("position_ids", "int64", ("batch", "seq")),
        TensorSpec("past_0", "float32", (2, "batch", 4, "past_seq", 8)),
    )
    samples = open_samples({"input_ids": np.full((3, 5), 7)}, inputs)
    feeds = next(feeds_of(samples, [0], inputs))
    assert feeds["past_0"].shape == (2, 1, 4, 0, 8)
    assert feeds["attention_mask"].tolist() == [[1] * 5]
    assert feeds["position_ids"].tolist() == [[0, 1, 2, 3, 4]]


def test_a_state_may_be_given_once_or_with_every_sample():
    state = numbers(2, 1, 128)
    once = open_samples({"input": numbers(3, 512), "state": state, "sr": 8000}, SILERO)
    feeds = next(feeds_of(once, [2], SILERO))
    assert np.array_equal(feeds["state"], state) and feeds["sr"] == 8000
    each = numbers(3, 2, 128)
    samples = open_samples({"input": numbers(3, 512), "state": each}, SILERO)
    feeds = next(feeds_of(samples, [2], SILERO))
    assert np.array_equal(feeds["state"][:, 0], each[2])


def test_channels_are_moved_and_missing_axes_of_one_added():
    data = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    samples = open_samples(data, [PICTURE])
    assert np.array_equal(samples.read([1])["image"][0], data[1].transpose(2, 0, 1))
    assert any("channels last" in note for note in samples.notes)
    assert any("0..255" in note for note in samples.notes)
    grey = TensorSpec("image", "float32", ("batch", 1, 5, 6))
    assert open_samples(numbers(2, 5, 6), [grey]).read([0])["image"].shape == (1, 1, 5, 6)


def test_preprocessing_applies_to_8_bit_pictures_only():
    data = np.full((2, 5, 6, 3), 255, np.uint8)
    read = open_samples(data, [PICTURE], preprocess="imagenet").read([0])["image"]
    expected = (1 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225]
    assert np.allclose(read[0, :, 0, 0], expected, atol=1e-5)
    with pytest.raises(WrongUsage, match="imagenet is for pictures"):
        open_samples(numbers(2, 3, 5, 6), [PICTURE], preprocess="imagenet")


def test_types_are_converted_without_loss():
    spec = TensorSpec("ids", "int32", ("batch", 2))
    assert open_samples(np.array([[1, 2]], np.int64), [spec]).read([0])["ids"].dtype == np.int32
    assert open_samples(np.ones((1, 4)), [FEATURES]).read([0])["x"].dtype == np.float32
    with pytest.raises(UnusableSamples, match=r"sample 0 of 'ids' holds 4294967296"):
        open_samples(np.array([[1, 2**32]]), [spec])
    with pytest.raises(UnusableSamples, match=r"float64.*expects ids: int32\[batch, 2\]"):
        open_samples(np.array([[1.0, 2.0]]), [spec])
    with pytest.raises(UnusableSamples, match="sample 0 of 'x' holds 16777217"):
        open_samples(np.full((1, 4), 2**24 + 1), [FEATURES])
    with pytest.raises(UnusableSamples, match="no array of numbers"):
        open_samples({"x": np.array([["a"] * 4])}, [FEATURES])


def test_bfloat16_is_fed_as_its_bits():
    spec = TensorSpec("x", "bfloat16", ("batch", 2))
    read = open_samples(np.array([[1.0, -2.0]], np.float32), [spec]).read([0])["x"]
    assert read.dtype == np.uint16 and read.tolist() == [[0x3F80, 0xC000]]


@pytest.mark.parametrize(("value", "name"), [(np.nan, "NaN"), (np.inf, "inf"), (-np.inf, "-inf")])
def test_nan_and_infinity_are_refused_by_tensor_and_sample(value, name):
    data = numbers(50, 4)
    data[37, 2] = value
    with pytest.raises(UnusableSamples, match=f"sample 37 of 'x' holds {name}"):
        open_samples({"x": data}, [FEATURES])


def test_a_number_too_large_for_float16_is_refused():
    spec = TensorSpec("x", "float16", ("batch", 1))
    with pytest.raises(UnusableSamples, match=r"sample 1 of 'x' holds 100000.0.*too large"):
        open_samples(np.array([[1.0], [1e5]]), [spec])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"x": np.ones((3, 5))}, r"shape \[3, 5\], but the model expects x: float32\[batch, 4\]"),
        ({"x": np.ones((0, 4))}, "zero samples"),
        ({}, "no arrays.*expects x: float32"),
        ({"a": np.ones((3, 4)), "b": np.ones(3)}, r"'a', 'b' but nothing for x: float32"),
        ({"x": np.ones((3, 4)), "labels": np.ones(2)}, "'labels' has 2 entries for 3 samples"),
        ({"x": np.ones((3, 4)), "labels": np.array([0, np.nan, 1])}, "sample 1 is NaN"),
        (7, "int cannot be read as samples"),
        (None, "NoneType cannot be read as samples"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_is_expected(data, message):
    with pytest.raises(UnusableSamples, match=message):
        open_samples(data, [FEATURES])


def test_inputs_of_different_lengths_are_refused():
    inputs = (FEATURES, TensorSpec("y", "float32", ("batch", 2)))
    with pytest.raises(UnusableSamples, match=r"different numbers of samples.*'x' 3, 'y' 2"):
        open_samples({"x": np.ones((3, 4)), "y": np.ones((2, 2))}, inputs)


def test_a_missing_input_that_cannot_be_guessed_is_refused():
    inputs = (FEATURES, TensorSpec("score_threshold", "float32", ()))
    with pytest.raises(UnusableSamples, match=r"nothing for score_threshold: float32\[\]"):
        open_samples({"x": np.ones((3, 4))}, inputs)
    with pytest.raises(UnusableSamples, match="takes str"):
        open_samples(np.ones((3, 4)), [TensorSpec("text", "str", ("batch", 4))])


def test_more_arrays_than_inputs_are_noted():
    samples = open_samples({"x": np.ones((3, 4)), "ids": np.arange(3)}, [FEATURES])
    assert any("'ids'" in note and "not used" in note for note in samples.notes)


def test_inputs_with_different_fixed_batches_ask_for_whole_feeds():
    inputs = (TensorSpec("a", "float32", (2, 3)), TensorSpec("b", "float32", (4, 3)))
    samples = open_samples({"a": np.ones((8, 3)), "b": np.ones((8, 3))}, inputs)
    with pytest.raises(UnusableSamples, match="whole feeds"):
        list(feeds_of(samples, range(8), inputs))


def test_samples_that_do_not_fit_another_model_are_refused_when_fed():
    samples = open_samples(np.ones((3, 4)), [FEATURES])
    with pytest.raises(UnusableSamples, match="nothing for the input 'image'"):
        list(feeds_of(open_samples(samples, [PICTURE]), [0], [PICTURE]))
