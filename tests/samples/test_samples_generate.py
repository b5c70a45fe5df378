"""Made-up samples: shapes, meanings, consistency, determinism."""

from __future__ import annotations

import numpy as np
import pytest

from packlight.errors import UnusableSamples, WrongUsage
from packlight.samples import Samples, alternative_axes, feeds_of, generate_samples
from packlight.samples.noise import natural_noise
from packlight.tensors import TensorSpec

GPT2 = (
    TensorSpec("input_ids", "int32", ("batch_size", "seq_len")),
    TensorSpec("position_ids", "int32", ("batch_size", "seq_len")),
    TensorSpec("attention_mask", "int32", ("batch_size", "total_seq_len")),
    TensorSpec("past_0", "float32", (2, "batch_size", 4, "past_seq_len", 8)),
)
SILERO = (
    TensorSpec("input", "float32", (None, None)),
    TensorSpec("state", "float32", (2, None, 128)),
    TensorSpec("sr", "int64", ()),
)
WHISPER = (
    TensorSpec("input_ids", "int32", ("batch_size", "sequence_length")),
    TensorSpec("past_key_self_0", "float32", ("batch_size", 6, "past_sequence_length", 64)),
    TensorSpec("past_key_cross_0", "float32", ("batch_size", 6, 1500, 64)),
)


def first(inputs, **options):
    return next(feeds_of(generate_samples(inputs, count=2, **options), [0, 1], inputs))


def test_a_language_model_with_a_cache_gets_matching_lengths():
    feeds = first(GPT2)
    sequence, past = feeds["input_ids"].shape[1], feeds["past_0"].shape[3]
    assert feeds["past_0"].shape == (2, 1, 4, past, 8)
    assert feeds["attention_mask"].tolist() == [[1] * (past + sequence)]
    assert feeds["position_ids"].tolist() == [list(range(past, past + sequence))]
    assert feeds["input_ids"].min() >= 0 and feeds["input_ids"].max() < 100
    assert feeds["input_ids"].dtype == np.int32


def test_axes_given_by_name_hold_for_every_input():
    feeds = first(GPT2, axes={"past_seq_len": 0, "seq_len": 3})
    assert feeds["past_0"].shape[3] == 0 and feeds["attention_mask"].shape == (1, 3)
    with pytest.raises(WrongUsage, match=r"no open axis 'width'.*seq_len"):
        generate_samples(GPT2, axes={"width": 3})


def test_sums_in_axis_names_are_added_up():
    inputs = (
        TensorSpec("input_ids", "int64", ("batch", "sequence_length")),
        TensorSpec("attention_mask", "int64", ("batch", "past_sequence_length + 1")),
        TensorSpec("past.k", "float32", ("batch", 2, "past_sequence_length", 4)),
    )
    feeds = first(inputs, axes={"past_sequence_length": 5, "sequence_length": 1})
    assert feeds["attention_mask"].shape == (2, 6)
    assert feeds["past.k"].shape == (2, 2, 5, 4)


def test_sound_windows_are_512_long_and_the_rate_16_khz():
    feeds = first(SILERO)
    assert feeds["input"].shape == (1, 512) and feeds["state"].shape == (2, 1, 128)
    assert np.abs(feeds["state"]).max() <= 1 and feeds["sr"] == 16000


def test_a_model_with_an_open_batch_everywhere_gets_batches():
    feeds = first(WHISPER)
    assert feeds["past_key_cross_0"].shape == (2, 6, 1500, 64)
    assert feeds["input_ids"].shape[0] == 2


def test_scalars_bools_and_lengths_get_fitting_values():
    inputs = (
        TensorSpec("x", "float32", ("batch", 7, 3)),
        TensorSpec("score_threshold", "float32", ()),
        TensorSpec("x_lengths", "int64", ("batch",)),
        TensorSpec("attention_mask", "bool", ("batch", 7)),
        TensorSpec("use_cache_branch", "bool", (1,)),
        TensorSpec("token_type_ids", "int64", ("batch", 7)),
    )
    feeds = first(inputs)
    assert feeds["score_threshold"] == np.float32(0.5)
    assert feeds["x_lengths"].tolist() == [7]
    assert feeds["attention_mask"].dtype == bool and feeds["attention_mask"].all()
    assert not feeds["use_cache_branch"].any() and not feeds["token_type_ids"].any()


@pytest.mark.parametrize(
    ("dtype", "shape", "expected"),
    [
        ("float32", ("batch", 3, "h", "w"), (2, 3, 224, 224)),
        ("float32", (1, 257, 257, 3), (1, 257, 257, 3)),
        ("float16", ("batch", 1, 28, 28), (2, 1, 28, 28)),
        ("float32", ("N", "C", "H", "W"), (2, 3, 224, 224)),
        ("uint8", (1, None, None, 3), (1, 224, 224, 3)),
        ("float32", ("batch", 640), (2, 640)),
        ("float32", ("batch", 80, "time"), (2, 80, 16)),
        ("float64", (4, 3), (4, 3)),
        ("float32", ("time", 3), (16, 3)),
    ],
)
def test_shapes_and_types_fit(dtype, shape, expected):
    value = first((TensorSpec("x", dtype, shape),))["x"]
    assert value.shape == expected and value.dtype == dtype
    if value.size > 1000 and dtype != "uint8":
        assert 0.5 < value.std() < 2 and abs(value.mean()) < 2


def test_pictures_have_the_spectrum_of_photographs():
    picture = natural_noise(3, 64, 64, np.random.default_rng(0)).astype(np.float64)
    power = np.abs(np.fft.fft2(picture[0])) ** 2
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(64), np.fft.fftfreq(64)))
    slow = power[(radius > 0.03) & (radius < 0.06)].mean()
    fast = power[(radius > 0.3) & (radius < 0.5)].mean()
    # Power falls as 1 / frequency^2: from 0.045 to 0.4 about 80 times; white noise 1.
    assert 25 < slow / fast < 250
    assert np.corrcoef(picture.reshape(3, -1))[0, 1] > 0.7


def test_the_same_seed_gives_the_same_samples_in_any_order():
    a, b = generate_samples(GPT2, seed=3), generate_samples(GPT2, seed=3)
    assert isinstance(a, Samples) and a.generated and len(a) == 64
    for name, block in a.read([5, 1]).items():
        assert np.array_equal(block[1], b.read([1])[name][0])
    tokens = generate_samples(GPT2, seed=4).read([1])["input_ids"]
    assert not np.array_equal(tokens, a.read([1])["input_ids"])
    assert not np.array_equal(a.read([1])["input_ids"], a.read([2])["input_ids"])


def test_alternatives_are_usable_and_begin_with_the_default():
    for inputs in (GPT2, SILERO, WHISPER):
        guesses = alternative_axes(inputs)
        assert len({tuple(guess.items()) for guess in guesses}) == len(guesses) > 5
        assert guesses[0] == dict(generate_samples(inputs).sizes)
        for guess in guesses:
            feeds = first(inputs, axes=guess)
            assert set(feeds) == {spec.name for spec in inputs}
    assert {guess["input[1]"] for guess in alternative_axes(SILERO)} >= {512, 256, 16, 1, 1024}
    assert alternative_axes((TensorSpec("x", "float32", (1, 3)),)) == ({},)


def test_what_cannot_be_generated_is_refused():
    with pytest.raises(UnusableSamples, match=r"text: str\[batch\]"):
        generate_samples((TensorSpec("text", "str", ("batch",)),))
    with pytest.raises(WrongUsage, match="at least one"):
        generate_samples(GPT2, count=0)
