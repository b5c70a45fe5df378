"""The quantizers that are compared, behind one small interface.

A peer reads a float32 ONNX file and calibration samples, and writes an 8-bit file.
`table.py` lists the configurations; `python -m peers` runs one of them, so that a
crash, a hang or a leak of one stays its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from numpy.typing import NDArray


class Peer(Protocol):
    """A quantizer in one configuration."""

    name: str

    def quantize(self, model: Path, calibration: Mapping[str, NDArray], out: Path) -> None:
        """Quantizes weights and activations to 8 bits and writes the file `out`.

        model: a float32 ONNX file.
        calibration: for each input the samples, stacked along axis 0 (see `feeding.py`).
        out: where to write; further files that must be shipped lie beside it.
        Raises whatever the quantizer raises.
        """
        ...
