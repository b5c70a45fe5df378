"""Small graphs as text, as modules, and what the runtime makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from packlight.graph.torch.module import GraphModule


def build(
    text: str, *, opset: int = 17, head: str = "", learn_scales: bool = False, **weights: Any
) -> tuple[GraphModule, onnx.ModelProto]:
    """A module of ONNX text and arrays as initializers, and the model itself."""
    proto = parse(text, opset=opset, head=head, **weights)
    return GraphModule(ir.from_proto(proto), learn_scales=learn_scales), proto


def parse(text: str, *, opset: int = 17, head: str = "", **weights: Any) -> onnx.ModelProto:
    imports = f'"" : {opset}, "com.microsoft" : 1{head}'
    proto = onnx.parser.parse_model(f"<ir_version: 10, opset_import: [{imports}]>\n{text}")
    for name, array in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return proto


def run_runtime(proto: onnx.ModelProto, feeds: dict[str, NDArray[Any]]) -> list[Any]:
    """The runtime's outputs, of the graph as it stands."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    return list(session.run(None, feeds))


def run_module(module: GraphModule, feeds: dict[str, NDArray[Any]]) -> list[Any]:
    with torch.no_grad():
        found = module.run({name: torch.from_numpy(array) for name, array in feeds.items()})
    return [one.numpy() for one in found.values()]


def check_like_runtime(
    text: str, feeds: dict[str, NDArray[Any]], *, tolerance: float = 1e-5, **given: Any
) -> GraphModule:
    """Assert that the module gives what the runtime gives, and return it."""
    module, proto = build(text, **given)
    for one, other in zip(run_module(module, feeds), run_runtime(proto, feeds), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)
    return module
