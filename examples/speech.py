"""Writes down spoken digits while they are heard: a network and what packlight makes of it.

    pip install packlight pillow
    python examples/train_speech.py fsdd.npz --out speech/
    python examples/speech.py speech/test --model speech/speech.onnx --out heard/

The network hears 200 milliseconds at a time and remembers the rest in `state`: `features`
[1, 40, 10] (log-mel frames, 20 ms each) and `state` [1, channels, frames] give `logits`
[1, 10, 11] (a blank and ten digits for each frame) and `next`, the state for the next chunk.

It is compressed once, with the chunks that the training script left beside it (speech.samples.npz,
of speakers that it was trained on): heard/packed holds the smaller model and its report. The
recordings (.wav, 8 kHz, one channel, 16 bits; what is said stands behind the last _ of the name)
are then written down by both. A table is printed (word error rate; how much of the time a sound
takes is spent on hearing it), and heard/ gets a picture of the first.
"""

from __future__ import annotations

import argparse
import sys
import time
import wave
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image, ImageDraw

import packlight

RATE = 8000
HOP, WINDOW = 160, 256
"""Samples from frame to frame (20 ms), and under one frame (32 ms)."""

CHUNK = 10
"""Frames that are heard at once: 200 ms."""

MELS = 40
BLANK = 0
"""The class that says nothing; class d + 1 is the digit d."""

Floats = NDArray[np.float32]


@dataclass
class Listener:
    """A network that hears a sound chunk by chunk, and what it remembers between them."""

    session: onnxruntime.InferenceSession
    state: Floats = field(init=False)
    tail: Floats = field(init=False)
    last: int = field(init=False, default=BLANK)
    seconds: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        _, channels, frames = self.session.get_inputs()[1].shape
        self.state = np.zeros((1, channels, frames), np.float32)
        self.tail = np.zeros(WINDOW - HOP, np.float32)

    def hear(self, sound: Floats) -> str:
        """The digits that these CHUNK * HOP samples add, where some are missing: silence."""
        begun = time.perf_counter()
        missing = CHUNK * HOP - len(sound)
        heard = np.concatenate([self.tail, sound, np.zeros(missing, np.float32)])
        feeds = {"features": compute_features(heard)[None], "state": self.state}
        logits, self.state = self.session.run(["logits", "next"], feeds)
        self.tail = heard[len(heard) - len(self.tail) :]
        digits, self.last = decode(logits[0].argmax(axis=1), self.last)
        self.seconds += time.perf_counter() - begun
        return digits


def main() -> int:
    """Compresses, listens, prints, draws."""
    options = _options()
    paths = sorted(options.sounds.glob("*.wav")) if options.sounds.is_dir() else [options.sounds]
    if not paths:
        raise SystemExit(f"{options.sounds} holds no .wav: give a recording or a folder of them.")
    packed = options.out / "packed"
    if not (packed / "model.onnx").is_file():
        samples = options.model.with_suffix(".samples.npz")
        result = packlight.compress(options.model, data=samples, seed=options.seed)
        assert isinstance(result, packlight.Result)
        result.save(packed)
        print(result)
    models = {"original": options.model, "compressed": packed / "model.onnx"}
    sessions = {name: open_network(path) for name, path in models.items()}
    errors, words, spent = dict.fromkeys(models, 0), 0, dict.fromkeys(models, 0.0)
    length, same = 0.0, 0
    for number, path in enumerate(paths):
        sound, truth = read_sound(path), path.stem.rpartition("_")[2]
        heard = {}
        for name, session in sessions.items():
            said, seconds = write_down(session, sound, show=options.show and name == "compressed")
            heard[name] = "".join(digits for _, digits in said)
            errors[name] += count_errors(truth, heard[name])
            spent[name] += seconds
            if number == 0 and name == "compressed":
                draw(sound, said).save(options.out / "heard.png")
        same += heard["original"] == heard["compressed"]
        words += len(truth)
        length += len(sound) / RATE
    print(f"\n{len(paths)} recordings, {words} digits, {length:.0f} seconds\n")
    print("| | wrong digits | word error rate | real-time factor | bytes |\n" + "|---" * 5 + "|")
    sizes = {name: path.stat().st_size for name, path in models.items()}
    for name in models:
        print(
            f"| {name} | {errors[name]} | {errors[name] / max(words, 1):.2%} "
            f"| {spent[name] / length:.5f} | {sizes[name]:,} |"
        )
    download = packlight.pack(packed, force=True).packed_bytes
    print(
        f"\n{sizes['original'] / sizes['compressed']:.2f}x smaller (packed for the download "
        f"{download:,} bytes, {sizes['original'] / download:.2f}x), "
        f"{spent['original'] / spent['compressed']:.1f}x faster; "
        f"{same} of {len(paths)} recordings are written down alike"
    )
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sounds", type=Path, help="a .wav, or a folder of them")
    parser.add_argument("--model", type=Path, required=True, help="what train_speech.py wrote")
    parser.add_argument("--out", type=Path, default=Path("heard"))
    parser.add_argument("--show", action="store_true", help="print digits as they are heard")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def open_network(path: Path) -> onnxruntime.InferenceSession:
    """The model in onnxruntime, on one thread."""
    how = onnxruntime.SessionOptions()
    how.intra_op_num_threads, how.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(str(path), how, providers=["CPUExecutionProvider"])


