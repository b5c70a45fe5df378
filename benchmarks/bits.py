"""How many bits the layers of a file really have: read off its codes, whoever wrote it.

A weight's bits are what its codes span (codes from -8 to 7 have 4, also where they are held
as int8), 32 where it is stored in float. An activation's are those of the codes that the layer
reads, 32 where it reads floats that were not rounded.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

LAYERS = ("Conv", "Gemm", "MatMul")
FLOAT = 32
# What stands between codes and the layer that reads them, and which input leads to the codes.
DECODERS = {"Cast": 0, "DequantizeLinear": 0, "Gather": 1, "Mul": 0, "Reshape": 0, "Transpose": 0}
KINDS = {
    onnx.TensorProto.UINT4: 4,
    onnx.TensorProto.INT4: 4,
    onnx.TensorProto.UINT8: 8,
    onnx.TensorProto.INT8: 8,
    onnx.TensorProto.UINT16: 16,
    onnx.TensorProto.INT16: 16,
}


@dataclass(frozen=True)
class Bits:
    """weights: average bits of a weight, scales not counted. activations: layers by bits read."""

    weights: float
    activations: dict[int, int]


def read_bits(model: Path) -> Bits:
    """Returns the bits of all layers with constant weights of a file's main graph."""
    graph = onnx.load(model).graph
    producers = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    total, count, reads = 0.0, 0, Counter[int]()
    for node in graph.node:
        if node.op_type not in LAYERS:
            continue
        codes = follow(node.input[1], producers)[-1]
        if codes not in constants:
            continue
        values = numpy_helper.to_array(constants[codes])
        total += values.size * count_bits(values)
        count += values.size
        reads[activation_bits(node.input[0], producers, constants)] += 1
    return Bits(total / max(count, 1), dict(sorted(reads.items())))


def follow(name: str, producers: dict[str, onnx.NodeProto]) -> list[str]:
    """Returns the names from a layer's input back to what is decoded there."""
    names = [name]
    while names[-1] in producers and producers[names[-1]].op_type in DECODERS:
        node = producers[names[-1]]
        names.append(node.input[DECODERS[node.op_type]])
    return names


def count_bits(values: np.ndarray) -> int:
    """Returns the bits that the codes of a weight span; 32 for floats."""
    if values.dtype.kind == "f":
        return FLOAT
    codes = values.astype(np.int64)
    low, high = int(codes.min()), int(codes.max())
    return (high if low >= 0 else max(high, -low - 1)).bit_length() + (low < 0)


def activation_bits(
    name: str, producers: dict[str, onnx.NodeProto], constants: dict[str, onnx.TensorProto]
) -> int:
    """Returns the bits of the codes that a layer's input was decoded from."""
    for each in follow(name, producers):
        node = producers.get(each)
        if node is not None and node.op_type == "DequantizeLinear" and len(node.input) > 2:
            return KINDS[constants[node.input[2]].data_type]
    return FLOAT
