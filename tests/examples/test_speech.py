"""Spoken digits: features, decoding, errors, and hearing in chunks as at once."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import speech
from hypothesis import given
from hypothesis import strategies as st

CLASSES = st.lists(st.integers(0, 10), min_size=1, max_size=30)


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ([0, 0, 0], ""),
        ([4, 4, 4], "3"),
        ([4, 0, 4], "33"),
        ([1, 1, 10, 10, 0, 2], "091"),
    ],
)
def test_repeated_classes_count_once_unless_a_blank_is_between(classes: list[int], said: str):
    assert speech.decode(np.array(classes)) == (said, classes[-1])


@given(CLASSES, CLASSES)
def test_decoding_in_chunks_is_decoding_at_once(first: list[int], second: list[int]):
    begun, last = speech.decode(np.array(first))
    rest, end = speech.decode(np.array(second), last)
    assert (begun + rest, end) == speech.decode(np.array(first + second))


@functools.cache
def edit_distance(one: str, other: str) -> int:
    """By its definition (Levenshtein 1966)."""
    if not one or not other:
        return len(one) + len(other)
    if one[0] == other[0]:
        return edit_distance(one[1:], other[1:])
    return 1 + min(
        edit_distance(one[1:], other),
        edit_distance(one, other[1:]),
        edit_distance(one[1:], other[1:]),
    )


@given(st.text("012", max_size=7), st.text("012", max_size=7))
def test_errors_are_the_edit_distance(truth: str, heard: str):
    assert speech.count_errors(truth, heard) == edit_distance(truth, heard)


def test_mel_filters_share_each_tone_between_two_neighbours():
    hertz = np.fft.rfftfreq(speech.WINDOW, 1 / speech.RATE)
    inner = (hertz > 120) & (hertz < 3600)
    assert np.allclose(speech.MEL_FILTERS[inner].sum(axis=1), 1, atol=1e-5)
    assert ((speech.MEL_FILTERS > 0).sum(axis=1) <= 2).all()


def test_a_higher_tone_is_in_a_higher_row():
    seconds = np.arange(speech.WINDOW + 9 * speech.HOP) / speech.RATE
    loudest = []
    for hertz in (300, 1000, 3000):
        frames = speech.compute_features(np.sin(2 * np.pi * hertz * seconds).astype(np.float32))
        assert frames.shape == (speech.MELS, 10)
        loudest.append(int(frames.mean(axis=1).argmax()))
    assert loudest == sorted(set(loudest))


def test_recordings_of_another_rate_are_refused(tmp_path: Path):
    write_wav(tmp_path / "fast.wav", np.zeros(100, np.float32), rate=16000)
    with pytest.raises(SystemExit, match=r"fast\.wav is not 8000 Hz"):
        speech.read_sound(tmp_path / "fast.wav")


def test_the_picture_is_as_long_as_the_sound():
    sound = np.random.default_rng(0).standard_normal(speech.RATE).astype(np.float32)
    picture = speech.draw(sound, [(0.4, "31")])
    assert picture.width == 4 * speech.RATE // speech.HOP + 100


def write_wav(path: Path, sound: np.ndarray, *, rate: int = speech.RATE) -> None:
    import wave

    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, len(sound), "NONE", ""))
        file.writeframes((32767 * np.clip(sound, -1, 1)).astype("<i2").tobytes())


def write_digits(path: Path) -> None:
    """Made-up recordings like those of the dataset: a tone for each digit."""
    random = np.random.default_rng(0)
    speakers = [*"abcd", "theo", "yweweler"]
    sounds, labels, names = [], [], []
    for name in speakers:
        for digit in range(10):
            seconds = np.arange(random.integers(2000, 3000)) / speech.RATE
            sounds.append(np.sin(2 * np.pi * (300 + 300 * digit) * seconds) * 9000)
            labels.append(digit)
            names.append(name)
    np.savez(
        path,
        audio=np.concatenate(sounds).astype(np.int16),
        length=[len(sound) for sound in sounds],
        label=labels,
        speaker=names,
    )


def test_chunks_with_state_are_heard_as_the_whole_at_once():
    torch = pytest.importorskip("torch", reason="the network is trained with PyTorch")
    import train_speech

    torch.manual_seed(0)
    model = train_speech.Speech(width=16).eval()
    features = torch.randn(2, speech.MELS, 60)
    state = torch.zeros(2, *model.state_shape)
    with torch.inference_mode():
        whole, end = model(features, state)
        parts = []
        for chunk in features.split(speech.CHUNK, dim=2):
            logits, state = model(chunk, state)
            parts.append(logits)
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-5)
    assert torch.allclose(state, end, atol=1e-5)


def test_strings_hold_their_digits_and_training_strings_their_length(tmp_path: Path):
    pytest.importorskip("torch", reason="the network is trained with PyTorch")
    import train_speech

    write_digits(tmp_path / "digits.npz")
    recordings, held = train_speech.read_recordings(tmp_path / "digits.npz")
    assert len(recordings.sounds) == 40
    assert {name: len(one.sounds) for name, one in held.items()} == {"theo": 10, "yweweler": 10}
    sound, digits = train_speech.join(
        recordings, np.array([3, 11, 25]), np.random.default_rng(0), vary=False
    )
    assert digits == "315"
    assert len(sound) > sum(len(recordings.sounds[one]) for one in (3, 11, 25))
    features, said = train_speech.make_batch(recordings, 4, np.random.default_rng(0))
    assert features.shape == (4, speech.MELS, train_speech.FRAMES)
    assert len(said) == 4


def test_the_whole_program_on_made_up_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("torch", reason="the network is trained with PyTorch")
    import train_speech

    write_digits(tmp_path / "digits.npz")
    out = tmp_path / "speech"
    options = ["--out", str(out), "--steps", "2", "--passes", "1", "--strings", "16"]
    monkeypatch.setattr("sys.argv", ["train_speech.py", str(tmp_path / "digits.npz"), *options])
    monkeypatch.setattr(train_speech, "Speech", functools.partial(train_speech.Speech, width=64))
    train_speech.main()
    heard = tmp_path / "heard"
    options = ["--model", str(out / "speech.onnx"), "--out", str(heard)]
    monkeypatch.setattr("sys.argv", ["speech.py", str(out / "test"), *options])
    assert speech.main() == 0
    table = capsys.readouterr().out
    assert "20 digits" in table
    assert "| original |" in table
    assert "| compressed |" in table
    assert (heard / "packed" / "report.html").is_file()
    assert (heard / "heard.png").is_file()


def test_the_real_recordings_are_read_and_the_speakers_held_out(real: Path):
    pytest.importorskip("torch", reason="the network is trained with PyTorch")
    import train_speech

    recordings, held = train_speech.read_recordings(real / "spoken_digits" / "fsdd.npz")
    assert len(recordings.sounds) == 2000
    assert [len(one.sounds) for one in held.values()] == [500, 500]
    assert np.bincount(recordings.labels).tolist() == [200] * 10
