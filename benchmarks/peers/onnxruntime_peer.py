"""onnxruntime's own `quantize_static`: per-channel QDQ, after its own preparation."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from feeding import Feeds, feeds, read_ranks
from numpy.typing import NDArray

from peers.opset import raise_opset

TYPES = {"U8": "QUInt8", "S8": "QInt8", "U4": "QUInt4", "S4": "QInt4"}


class OnnxRuntimePeer:
    """One choice of number formats and calibrator.

    activations, weights: a key of TYPES. calibrator: "MinMax", "Entropy" or "Percentile".
    reduce_range: 7-bit weights, for processors whose U8S8 kernels saturate.
    float_ends: the first and the last layer stay float32.
    """

    def __init__(
        self,
        activations: str,
        weights: str,
        calibrator: str,
        *,
        reduce_range: bool = False,
        float_ends: bool = False,
    ) -> None:
        self.activations = activations
        self.weights = weights
        self.calibrator = calibrator
        self.reduce_range = reduce_range
        self.float_ends = float_ends
        self.name = f"onnxruntime {activations}{weights} {calibrator}"
        if reduce_range:
            self.name += " reduce_range"
        if float_ends:
            self.name += " ends in float"

    def quantize(self, model: Path, calibration: Mapping[str, NDArray], out: Path) -> None:
        """Prepares the file as the documentation asks for, then calibrates and quantizes."""
        from onnxruntime.quantization import (
            CalibrationDataReader,
            CalibrationMethod,
            QuantFormat,
            QuantType,
            quantize_static,
        )

        class Reader(CalibrationDataReader):
            def __init__(self, batches: Iterator[Feeds]) -> None:
                self.batches = batches

            def get_next(self) -> Feeds | None:
                return next(self.batches, None)

        with tempfile.TemporaryDirectory() as folder:
            prepared = prepare(raise_opset(model, Path(folder)), Path(folder) / "prepared.onnx")
            quantize_static(
                str(prepared),
                str(out),
                Reader(feeds(read_ranks(model), calibration, batch=64)),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=self.reduce_range,
                nodes_to_exclude=find_ends(prepared) if self.float_ends else None,
                activation_type=getattr(QuantType, TYPES[self.activations]),
                weight_type=getattr(QuantType, TYPES[self.weights]),
                calibrate_method=getattr(CalibrationMethod, self.calibrator),
            )


def prepare(model: Path, prepared: Path) -> Path:
    """Runs `quant_pre_process`; where it fails, the file itself is quantized (as a user would)."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    for symbolic in (True, False):
        try:
            quant_pre_process(str(model), str(prepared), skip_symbolic_shape=not symbolic)
        except Exception as error:
            print(
                f"quant_pre_process failed (symbolic shapes: {symbolic}): {error}", file=sys.stderr
            )
        else:
            return prepared
    return model


def find_ends(model: Path) -> list[str]:
    """Returns the names of the first and the last layer with weights, in the file's order."""
    import onnx

    nodes = onnx.load(model, load_external_data=False).graph.node
    names = [node.name for node in nodes if node.op_type in ("Conv", "Gemm", "MatMul")]
    return [names[0], names[-1]]
