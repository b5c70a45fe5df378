"""Samples that lie in .wav files: windows of a waveform, resampled when they are read."""

from __future__ import annotations

import math
import re
import wave
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from packlight.errors import UnusableSamples, WrongUsage
from packlight.samples.axes import axis_key, axis_sizes
from packlight.samples.fitting import cast, check_type, expectations
from packlight.samples.folders import Listing
from packlight.samples.missing import SAMPLE_RATE, fill_missing, required_inputs
from packlight.samples.naming import batch_axis, is_scalar, waveform_axis
from packlight.samples.protocol import Array
from packlight.tensors import TensorSpec

_RATES = {
    "8000": 8000,
    "8k": 8000,
    "16000": 16000,
    "16k": 16000,
    "22050": 22050,
    "24000": 24000,
    "24k": 24000,
    "32000": 32000,
    "32k": 32000,
    "44100": 44100,
    "48000": 48000,
    "48k": 48000,
}
_FILTER_PERIODS = 10  # half length of scipy's resampling filter, in periods of the slower rate


@dataclass(frozen=True)
class WavFile:
    """What a .wav file's header says, with the number of frames checked against its data."""

    path: Path
    rate: int
    frames: int
    channels: int
    width: int


@dataclass(frozen=True)
class Window:
    """A stretch of one file, counted after resampling; silence follows where the file ends."""

    file: int
    start: int


@dataclass(frozen=True)
class SoundSamples:
    """Windows of sound files as samples for the one input that takes a waveform.

    row: shape of one sample; rate: in hertz; length: of a window, in samples at that rate.
    """

    source: str
    files: tuple[WavFile, ...]
    windows: tuple[Window, ...]
    spec: TensorSpec
    row: tuple[int, ...]
    rate: int
    length: int
    filled: Mapping[str, Array]
    labels: Array | None = None
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    generated: bool = False

    def __len__(self) -> int:
        return len(self.windows)

    def read(self, indices: Sequence[int]) -> dict[str, Array]:
        """These windows as {input: [len(indices), ..., length]}, amplitudes in -1..1.

        Raises UnusableSamples naming the file that cannot be decoded.
        """
        block = np.stack([self._read_window(self.windows[index]) for index in indices])
        block = block.reshape(len(indices), *self.row)
        feeds = {self.spec.name: cast(block, self.spec, indices, source=self.source)}
        for name, value in self.filled.items():
            feeds[name] = np.repeat(value[None], len(indices), axis=0)
        return feeds

    def _read_window(self, window: Window) -> Array:
        waveform = read_stretch(
            self.files[window.file], start=window.start, length=self.length, rate=self.rate
        )
        return np.pad(waveform, (0, self.length - len(waveform)))


def samples_from_sounds(
    listing: Listing, inputs: Sequence[TensorSpec], *, preprocess: str | None = None
) -> SoundSamples:
    """The sounds of a folder, cut into windows of the length that the model takes.

    Labelled files (class subfolders) give their first window; others give all whole windows.
    Raises UnusableSamples where no input takes a waveform or a file is broken.
    """
    if preprocess is not None:
        raise WrongUsage(
            f"--preprocess {preprocess} is for pictures, but {listing.folder} holds sounds; "
            "leave it out"
        )
    candidates = [spec for spec in required_inputs(inputs) if waveform_axis(spec) is not None]
    if not candidates:
        raise UnusableSamples(
            f"{listing.folder} holds sounds, but no input of the model takes a waveform "
            f"([batch, samples]); the model expects {expectations(inputs)}: give a .npz file with "
            "the features that the model was trained on"
        )
    spec = candidates[0]
    check_type(np.dtype(np.float32), spec, source=str(listing.folder))
    axis = waveform_axis(spec)
    assert axis is not None
    notes = [*listing.notes]
    key = axis_key(spec, axis)
    length = axis_sizes(inputs)[key] if key is not None else int(spec.shape[axis] or 0)
    if key is not None:
        notes.append(
            f"'{spec.name}' takes any length; the sounds were cut into windows of {length} samples"
        )
    rate, hint = _rate_of(inputs)
    notes.append(hint)
    rows = batch_axis(spec) == 0 and len(spec.shape) > 1
    row = (1,) * (len(spec.shape) - 1 - rows) + (length,)
    filled, guesses = fill_missing(inputs, {spec.name: row}, source=str(listing.folder))
    files = tuple(_inspect(listing.path(index)) for index in range(len(listing.names)))
    labelled = listing.labels is not None
    windows = tuple(
        Window(number, start)
        for number, file in enumerate(files)
        for start in _starts(file, rate, length, first_only=labelled)
    )
    if labelled:
        notes.append(f"each labelled file gave its first {length} samples, padded with silence")
    if any(not is_scalar(other) and other.name in filled for other in inputs):
        notes.append("every window was run by itself, not continued from the one before")
    return SoundSamples(
        source=(
            f"{len(windows)} window{'s' if len(windows) != 1 else ''} of {length} samples at "
            f"{rate} Hz from {len(files)} sound file{'s' if len(files) != 1 else ''} in "
            f"{listing.folder}"
        ),
        files=files,
        windows=windows,
        spec=spec,
        row=row,
        rate=rate,
        length=length,
        filled=filled,
        labels=listing.labels,
        class_names=listing.class_names,
        notes=(*notes, *guesses),
    )


