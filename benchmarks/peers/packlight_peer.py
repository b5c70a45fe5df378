"""packlight, through its public API, with its default settings."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from numpy.typing import NDArray


class PacklightPeer:
    """`packlight.compress`: the calibration samples are all it gets, without labels."""

    name = "packlight"

    def quantize(self, model: Path, calibration: Mapping[str, NDArray], out: Path) -> None:
        """Compresses, saves the folder and takes the model (and what it refers to) out of it."""
        import packlight

        result = packlight.compress(model, data=dict(calibration), target="laptop", seed=0)
        with tempfile.TemporaryDirectory() as folder:
            saved = Path(folder) / "packed"
            result.save(saved)
            for file in saved.glob("model.onnx*"):
                shutil.copyfile(file, out.with_name(file.name.replace("model.onnx", out.name)))
