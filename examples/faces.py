"""Finds faces in photos: a detector and what packlight makes of it, side by side.

    pip install packlight pillow
    python examples/faces.py PHOTOS --model detector.onnx --out found/

The detector is UltraFace (version-RFB-320.onnx of github.com/Linzaer/Ultra-Light-Fast-Generic-
Face-Detector-1MB, MIT): `input` [1, 3, 240, 320] from RGB pixels as (x - 127) / 128, `scores`
[1, n, 2] and `boxes` [1, n, 4] (left, top, right, bottom, as shares of width and height).

Crops of every second photo are the samples that it is compressed with, once, to a third of its
size at most; what must be kept are the faces that it finds. found/packed holds the smaller model
and its report. The other photos, which it has not seen, are searched by both.
found/ gets them with the faces drawn (green: the original's, orange: the compressed model's), and
a table is printed: whether both see the same faces, and how long a photo takes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image, ImageDraw

import packlight

WIDTH, HEIGHT = 320, 240
CONFIDENT = 0.7
"""From this score on something is a face."""

OVERLAP = 0.5
"""Two boxes whose intersection is more than this share of their union are one face."""

CROPS = 60
"""Samples of each photo."""

GREEN, ORANGE = "#2ca02c", "#ff7f0e"
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}

Boxes = NDArray[np.float32]


@dataclass(frozen=True)
class Found:
    """The faces of a photo: boxes [n, 4] as shares of its sides, the surest first."""

    boxes: Boxes
    ms: float


def main() -> int:
    """Compresses, searches, draws, prints."""
    options = _options()
    photos = sorted(path for path in options.photos.iterdir() if path.suffix.lower() in SUFFIXES)
    if len(photos) < 2:
        raise SystemExit(f"{options.photos} holds {len(photos)} photos: give 2 at least.")
    packed = options.out / "packed"
    if not (packed / "model.onnx").is_file():
        result = compress(options.model, photos[::2], options.heal_minutes, seed=options.seed)
        result.save(packed)
        print(result)
    sessions = [open_detector(path) for path in (options.model, packed / "model.onnx")]
    print("| photo | faces | the compressed model's | in both | mean IoU | ms | compressed ms |")
    print("|---" * 7 + "|")
    totals = np.zeros(6)
    for path in photos[1::2]:
        photo = Image.open(path).convert("RGB")
        first, second = find_in_turns(sessions, read_pixels(photo), options.rounds)
        shared = match(first.boxes, second.boxes)
        row = [len(first.boxes), len(second.boxes), len(shared), sum(shared), first.ms, second.ms]
        totals += row
        print(f"| {path.name} {_cells(row)}", flush=True)
        sheet = Image.new("RGB", photo.size, "white") if options.blank else photo
        draw(sheet, first.boxes, second.boxes).save(options.out / f"{path.stem}.jpg")
    count = len(photos[1::2])
    print(f"| all {_cells([*totals[:4], *totals[4:] / count])}")
    f1 = 2 * totals[2] / max(totals[0] + totals[1], 1)
    sizes = [path.stat().st_size for path in (options.model, packed / "model.onnx")]
    download = packlight.pack(packed, force=True).packed_bytes
    print(
        f"\n{sizes[0]:,} bytes became {sizes[1]:,} ({sizes[0] / sizes[1]:.2f}x smaller; packed for "
        f"the download {download:,}, {sizes[0] / download:.2f}x), "
        f"{totals[4] / totals[5]:.1f}x faster; F1 of the original's faces {f1:.1%}"
    )
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("photos", type=Path, help="a folder of photos")
    parser.add_argument("--model", type=Path, required=True, help="the detector")
    parser.add_argument("--out", type=Path, default=Path("found"))
    parser.add_argument("--blank", action="store_true", help="draw the boxes without the photo")
    parser.add_argument(
        "--heal-minutes", type=float, default=0.0, help="train the smaller one so long (PyTorch)"
    )
    parser.add_argument("--rounds", type=int, default=20, help="timed runs of each photo")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def compress(
    model: Path, photos: Sequence[Path], heal_minutes: float = 0.0, *, seed: int = 0
) -> packlight.Result:
    """Make the detector smaller with random crops of photos as its samples."""
    random = np.random.default_rng(seed)
    crops = [crop for path in photos for crop in crop_at_random(Image.open(path), random)]
    pixels = [read_pixels(crop) for crop in crops]
    detector = open_detector(model)
    found = [detector.run(["scores", "boxes"], {"input": one}) for one in pixels]
    data = {
        "input": np.concatenate(pixels),
        "labels": np.concatenate([np.concatenate(one, axis=2) for one in found]),
    }
    result = packlight.compress(
        model,
        data=data,
        metric=share_of_faces,
        max_drop=0.01,
        max_size="33%",
        heal_minutes=heal_minutes,
        seed=seed,
    )
    assert isinstance(result, packlight.Result)
    return result


def share_of_faces(
    outputs: dict[str, NDArray[np.float32]], labels: NDArray[np.float32] | None
) -> NDArray[np.float64]:
    """The metric that the compressed detector must keep: how far its faces are the original's in
    each sample (F1: 1 for the same ones, 0 for none of them).

    outputs: scores [n, boxes, 2] and boxes [n, boxes, 4]; labels [n, boxes, 6]: the original's.
    """
    assert labels is not None
    shares = []
    for scores, boxes, right in zip(outputs["scores"], outputs["boxes"], labels, strict=True):
        ours, theirs = pick_faces(scores, boxes), pick_faces(right[:, :2], right[:, 2:])
        both, all_of_them = len(match(theirs, ours)), len(ours) + len(theirs)
        shares.append(2 * both / all_of_them if all_of_them else 1.0)
    return np.array(shares)


def crop_at_random(photo: Image.Image, random: np.random.Generator) -> list[Image.Image]:
    """The whole photo and parts of it: faces come in all sizes and places."""
    photo = photo.convert("RGB")
    crops = [photo]
    for share in random.uniform(0.3, 1.0, CROPS - 1):
        width, height = (int(side * share) for side in photo.size)
        left = random.integers(photo.width - width + 1)
        top = random.integers(photo.height - height + 1)
        crops.append(photo.crop((left, top, left + width, top + height)))
    return crops


def read_pixels(photo: Image.Image) -> NDArray[np.float32]:
    """What the detector takes: [1, 3, HEIGHT, WIDTH]."""
    pixels = np.asarray(photo.resize((WIDTH, HEIGHT)), np.float32)
    return np.ascontiguousarray((pixels.transpose(2, 0, 1)[None] - 127) / 128)


def open_detector(path: Path) -> onnxruntime.InferenceSession:
    """The model in onnxruntime, on one thread."""
    how = onnxruntime.SessionOptions()
    how.intra_op_num_threads, how.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(str(path), how, providers=["CPUExecutionProvider"])


def find_in_turns(sessions: Sequence[Any], pixels: NDArray[np.float32], rounds: int) -> list[Found]:
    """What each detector finds, and its median milliseconds: they take turns, so that whatever
    else the machine does slows all of them.
    """
    answers: list[Any] = [None] * len(sessions)
    taken = np.zeros((rounds, len(sessions)))
    for turn in range(rounds):
        for place, session in enumerate(sessions):
            begun = time.perf_counter()
            answers[place] = session.run(["scores", "boxes"], {"input": pixels})
            taken[turn, place] = 1000 * (time.perf_counter() - begun)
    pairs = zip(answers, np.median(taken, axis=0), strict=True)
    return [Found(pick_faces(scores[0], boxes[0]), ms) for (scores, boxes), ms in pairs]


def pick_faces(scores: NDArray[np.float32], boxes: Boxes) -> Boxes:
    """Boxes that are sure enough, without those that overlap a surer one (non-maximum
    suppression).
    """
    sure = np.flatnonzero(scores[:, 1] > CONFIDENT)
    left = sure[np.argsort(-scores[sure, 1], kind="stable")]
    kept = []
    while len(left):
        kept.append(left[0])
        left = left[1:][overlaps(boxes[left[0]], boxes[left[1:]]) <= OVERLAP]
    return boxes[kept]


def overlaps(box: Boxes, others: Boxes) -> NDArray[np.float32]:
    """Intersection over union of a box with others [n, 4]."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=1)
    areas = np.prod(others[:, 2:] - others[:, :2], axis=1)
    return shared / np.maximum(np.prod(box[2:] - box[:2]) + areas - shared, 1e-12)