def read_sound(path: Path) -> Floats:
    """The samples of a recording, in -1..1."""
    with wave.open(str(path)) as file:
        if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (RATE, 1, 2):
            raise SystemExit(f"{path} is not {RATE} Hz, one channel, 16 bits: convert it first.")
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    return samples.astype(np.float32) / 32768


def write_down(
    session: onnxruntime.InferenceSession, sound: Floats, *, show: bool = False
) -> tuple[list[tuple[float, str]], float]:
    """What was heard when, [(seconds from the beginning, digits)], and the seconds that it took.

    Half a second of silence follows, so that the last digit is heard to its end.
    """
    listener, said = Listener(session), []
    sound = np.concatenate([sound, np.zeros(RATE // 2, np.float32)])
    for start in range(0, len(sound), CHUNK * HOP):
        digits = listener.hear(sound[start : start + CHUNK * HOP])
        if digits:
            said.append(((start + CHUNK * HOP) / RATE, digits))
        if show:
            print(digits, end="", flush=True)
    if show:
        print()
    return said, listener.seconds


def compute_features(sound: Floats) -> Floats:
    """Log-mel energies [MELS, frames] of whole frames: len(sound) = frames * HOP + the overlap."""
    frames = np.lib.stride_tricks.sliding_window_view(sound, WINDOW)[::HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(WINDOW))) ** 2
    return np.log(power @ MEL_FILTERS + 1e-4).T.astype(np.float32)


def build_mel_filters(low: float = 60.0, high: float = 3900.0) -> Floats:
    """Triangles of equal width on the mel scale, 2595 log10(1 + f / 700): [bins, MELS]."""
    mels = np.linspace(*(2595 * np.log10(1 + np.array([low, high]) / 700)), MELS + 2)
    edges = 700 * (10 ** (mels / 2595) - 1)
    bins = np.fft.rfftfreq(WINDOW, 1 / RATE)[:, None]
    rise = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return np.maximum(np.minimum(rise, fall), 0).astype(np.float32)


MEL_FILTERS = build_mel_filters()


def decode(classes: NDArray[np.int64], last: int = BLANK) -> tuple[str, int]:
    """The digits that the best class of each frame spells (CTC, best path), and the last class.

    A class that goes on from the frame before, also from the chunk before (last), counts once.
    """
    before = np.concatenate([[last], classes[:-1]])
    new = classes[(classes != before) & (classes != BLANK)]
    return "".join(str(one - 1) for one in new), int(classes[-1])


def count_errors(truth: str, heard: str) -> int:
    """Digits that must be put in, taken out or exchanged (the edit distance)."""
    row = list(range(len(heard) + 1))
    for number, right in enumerate(truth, start=1):
        diagonal, row[0] = row[0], number
        for place, got in enumerate(heard, start=1):
            best = min(row[place] + 1, row[place - 1] + 1, diagonal + (right != got))
            diagonal, row[place] = row[place], best
    return row[-1]


def draw(sound: Floats, said: Sequence[tuple[float, str]]) -> Image.Image:
    """The log-mel frames, low tones below, with each digit where it had been heard."""
    frames = compute_features(np.concatenate([np.zeros(WINDOW - HOP, np.float32), sound]))
    low, high = np.percentile(frames, [5, 99.5])
    grey = 255 * (1 - np.clip((frames[::-1] - low) / (high - low), 0, 1))
    wide = Image.fromarray(grey.astype(np.uint8)).resize((4 * frames.shape[1], 4 * MELS))
    picture = Image.new("RGB", (wide.width + 100, wide.height + 24), "white")
    picture.paste(wide, (0, 0))
    pen = ImageDraw.Draw(picture)
    for seconds, digits in said:
        place = int(seconds * RATE / HOP) * 4
        pen.line((place, 0, place, wide.height), fill="#ff7f0e")
        pen.text((place - 6 * len(digits), wide.height + 2), digits, fill="black", font_size=18)
    return picture


if __name__ == "__main__":
    sys.exit(main())
