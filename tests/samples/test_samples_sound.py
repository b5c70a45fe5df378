"""Folders of sounds: widths, resampling, windows, and broken files."""

from __future__ import annotations

import wave

import numpy as np
import pytest
from scipy.signal import resample_poly

from packlight.errors import UnusableSamples, WrongUsage
from packlight.samples import class_names_of, feeds_of, open_samples
from packlight.tensors import TensorSpec

WINDOW = TensorSpec("input", "float32", (1, 160))
OPEN = (
    TensorSpec("input", "float32", ("batch", "sequence")),
    TensorSpec("state", "float32", (2, "batch", 128)),
    TensorSpec("sr", "int64", ()),
)


def save(path, values, *, rate=16000, width=2, channels=1):
    """Writes amplitudes in -1..1, [frames] or [frames, channels]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scaled = np.round(np.asarray(values) * (2 ** (8 * width - 1) - 1)).astype("<i8")
    if width == 1:
        scaled = scaled + 128
    data = scaled.reshape(-1, 1).view(np.uint8)[:, :width].tobytes()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(data)


def tone(count, seed=0):
    return np.clip(np.random.default_rng(seed).standard_normal(count) * 0.2, -1, 1)


@pytest.mark.parametrize(("width", "error"), [(1, 1e-2), (2, 1e-4), (3, 1e-6), (4, 1e-6)])
def test_every_width_gives_the_same_amplitudes(tmp_path, width, error):
    values = tone(320)
    save(tmp_path / "a.wav", values, width=width)
    samples = open_samples(tmp_path, [WINDOW])
    assert len(samples) == 2
    read = samples.read([0, 1])["input"]
    assert read.shape == (2, 160) and read.dtype == np.float32
    assert np.abs(read.reshape(-1) - values).max() < error


def test_channels_are_averaged(tmp_path):
    values = np.stack([tone(160), tone(160, seed=1)], axis=1)
    save(tmp_path / "a.wav", values, channels=2)
    read = open_samples(tmp_path / "a.wav", [WINDOW]).read([0])["input"]
    assert np.allclose(read[0], values.mean(axis=1), atol=1e-4)


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_windows_equal_those_of_the_whole_file_resampled(tmp_path, rate):
    values = np.round(tone(9000) * 32767) / 32768
    save(tmp_path / "a.wav", values * 32768 / 32767, rate=rate)
    samples = open_samples(tmp_path, [WINDOW])
    common = np.gcd(rate, 16000)
    whole = resample_poly(values, 16000 // common, rate // common)
    assert len(samples) == len(whole) // 160
    read = samples.read(range(len(samples)))["input"]
    assert np.abs(read.reshape(-1) - whole[: read.size]).max() < 1e-6


def test_an_open_length_gives_windows_of_512_and_states_are_filled(tmp_path):
    save(tmp_path / "a.wav", tone(2000))
    samples = open_samples(tmp_path, OPEN)
    assert len(samples) == 3
    feeds = next(feeds_of(samples, [2], OPEN))
    assert feeds["input"].shape == (1, 512) and feeds["state"].shape == (2, 1, 128)
    assert any("windows of 512" in note for note in samples.notes)
    assert any("16000 Hz" in note for note in samples.notes)
    assert any("by itself" in note for note in samples.notes)


def test_a_short_sound_is_padded_with_silence(tmp_path):
    save(tmp_path / "a.wav", tone(100))
    read = open_samples(tmp_path, [WINDOW]).read([0])["input"]
    assert read[0, :100].any() and not read[0, 100:].any()


def test_class_folders_give_one_labelled_window_a_file(tmp_path):
    save(tmp_path / "yes" / "a.wav", tone(400))
    save(tmp_path / "no" / "b.wav", tone(100))
    spec = TensorSpec("wave", "float32", ("batch", 1, 160))
    samples = open_samples(tmp_path, [spec])
    assert samples.labels.tolist() == [0, 1] and class_names_of(samples) == ("no", "yes")
    assert samples.read([1])["wave"].shape == (1, 1, 160)


def test_the_models_own_rate_is_used(tmp_path):
    save(tmp_path / "a.wav", tone(320), rate=8000)
    samples = open_samples(tmp_path, [TensorSpec("audio_8k", "float32", (1, 160))])
    assert len(samples) == 2 and "8000 Hz" in samples.source


@pytest.mark.parametrize("content", [b"", b"RIFF1234WAVEjunk", None])
def test_a_broken_sound_is_named(tmp_path, content):
    save(tmp_path / "a.wav", tone(320))
    whole = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "b.wav").write_bytes(whole[:100] if content is None else content)
    with pytest.raises(UnusableSamples, match=r"b\.wav cannot be decoded"):
        open_samples(tmp_path, [WINDOW])


def test_a_sound_without_samples_is_named(tmp_path):
    save(tmp_path / "a.wav", tone(0))
    with pytest.raises(UnusableSamples, match=r"a\.wav holds zero samples"):
        open_samples(tmp_path, [WINDOW])


def test_sounds_for_a_model_of_features_or_with_preprocessing_are_refused(tmp_path):
    save(tmp_path / "a.wav", tone(320))
    with pytest.raises(UnusableSamples, match=r"takes a waveform.*float32\[batch, 16, 96\]"):
        open_samples(tmp_path, [TensorSpec("features", "float32", ("batch", 16, 96))])
    with pytest.raises(WrongUsage, match="is for pictures"):
        open_samples(tmp_path, [WINDOW], preprocess="imagenet")
