"""Large pools of samples to draw from: one draw for packlight, what is left to check it with.

A pool holds samples of one distribution, so that what is left of it is fresh and yet alike,
which is what a promise proven on held-out samples speaks of. Crops of the same photo, and
windows of the same recording, may lie on both sides of a draw.
"""

from __future__ import annotations

import wave
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from cases import CASES, Arrays, Data
from lenet import read_mnist
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy import fft, signal

RATE = 16_000


@dataclass(frozen=True)
class Pool:
    """A model and its samples. draw: fewest and most samples that packlight is given."""

    name: str
    path: str
    source: str
    read: Callable[[Path, Path], tuple[Arrays, NDArray | None]]  # (real folder, model)
    draw: tuple[int, int]


def test_part(name: str, real: Path, model: Path) -> tuple[Arrays, NDArray | None]:
    """The labelled test samples of a case: networks have seen the training samples."""
    data = read_case(name, real, model)
    return data.test, data.labels


def both_parts(name: str, real: Path, model: Path) -> tuple[Arrays, NDArray | None]:
    """All samples of a case without labels."""
    data = read_case(name, real, model)
    parts = {
        key: np.concatenate([data.calibration[key], data.test[key]]) if array.ndim else array
        for key, array in data.test.items()
    }
    return parts, None


def read_case(name: str, real: Path, model: Path) -> Data:
    """Reads the samples of `cases.py`."""
    (case,) = (case for case in CASES if case.name == name)
    return case.read(real, model, 0)


def digits(real: Path, model: Path) -> tuple[Arrays, NDArray | None]:
    """MNIST's test pictures, 0..1."""
    data = read_mnist(real)
    name = onnx.load(model, load_external_data=False).graph.input[0].name
    return {name: data["x_test"]}, data["y_test"]


def crops(
    real: Path,
    model: Path,
    *,
    name: str,
    size: tuple[int, int],
    count: int,
    prepare: Callable[[NDArray], NDArray],
    which: slice = slice(None),
) -> tuple[Arrays, NDArray | None]:
    """Random crops of the photos with faces, half of them mirrored, size (width, height).

    which: of the photos, in the order of their names.
    """
    generator = np.random.default_rng(0)
    photos = []
    for file in sorted((real / "faces").glob("*.jpg"))[which]:
        with Image.open(file) as opened:
            photos.append(ImageOps.exif_transpose(opened).convert("RGB"))
        photos[-1].thumbnail((960, 960))
    taken = []
    for number in range(count):
        photo = photos[number % len(photos)]
        scale = generator.uniform(0.4, 1.0)
        width, height = (max(int(scale * side), 16) for side in photo.size)
        left = int(generator.integers(photo.width - width + 1))
        top = int(generator.integers(photo.height - height + 1))
        view = photo.resize(size, box=(left, top, left + width, top + height))
        view = ImageOps.mirror(view) if generator.random() < 0.5 else view
        taken.append(prepare(np.asarray(view, np.float32).transpose(2, 0, 1)))
    return {name: np.stack(taken)}, None


def spoken(real: Path, model: Path) -> tuple[Arrays, NDArray | None]:
    """Seconds of sound as MFCC [1, 49, 10]: spoken digits anywhere in it, and running speech."""
    generator = np.random.default_rng(0)
    with np.load(real / "spoken_digits" / "fsdd.npz", allow_pickle=False) as archive:
        sound, lengths = archive["audio"], archive["length"]
    ends = np.cumsum(lengths)
    mel = mel_weights()
    taken = []
    for start, end in zip(ends - lengths, ends, strict=True):
        word = signal.resample_poly(sound[start:end].astype(np.float32), 2, 1)[:RATE]
        second = np.zeros(RATE, np.float32)
        place = int(generator.integers(RATE - len(word) + 1))
        second[place : place + len(word)] = word / max(float(np.abs(word).max()), 1e-6)
        taken.append(cepstrum(second, mel))
    with wave.open(str(real / "audio" / "test.wav")) as recording:
        pcm = np.frombuffer(recording.readframes(recording.getnframes()), np.int16)
    speech = pcm.astype(np.float32) / 32768
    taken += [
        cepstrum(speech[start : start + RATE], mel) for start in range(0, len(pcm) - RATE, 1000)
    ]
    return {"t0": np.stack(taken)[:, None]}, None