def _rate_of(inputs: Sequence[TensorSpec]) -> tuple[int, str]:
    for spec in inputs:
        for word in re.findall(r"\d+k?", spec.name.lower()):
            if word in _RATES:
                rate = _RATES[word]
                return rate, f"sounds were resampled to {rate} Hz, as the name '{spec.name}' says"
    return SAMPLE_RATE, f"sounds were resampled to {SAMPLE_RATE} Hz, the usual rate for speech"


def _starts(file: WavFile, rate: int, length: int, *, first_only: bool) -> range:
    total = math.ceil(file.frames * rate / file.rate)
    if first_only or total < length:
        return range(1)
    return range(0, total - length + 1, length)


def _inspect(path: Path) -> WavFile:
    try:
        with wave.open(str(path), "rb") as reader:
            file = WavFile(
                path,
                reader.getframerate(),
                reader.getnframes(),
                reader.getnchannels(),
                reader.getsampwidth(),
            )
    except (wave.Error, EOFError, OSError, ValueError) as error:
        raise _broken(path, str(error) or "it ends too early") from error
    if file.width not in (1, 2, 3, 4) or file.rate <= 0 or file.channels <= 0:
        raise _broken(path, f"{8 * file.width} bits, {file.rate} Hz, {file.channels} channels")
    if file.frames <= 0:
        raise UnusableSamples(f"the sound {path} holds zero samples; remove it")
    if file.frames * file.channels * file.width > path.stat().st_size:
        raise _broken(path, "it is shorter than its header says")
    return file


def _broken(path: Path, what: str) -> UnusableSamples:
    return UnusableSamples(
        f"the sound {path} cannot be decoded ({what}); save it as 16-bit PCM .wav or remove it"
    )


def read_stretch(file: WavFile, *, start: int, length: int, rate: int) -> Array:
    """Up to `length` samples from `start`, both counted at `rate`: mono float32 in -1..1.

    Equal to resampling the whole file and cutting: the stretch is read with a margin of the
    resampling filter's length, and begins where both rates share a sampling instant.
    """
    common = math.gcd(rate, file.rate)
    up, down = rate // common, file.rate // common
    if up == down:
        return _decode(file, start, length)
    margin = math.ceil((_FILTER_PERIODS * max(up, down) / up + 1) / down)
    first = max(0, start // up - margin)  # in steps of `up` new and `down` old samples
    last = -(-(start + length) // up) + margin
    waveform = _decode(file, first * down, (last - first) * down)
    from scipy.signal import resample_poly  # takes a second to import

    resampled = resample_poly(waveform.astype(np.float64), up, down)
    total = math.ceil(file.frames * up / down)
    stretch = resampled[start - first * up : min(start + length, total) - first * up]
    return np.asarray(stretch, dtype=np.float32)


def _decode(file: WavFile, start: int, length: int) -> Array:
    """Frames `start` to `start + length` of a file at its own rate, channels averaged."""
    start = min(start, file.frames)
    length = min(length, file.frames - start)
    try:
        with wave.open(str(file.path), "rb") as reader:
            reader.setpos(start)
            data = reader.readframes(length)
    except (wave.Error, EOFError, OSError, ValueError) as error:
        raise _broken(file.path, str(error) or "it ends too early") from error
    if len(data) != length * file.channels * file.width:
        raise _broken(file.path, "it is shorter than its header says")
    if file.width == 1:  # 8-bit sound is unsigned
        values = (np.frombuffer(data, np.uint8).astype(np.float64) - 128) / 128
    elif file.width == 3:
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        values = wide.view("<i4")[:, 0] / 2.0**31
    else:
        values = np.frombuffer(data, f"<i{file.width}") / 2.0 ** (8 * file.width - 1)
    return np.asarray(values.reshape(-1, file.channels).mean(axis=1), dtype=np.float32)
