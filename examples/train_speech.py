"""Trains the network of speech.py: spoken digits, written down while they are heard.

    pip install torch==2.13.0 onnx
    python examples/train_speech.py fsdd.npz --out speech/

fsdd.npz holds the Free Spoken Digit Dataset (github.com/Jakobovski/free-spoken-digit-dataset,
CC BY-SA 4.0): `audio` (all recordings behind each other, 8 kHz), `length`, `label`, `speaker`.
Digits of four speakers are joined to strings with pauses, noise and changes of speed. The other
two are never heard in training: strings of theirs become speech/test/*.wav. Also written:
speech.onnx, and speech.samples.npz, chunks of the four to compress it with. Nothing is chosen by
looking at the two: the number of steps is fixed, the last weights are taken. Seeded; about six
minutes on one core.
"""

from __future__ import annotations

import argparse
import warnings
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch  # noqa: TID251  (training is not part of the package)
from numpy.typing import NDArray
from speech import BLANK, CHUNK, HOP, MELS, RATE, WINDOW, compute_features
from torch import Tensor, nn  # noqa: TID251

HELD_OUT = ("theo", "yweweler")
FRAMES = 200
"""Length of a string in training: 4 seconds."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Recordings:
    """Spoken digits: sounds in -1..1, and which digit each is."""

    sounds: list[Floats]
    labels: NDArray[np.int64]


class Speech(nn.Module):
    """Causal convolutions over frames with residual sums; what they look back on is the state."""

    dilations = (1, 1, 2, 2, 4, 4)

    def __init__(self, *, width: int = 160) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(MELS, affine=False)
        self.first = nn.Conv1d(MELS, width, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(width, width, 3, dilation=dilation, bias=False), nn.BatchNorm1d(width)
            )
            for dilation in self.dilations
        )
        self.last = nn.Conv1d(width, 11, 1)
        self.state_shape = (width, 2 * sum(self.dilations))

    def forward(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Turns features [batch, MELS, frames] and state [batch, width, 28] into logits
        [batch, frames, 11] and the next state.
        """
        x = torch.relu(self.first(self.norm(features)))
        seen = []
        pasts = state.split([2 * dilation for dilation in self.dilations], dim=2)
        for block, past, dilation in zip(self.blocks, pasts, self.dilations, strict=True):
            window = torch.cat([past, x], dim=2)
            seen.append(window[:, :, -2 * dilation :])
            x = x + torch.relu(block(window))
        return self.last(x).transpose(1, 2), torch.cat(seen, dim=2)


def read_recordings(path: Path) -> tuple[Recordings, dict[str, Recordings]]:
    """Those to train with, and those held out by their speaker."""
    with np.load(path) as data:
        ends = np.cumsum(data["length"])[:-1]
        sounds = np.split(data["audio"].astype(np.float32) / 32768, ends)
        labels, speakers = data["label"], data["speaker"]

    def of(chosen: NDArray[np.bool_]) -> Recordings:
        return Recordings([sounds[i] for i in np.flatnonzero(chosen)], labels[chosen])

    held = {name: of(speakers == name) for name in HELD_OUT}
    return of(~np.isin(speakers, HELD_OUT)), held


def change_speed(sound: Floats, factor: float) -> Floats:
    """The sound, faster and higher (factor above 1) or slower and lower."""
    places = np.arange(0, len(sound) - 1, factor)
    return np.interp(places, np.arange(len(sound)), sound).astype(np.float32)


def join(
    recordings: Recordings, chosen: NDArray[np.int64], random: np.random.Generator, *, vary: bool
) -> tuple[Floats, str]:
    """These recordings with pauses of 50 to 400 ms around them and faint noise, and the digits.

    vary: each also at another speed and loudness, the noise sometimes loud.
    """
    pieces = [np.zeros(random.integers(400, 3200), np.float32)]
    for one in chosen:
        sound = recordings.sounds[one]
        if vary:
            sound = change_speed(sound, random.uniform(0.8, 1.25)) * random.uniform(0.5, 1.2)
        pieces += [sound, np.zeros(random.integers(400, 3200), np.float32)]
    whole = np.concatenate(pieces) * (random.uniform(0.2, 1.5) if vary else 1)
    noise = random.standard_normal(len(whole) + 1).astype(np.float32)
    tint = random.uniform(-0.9, 0.9)  # below 0 deep, above 0 bright
    loud = 10 ** random.uniform(-4, -1.7 if vary else -2.5)
    whole = whole + loud * (noise[1:] - tint * noise[:-1])
    return whole.astype(np.float32), "".join(str(recordings.labels[one]) for one in chosen)


