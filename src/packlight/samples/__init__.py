"""Turns what people have (arrays, pictures, sound, a DataLoader, or nothing) into samples."""

from packlight.samples.axes import alternative_axes
from packlight.samples.batches import (
    BATCH,
    Batch,
    batches_of,
    feeds_of,
    feeds_of_one,
    shapes_of_one,
)
from packlight.samples.generate import generate_samples
from packlight.samples.open import open_samples
from packlight.samples.preprocess import PREPROCESS_CANDIDATES
from packlight.samples.protocol import Samples, class_names_of
from packlight.samples.split import Split, fingerprints_of, hold_out, split_samples

__all__ = [
    "BATCH",
    "PREPROCESS_CANDIDATES",
    "Batch",
    "Samples",
    "Split",
    "alternative_axes",
    "batches_of",
    "class_names_of",
    "feeds_of",
    "feeds_of_one",
    "fingerprints_of",
    "generate_samples",
    "hold_out",
    "open_samples",
    "shapes_of_one",
    "split_samples",
]