def mel_weights(bands: int = 40, low: float = 20.0, high: float = 4000.0) -> NDArray:
    """Triangles on the mel scale 1127 ln(1 + f / 700), [257 frequencies, bands]."""

    def mel(frequency: NDArray) -> NDArray:
        return 1127.0 * np.log1p(frequency / 700.0)

    edges = np.linspace(*mel(np.array([low, high])), bands + 2)
    points = mel(np.linspace(0, RATE / 2, 257))[:, None]
    rising = (points - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - points) / (edges[2:] - edges[1:-1])
    weights = np.maximum(0, np.minimum(rising, falling))
    weights[0] = 0
    return weights


def cepstrum(second: NDArray, mel: NDArray) -> NDArray:
    """Ten cepstral coefficients of each of 49 frames of 30 ms, as MLPerf Tiny computes them."""
    frames = np.lib.stride_tricks.sliding_window_view(second, 480)[::320]
    spectrum = np.abs(np.fft.rfft(frames * signal.get_window("hann", 480), 512))
    logarithm = np.log(spectrum @ mel + 1e-6)
    whole = fft.dct(logarithm, type=2, axis=1) / np.sqrt(2 * mel.shape[1])
    return whole[:, :10].astype(np.float32)


def noise(real: Path, model: Path) -> tuple[Arrays, NDArray | None]:
    """Random (normal) samples, for want of real ones."""
    draw = np.random.default_rng(0).standard_normal
    return {"t0": draw((4000, 640), dtype=np.float32)}, None


def face(picture: NDArray) -> NDArray:
    """As the face detector takes it."""
    return (picture[None] - 127) / 128


PICTURES = "CIFAR-10's 10,000 test pictures, with labels"
VOICE = "windows of audio/test.wav with the float model's states, no labels"

POOLS: tuple[Pool, ...] = (
    *(
        Pool(name, f"cifar10/{name}.onnx", PICTURES, partial(test_part, name), (1500, 2500))
        for name in ("resnet20", "resnet32", "resnet44")
    ),
    Pool(
        "resnet8",
        "onnx/resnet8_cifar10.onnx",
        PICTURES,
        partial(test_part, "resnet8"),
        (1500, 2500),
    ),
    *(
        Pool(
            name, f"{name}.onnx", "MNIST's 10,000 test pictures, with labels", digits, (1500, 2500)
        )
        for name in ("lenet-300-100", "lenet-5")
    ),
    Pool(
        "ultraface",
        "onnx/ultraface_version-RFB-320.onnx",
        "900 random crops of photos with faces, no labels",
        partial(crops, name="input", size=(320, 240), count=900, prepare=face),
        (400, 600),
    ),
    *(
        Pool(name, f"onnx/{name}.onnx", VOICE, partial(both_parts, name), (900, 1200))
        for name in ("silero_vad", "silero_vad_op18_ifless", "silero_vad_half")
    ),
    Pool(
        "dscnn_kws",
        "onnx/dscnn_kws.onnx",
        "3,000 spoken digits and 944 seconds of audio/test.wav, no labels",
        spoken,
        (1500, 2500),
    ),
    Pool(
        "vww_mobilenet_96",
        "onnx/vww_mobilenet_96.onnx",
        "3,000 random crops of photos, no labels",
        partial(crops, name="t0", size=(96, 96), count=3000, prepare=lambda each: each / 255),
        (1500, 2000),
    ),
    Pool(
        "ad01_autoencoder",
        "onnx/ad01_autoencoder.onnx",
        "4,000 random (normal) samples",
        noise,
        (1500, 2500),
    ),
)
