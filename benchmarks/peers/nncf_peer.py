"""NNCF's post-training quantization with its default settings."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from feeding import feeds, read_ranks
from numpy.typing import NDArray

from peers.opset import raise_opset

BATCH = 64


class NncfPeer:
    """`nncf.quantize` on the ONNX file.

    overflow_fix: 7-bit weights in every layer, for processors whose U8S8 kernels saturate
        (NNCF's own default does so in the first layer only).
    """

    def __init__(self, *, overflow_fix: bool = False) -> None:
        self.overflow_fix = overflow_fix
        self.name = "NNCF overflow_fix" if overflow_fix else "NNCF"

    def quantize(self, model: Path, calibration: Mapping[str, NDArray], out: Path) -> None:
        """Quantizes with all calibration samples, in batches where the model takes them.

        The batch matters: NNCF averages the least and largest values of its items, so that
        single pictures give ranges that clip (resnet20: 20 dB, against 28 dB in batches of
        64). It gets the same batches as the other peers.
        """
        os.environ["NNCF_CI"] = "1"  # switches its usage statistics off: no network calls here
        import nncf
        import onnx

        items = list(feeds(read_ranks(model), calibration, batch=BATCH))
        advanced = None
        if self.overflow_fix:
            advanced = nncf.AdvancedQuantizationParameters(
                overflow_fix=nncf.OverflowFix.ENABLE,
            )
        with tempfile.TemporaryDirectory() as folder:
            proto = onnx.load(raise_opset(model, Path(folder)))
        quantized = nncf.quantize(
            proto,
            nncf.Dataset(items),
            subset_size=len(items),
            advanced_parameters=advanced,
        )
        onnx.save(quantized, out)
