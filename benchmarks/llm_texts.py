"""The texts of a small language model, cut into windows: one to calibrate with, one to test on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from packlight.llm.checkpoint import open_checkpoint
from packlight.llm.text import Windows, open_tokenizer, read_windows
from packlight.measure.language_run import cut_windows


def calibration_windows(model: Path, sequences: int) -> Windows:
    """So many sequences of 1,024 tokens of what the model was trained on."""
    folder = model / "hf"
    return read_windows(
        model / "text" / "train_sample.txt",
        open_tokenizer(folder),
        vocabulary=open_checkpoint(folder).config.vocabulary,
        calibration=sequences,
        length=1024,
    )


def test_windows(model: Path, tokens: int, window: int) -> NDArray[np.integer]:
    """The first tokens of a book that nobody trained on, by the model's own tokenizer."""
    text = (model / "text" / "test.txt").read_text(encoding="utf-8")
    return cut_windows(open_tokenizer(model / "hf")(text), window, most=tokens)
