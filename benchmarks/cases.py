"""The models that are measured, with their calibration and test samples.

Everything is read from the folder of real models; what has no data of its own there
gets random samples of the right shape, and says so.
"""

from __future__ import annotations

import wave
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image, ImageOps

Arrays = dict[str, NDArray]
CALIBRATION = 512
CIFAR_MEAN = np.array([0.485, 0.456, 0.406], np.float32).reshape(1, 3, 1, 1)
CIFAR_STD = np.array([0.229, 0.224, 0.225], np.float32).reshape(1, 3, 1, 1)


@dataclass(frozen=True)
class Data:
    """calibration, test: stacked samples by input; labels: [n] of the test samples, or None."""

    calibration: Arrays
    test: Arrays
    labels: NDArray | None = None


@dataclass(frozen=True)
class Case:
    """One model. classifier: its output's largest value is a class. source: what it is fed with."""

    name: str
    path: str
    source: str
    read: Callable[[Path, Path, int], Data]  # (real folder, model, seed)
    classifier: bool = True


def read_cifar(real: Path) -> tuple[NDArray, NDArray, NDArray]:
    """Returns 512 training and 10,000 test pictures, float32 [n, 3, 32, 32] in 0..255, labels."""
    with np.load(real / "cifar10" / "cifar10.npz", allow_pickle=False) as archive:
        train, test, labels = archive["x_train"][:CALIBRATION], archive["x_test"], archive["y_test"]
    train, test = (
        np.ascontiguousarray(pictures.astype(np.float32).transpose(0, 3, 1, 2))
        for pictures in (train, test)
    )
    return train, test, labels.reshape(-1)


def cifar_normalized(real: Path, model: Path, seed: int) -> Data:
    """CIFAR-10 as the resnets were trained with it: (x / 255 - mean) / std."""
    train, test, labels = read_cifar(real)
    train, test = ((pictures / 255 - CIFAR_MEAN) / CIFAR_STD for pictures in (train, test))
    return Data({"image": train}, {"image": test}, labels)


def cifar_raw(real: Path, model: Path, seed: int) -> Data:
    """CIFAR-10 as numbers 0..255."""
    train, test, labels = read_cifar(real)
    return Data({"t0": train}, {"t0": test}, labels)


def faces(real: Path, model: Path, seed: int) -> Data:
    """Photos with faces, whole and cropped, mirrored and not; every other photo is for testing."""

    def views(photo: Path) -> list[NDArray]:
        with Image.open(photo) as opened:
            whole = ImageOps.exif_transpose(opened).convert("RGB")
        width, height = whole.size
        cropped = whole.crop((width // 8, height // 8, width - width // 8, height - height // 8))
        return [
            (np.asarray(view.resize((320, 240)), np.float32).transpose(2, 0, 1) - 127) / 128
            for picture in (whole, cropped)
            for view in (picture, ImageOps.mirror(picture))
        ]

    photos = sorted((real / "faces").glob("*.jpg"))
    parts = [
        np.stack([view for photo in photos[part::2] for view in views(photo)])[:, None]
        for part in (0, 1)
    ]
    return Data({"input": parts[0]}, {"input": parts[1]})


def speech(real: Path, model: Path, seed: int) -> Data:
    """Windows of 512 samples at 16 kHz after 64 of context, with the float model's states."""
    with wave.open(str(real / "audio" / "test.wav")) as recording:
        pcm = np.frombuffer(recording.readframes(recording.getnframes()), np.int16)
    sound = np.concatenate([np.zeros(64, np.float32), pcm.astype(np.float32) / 32768])
    windows = np.stack([sound[start : start + 576] for start in range(0, len(sound) - 575, 512)])[
        :, None
    ]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    rate = {"sr": np.array(16000, np.int64)}
    if "sr" not in {value.name for value in session.get_inputs()}:
        rate = {}
    state, states = np.zeros((2, 1, 128), np.float32), []
    for window in windows:
        states.append(state)
        state = session.run(["stateN"], {"input": window, "state": state, **rate})[0]
    shuffled = np.random.default_rng(seed).permutation(len(windows))
    parts = [
        {"input": windows[part], "state": np.stack(states)[part], **rate}
        for part in (shuffled[:CALIBRATION], shuffled[CALIBRATION:])
    ]
    return Data(parts[0], parts[1])


def random_samples(*shape: int, uniform: bool = False) -> Callable[[Path, Path, int], Data]:
    """Random samples of the shape: standard normal, or uniform in 0..1 (pictures)."""

    def read(real: Path, model: Path, seed: int) -> Data:
        generator = np.random.default_rng(seed)
        draw = generator.random if uniform else generator.standard_normal
        return Data(
            {"t0": draw((CALIBRATION, *shape), dtype=np.float32)},
            {"t0": draw((1000, *shape), dtype=np.float32)},
        )

    return read


RESNET = "CIFAR-10: 512 training pictures to calibrate, 10,000 to test"
VOICE = "audio/test.wav: 512 windows drawn at random to calibrate, the rest to test, float states"

CASES: tuple[Case, ...] = (
    Case("resnet20", "cifar10/resnet20.onnx", RESNET, cifar_normalized),
    Case("resnet32", "cifar10/resnet32.onnx", RESNET, cifar_normalized),
    Case("resnet44", "cifar10/resnet44.onnx", RESNET, cifar_normalized),
    Case("resnet8", "onnx/resnet8_cifar10.onnx", RESNET + " (raw 0..255)", cifar_raw),
    Case(
        "ultraface",
        "onnx/ultraface_version-RFB-320.onnx",
        "photos with faces: four views of each; one half to calibrate, the other to test",
        faces,
        classifier=False,
    ),
    Case("silero_vad", "onnx/silero_vad.onnx", VOICE, speech, classifier=False),
    Case(
        "silero_vad_op18_ifless",
        "onnx/silero_vad_op18_ifless.onnx",
        VOICE,
        speech,
        classifier=False,
    ),
    Case("silero_vad_half", "onnx/silero_vad_half.onnx", VOICE, speech, classifier=False),
    Case(
        "dscnn_kws",
        "onnx/dscnn_kws.onnx",
        "random (normal) samples, 512 to calibrate and 1,000 to test",
        random_samples(1, 49, 10),
    ),
    Case(
        "vww_mobilenet_96",
        "onnx/vww_mobilenet_96.onnx",
        "random (uniform 0..1) samples, 512 to calibrate and 1,000 to test",
        random_samples(3, 96, 96, uniform=True),
    ),
    Case(
        "ad01_autoencoder",
        "onnx/ad01_autoencoder.onnx",
        "random (normal) samples, 512 to calibrate and 1,000 to test",
        random_samples(640),
        classifier=False,
    ),
)


def shorten(data: Data, *, calibration: int, test: int) -> Data:
    """Returns the first samples of each part only."""

    def cut(arrays: Mapping[str, NDArray], count: int) -> Arrays:
        return {name: array[:count] if array.ndim else array for name, array in arrays.items()}

    labels = None if data.labels is None else data.labels[:test]
    return Data(cut(data.calibration, calibration), cut(data.test, test), labels)