def make_batch(
    recordings: Recordings, size: int, random: np.random.Generator
) -> tuple[Tensor, list[str]]:
    """Features [size, MELS, FRAMES] of strings of as many digits as there is time for."""
    features, digits = [], []
    while len(features) < size:
        chosen = random.integers(len(recordings.sounds), size=random.integers(1, 7))
        sound, said = join(recordings, chosen, random, vary=True)
        if len(sound) > FRAMES * HOP:
            continue
        room = FRAMES * HOP + WINDOW - HOP - len(sound)
        quiet = sound[:400].std() * random.standard_normal(room)
        frames = compute_features(np.concatenate([sound, quiet.astype(np.float32)]))
        low = random.integers(MELS - 6)
        frames[low : low + random.integers(7)] = frames.mean()  # SpecAugment's mask of tones
        features.append(frames)
        digits.append(said)
    return torch.from_numpy(np.stack(features)), digits


def train(recordings: Recordings, *, steps: int, seed: int) -> Speech:
    """Trains with the CTC loss, AdamW and a one-cycle learning rate; the last weights count."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    model = Speech().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    total = 0.0
    for step in range(1, steps + 1):
        features, digits = make_batch(recordings, 32, random)
        with torch.autocast("cpu", torch.bfloat16):
            logits, _ = model(features, torch.zeros(len(features), *model.state_shape))
        loss = nn.functional.ctc_loss(
            logits.float().log_softmax(2).transpose(0, 1),
            torch.tensor([int(one) + 1 for said in digits for one in said]),
            torch.full([len(digits)], FRAMES),
            torch.tensor([len(said) for said in digits]),
            blank=BLANK,
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        total += loss.item()
        if step % 100 == 0:
            print(f"step {step:5d} of {steps}: loss {total / 100:.4f}", flush=True)
            total = 0.0
    return model.eval()


def export(model: Speech, path: Path) -> None:
    """Writes the model as ONNX, opset 17."""
    inputs = (torch.zeros(1, MELS, CHUNK), torch.zeros(1, *model.state_shape))
    names = ("features", "state", "logits", "next")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter without onnxscript is marked as legacy
        torch.onnx.export(
            model,
            inputs,
            str(path),
            input_names=names[:2],
            output_names=names[2:],
            dynamic_axes={name: {0: "batch"} for name in names},
            opset_version=17,
            dynamo=False,
        )


def take_samples(
    model: Speech, recordings: Recordings, *, strings: int, seed: int
) -> dict[str, Floats]:
    """Chunks as the model meets them, with the state it has then: every fifth of each string."""
    features, _ = make_batch(recordings, strings, np.random.default_rng(seed))
    state, kept = torch.zeros(strings, *model.state_shape), []
    with torch.inference_mode():
        for number, chunk in enumerate(features.split(CHUNK, dim=2)):
            rows = slice(number % 5, None, 5)
            kept.append((chunk[rows].numpy(), state[rows].numpy()))
            _, state = model(chunk, state)
    chunks, states = zip(*kept, strict=True)
    return {"features": np.concatenate(chunks), "state": np.concatenate(states)}


def write_tests(held: dict[str, Recordings], folder: Path, *, passes: int, seed: int) -> None:
    """Strings of 3 to 7 digits, SPEAKER_NUMBER_DIGITS.wav; each recording is in `passes`."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for speaker, recordings in held.items():
        number = 0
        for _ in range(passes):
            order = random.permutation(len(recordings.sounds))
            while len(order):
                chosen, order = np.split(order, [random.integers(3, 8)])
                sound, digits = join(recordings, chosen, random, vary=False)
                with wave.open(str(folder / f"{speaker}_{number:03d}_{digits}.wav"), "wb") as file:
                    file.setparams((1, 2, RATE, len(sound), "NONE", ""))
                    whole = np.clip(32768 * sound, -32768, 32767)
                    file.writeframes(whole.astype("<i2").tobytes())
                number += 1


def main() -> None:
    """Trains and writes the model, its samples and the test recordings."""
    parser = argparse.ArgumentParser(description="Trains the network of speech.py.")
    parser.add_argument("data", type=Path, help="fsdd.npz")
    parser.add_argument("--out", type=Path, default=Path("speech"))
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--passes", type=int, default=3, help="test strings of each recording")
    parser.add_argument("--strings", type=int, default=300, help="that samples are taken from")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    recordings, held = read_recordings(options.data)
    write_tests(held, options.out / "test", passes=options.passes, seed=options.seed)
    model = train(recordings, steps=options.steps, seed=options.seed)
    export(model, options.out / "speech.onnx")
    samples = take_samples(model, recordings, strings=options.strings, seed=options.seed + 1)
    np.savez_compressed(options.out / "speech.samples.npz", **samples)


if __name__ == "__main__":
    main()
