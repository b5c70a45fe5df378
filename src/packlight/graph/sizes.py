"""What a layer's weights weigh under each choice: in the file, and once the file is packed."""

from __future__ import annotations

import math

from packlight.graph.layers import Layer
from packlight.graph.rewrite.packing import BLOCK
from packlight.graph.walk import constant_of, shape_of
from packlight.maths.formats import FORMATS
from packlight.recipe import Choice, parse_choice

# What the nodes, names and short constants of a choice take in a file, measured.
_NODES = {"static": 700, "dynamic": 200, "blocks": 250, "float": 200}
_OF_A_TABLE = 250

_WHOLE = frozenset({"ternary", "binary", *(f"int{bits}" for bits in range(2, 9))})
"""Forms whose codes are the numbers, without a table of levels."""

_WITHOUT_SCALES = frozenset({"coded", "sparse", *(f"shared{bits}" for bits in range(2, 9))})
"""Forms with at most one scale for the whole weight."""


def stored_bytes(layer: Layer, choice: str) -> int:
    """How many bytes a layer's weights take in the file under a choice, scales included.

    Codes of up to 4 bits take 4, as from operator set 21 on.
    """
    one = parse_choice(choice)
    if one.word == "float32":
        return layer.bytes
    if one.weights == "sparse":
        return layer.bytes  # zeros are floats as others are
    if one.word == "float16":
        return min(2 * layer.parameters + _NODES["float"] // 2, layer.bytes)
    shapes = matrix_shapes(layer)
    if one.compute in ("static", "dynamic") and one.activation_bits != 4:
        rows = sum(rows for rows, _ in shapes)
        scales = 8 if layer.bias is not None and one.compute == "static" else 4
        zeros = 1 if layer.kind in ("Gemm", "LSTM") else 0
        return layer.parameters + (scales + zeros) * rows + _NODES[one.compute]
    nodes = _NODES["blocks" if one.compute == "blocks" else "float"] * len(shapes)
    nodes += _OF_A_TABLE if one.activation_bits == 4 else 0
    total = sum(_stored(one, rows, inputs) for rows, inputs in shapes) + nodes
    if one.compute == "float" and one.weights in FORMATS and one.weights not in _WHOLE:
        grid = FORMATS[one.weights].grid
        total += 4 * int(grid.maximum - grid.minimum + 1)  # one table for all of them
    if layer.kind == "ConvTranspose" and layer.groups > 1 and _block(one)[1] == -1:
        # Scales vary along both axes of the weight: in its shape they are there group by group.
        inputs, outputs = layer.weight_shape[:2]
        total += 4 * (inputs - layer.groups) * outputs * (one.weights not in _WITHOUT_SCALES)
    return total


def packed_bits(layer: Layer, choice: str) -> float:
    """The nominal bits of a layer's weights in an entropy-coded file, scales included."""
    one = parse_choice(choice)
    bits = one.bits * layer.parameters
    if one.weights.startswith("float"):
        return 8.0 * layer.bytes if one.word == "float32" else bits
    if one.weights.startswith("shared"):
        return bits + 32 * 2**one.bits
    if one.weights not in _WITHOUT_SCALES and one.compute != "blocks" and _block(one)[1] == -1:
        bits += 32 * sum(rows for rows, _ in matrix_shapes(layer))
    return bits


def matrix_shapes(layer: Layer) -> list[tuple[int, int]]:
    """[rows, in] of each weight of a layer as `weight_matrix` lays it out."""
    found = []
    for weight in layer.weights:
        tensor = constant_of(weight)
        shape = shape_of(tensor) if tensor is not None else ()
        if layer.kind == "ConvTranspose":
            rows = layer.groups * shape[1]
        elif layer.kind in ("Gemm", "MatMul", "Attention"):
            rows = shape[layer.out_axis]
        elif layer.kind in ("LSTM", "GRU", "RNN"):
            rows = math.prod(shape[:-1])
        else:
            rows = shape[0]
        found.append((rows, math.prod(shape) // max(rows, 1)))
    return found


def _stored(choice: Choice, rows: int, inputs: int) -> int:
    """Bytes of codes, levels and scales of one weight."""
    if choice.compute == "blocks":
        bits, blocks = int(choice.weights[3:]), -(-inputs // BLOCK)
        return rows * (blocks * BLOCK * bits // 8 + 4 * blocks + -(-blocks * bits // 8))
    if choice.weights == "coded":
        return rows * inputs
    if choice.weights.startswith("shared"):
        count = 1 << int(choice.bits)
        width = 4 if count <= 16 else 8
        return rows * inputs * width // 8 + 4 * min(count, rows * inputs) + _OF_A_TABLE // 2
    block = _block(choice)[1]
    format_ = FORMATS[choice.weights]
    size = inputs if block == -1 else block
    blocks = -(-inputs // size)
    width = 4 if format_.bits <= 4 else 8
    total = rows * blocks * size * width // 8
    if choice.weights in _WHOLE:
        return total + 4 * rows
    scales = 4 if format_.storage.bits == 32 else 1
    table = _OF_A_TABLE * (1 + (scales == 1)) // 2
    return total + scales * rows * blocks + table + (0 if block == -1 else 350)


def _block(choice: Choice) -> tuple[int, int]:
    return FORMATS[choice.weights].block_shape if choice.weights in FORMATS else (1, -1)
