"""A folder as `compress` writes it, small."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper


def build_model(seed: int = 0) -> onnx.ModelProto:
    """Sparse int8 codes with scales, an odd 4-bit tensor, a Constant node and an If branch."""
    rng = np.random.default_rng(seed)
    codes = np.round(rng.laplace(0, 0.5, (24, 60)) * (rng.random((24, 1)) < 0.5)).astype(np.int8)
    scale = rng.random(24).astype(np.float32)
    tensors = [
        numpy_helper.from_array(codes, "fc.weight_codes"),
        numpy_helper.from_array(scale, "fc.weight_scale"),
        numpy_helper.from_array(scale * np.float32(0.0123), "fc.bias_scale"),
        numpy_helper.from_array(rng.integers(-999, 999, 24).astype(np.int32), "fc.bias"),
        numpy_helper.from_array(rng.standard_normal((9, 11)).astype(np.float32), "w"),
        numpy_helper.from_array(np.arange(6, dtype=np.int64) - (1 << 40), "shape"),
        helper.make_tensor("odd", TensorProto.INT4, [5, 11], rng.integers(0, 255, 28)
                           .astype(np.uint8).tobytes(), raw=True),
    ]  # fmt: skip
    inner = numpy_helper.from_array(rng.integers(-2, 2, (8, 8, 3, 3)).astype(np.int8), "inner")
    value = helper.make_node("Constant", [], ["k"], value=inner)
    body = helper.make_graph([value], "branch", [], [])
    nodes = [helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)]
    graph = helper.make_graph(nodes, "net", [], [], tensors)
    return helper.make_model(graph, producer_name="packlight")


@pytest.fixture(scope="session")
def write_folder() -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        folder.mkdir()
        (folder / "model.onnx").write_bytes(build_model().SerializeToString())
        (folder / "recipe.yaml").write_text("schema: 1\nlayers:\n  /fc/Gemm: int8\n")
        (folder / "report.html").write_text("<p>" * 400)
        (folder / "report.json").write_text("{}")
        (folder / "empty.txt").write_text("")
        return folder

    return write


@pytest.fixture
def model() -> onnx.ModelProto:
    return build_model()