def match(boxes: Boxes, others: Boxes) -> list[float]:
    """The overlap of each box with the other that is the same face, where there is one."""
    found = []
    for box in boxes:
        sizes = overlaps(box, others)
        if len(sizes) and sizes.max() > OVERLAP:
            found.append(float(sizes.max()))
            others = np.delete(others, sizes.argmax(), axis=0)
    return found


def draw(photo: Image.Image, boxes: Boxes, others: Boxes) -> Image.Image:
    """The photo with both detectors' boxes; the second's a little larger, so that both show."""
    pen = ImageDraw.Draw(photo)
    sides = np.array(photo.size * 2)
    line = max(2, photo.width // 400)
    for faces, color, more in ((boxes, GREEN, 0), (others, ORANGE, line)):
        for left, top, right, bottom in faces * sides:
            corners = (left - more, top - more, right + more, bottom + more)
            pen.rectangle(corners, outline=color, width=line)
    return photo


def _cells(row: Sequence[float]) -> str:
    theirs, ours, both, overlap, ms, less = row
    mean = f"{overlap / both:.3f}" if both else ""
    return f"| {theirs:.0f} | {ours:.0f} | {both:.0f} | {mean} | {ms:.2f} | {less:.2f} |"


if __name__ == "__main__":
    sys.exit(main())
