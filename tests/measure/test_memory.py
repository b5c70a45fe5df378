from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import parser

from packlight.measure.memory import measure_memory


def test_the_file_that_needs_more_is_seen(tmp_path: Path) -> None:
    for name, scale in (("small", 1), ("large", 1000)):
        text = f"""<ir_version: 10, opset_import: ["": 21]>
        g (int64[1] n) => (float s) {{
            scale = Constant <value_ints = [{scale}]> ()
            many = Mul (n, scale)
            y = ConstantOfShape (many)
            s = ReduceMax <keepdims = 0> (y)
        }}"""
        onnx.save(parser.parse_model(text), tmp_path / f"{name}.onnx")
    found = measure_memory(
        tmp_path / "large.onnx", tmp_path / "small.onnx", {"n": np.array([20_000])}
    )
    assert found.original > found.compressed + 40_000_000
    assert found.compressed > 10_000_000, "the runtime itself is part of it"
