"""A LiteRT file being written: tensors, constants and operators, until they become bytes.

The format is the flatbuffer of TensorFlow Lite, schema version 3, whose Python code comes with
LiteRT itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

ALIGNMENT = 16
"""Bytes: the schema wants constants to begin at a multiple of it."""

_IDENTIFIER = b"TFL3"
_SCHEMA_VERSION = 3
_PLACEHOLDER = 127
"""Where an operator's number does not fit the byte that old readers look at."""

_TYPES = {
    "float32": schema.TensorType.FLOAT32,
    "float16": schema.TensorType.FLOAT16,
    "int8": schema.TensorType.INT8,
    "uint8": schema.TensorType.UINT8,
    "int32": schema.TensorType.INT32,
    "int64": schema.TensorType.INT64,
    "bool": schema.TensorType.BOOL,
}

# The first version of each operator that has 8-bit integers, or what else is used of it here.
_VERSIONS = {
    "ADD": 2,
    "AVERAGE_POOL_2D": 2,
    "CONCATENATION": 2,
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3,
    "DEQUANTIZE": 5,
    "FULLY_CONNECTED": 4,
    "LEAKY_RELU": 2,
    "MAX_POOL_2D": 2,
    "MEAN": 2,
    "MUL": 2,
    "PAD": 2,
    "PADV2": 2,
    "QUANTIZE": 2,
    "RESIZE_BILINEAR": 3,
    "RESIZE_NEAREST_NEIGHBOR": 3,
    "STRIDED_SLICE": 2,
    "TRANSPOSE": 2,
    "TRANSPOSE_CONV": 3,
}


class Unwritable(ValueError):
    """Something that LiteRT has no form for, or that is not written here."""


@dataclass(frozen=True)
class Quantization:
    """What codes stand for: scale (code - zero), with one of each, or one along `axis`."""

    scale: NDArray[np.float32]
    zero: NDArray[np.int64]
    axis: int = 0

    def equals(self, other: Quantization) -> bool:
        """Whether codes stand for the same numbers."""
        same = np.array_equal(self.scale, other.scale) and np.array_equal(self.zero, other.zero)
        return same and (self.scale.size == 1 or self.axis == other.axis)


class Draft:
    """One graph; tensors are known by their number."""

    def __init__(self) -> None:
        self._tensors: list[Any] = []
        # The first buffer is empty by convention: tensors that are no constants have it.
        self._buffers = [schema.BufferT()]
        self._operators: list[Any] = []
        self._codes: dict[str, int] = {}

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        dtype: str,
        quantization: Quantization | None = None,
        *,
        buffer: int = 0,
    ) -> int:
        """Add a tensor, of a NumPy type's name."""
        if dtype not in _TYPES:
            raise Unwritable(f"tensor {name!r} is of type {dtype}, which LiteRT is not given")
        found = schema.TensorT(
            shape=[int(extent) for extent in shape],
            type=_TYPES[dtype],
            buffer=buffer,
            name=name,
            hasRank=True,
        )
        if quantization is not None:
            found.quantization = schema.QuantizationParametersT(
                scale=quantization.scale.astype(np.float32).reshape(-1),
                zeroPoint=quantization.zero.astype(np.int64).reshape(-1),
                quantizedDimension=quantization.axis,
            )
        self._tensors.append(found)
        return len(self._tensors) - 1

    def constant(
        self, name: str, array: NDArray[Any], quantization: Quantization | None = None
    ) -> int:
        """Add a tensor that always holds `array`."""
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self._buffers.append(schema.BufferT(data=flat))
        return self.tensor(
            name, array.shape, array.dtype.name, quantization, buffer=len(self._buffers) - 1
        )

    def operator(
        self,
        name: str,
        inputs: Sequence[int],
        outputs: Sequence[int],
        options: str = "",
        **fields: Any,
    ) -> None:
        """Add an operator; inputs: -1 for one that is left out. fields: of its options."""
        made = schema.OperatorT(
            opcodeIndex=self._codes.setdefault(name, len(self._codes)),
            inputs=[*inputs],
            outputs=[*outputs],
        )
        if options:
            made.builtinOptionsType = getattr(schema.BuiltinOptions, options)
            made.builtinOptions = getattr(schema, f"{options}T")(**fields)
        self._operators.append(made)

    def pack(self, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> bytes:
        """The file. inputs, outputs: tensors by the names under which they are asked for."""
        graph = schema.SubGraphT(
            tensors=self._tensors,
            inputs=[*inputs.values()],
            outputs=[*outputs.values()],
            operators=self._operators,
            name="main",
        )
        signature = schema.SignatureDefT(
            inputs=[schema.TensorMapT(name, index) for name, index in inputs.items()],
            outputs=[schema.TensorMapT(name, index) for name, index in outputs.items()],
            signatureKey="serving_default",
        )
        model = schema.ModelT(
            version=_SCHEMA_VERSION,
            operatorCodes=[self._code(name) for name in self._codes],
            subgraphs=[graph],
            description="packlight",
            buffers=self._buffers,
            signatureDefs=[signature],
        )
        builder = _AlignedBuilder(sum(_bytes_of(one) for one in self._buffers) + (1 << 16))
        builder.Finish(model.Pack(builder), file_identifier=_IDENTIFIER)
        return bytes(builder.Output())

    def _code(self, name: str) -> Any:
        number = getattr(schema.BuiltinOperator, name)
        return schema.OperatorCodeT(
            deprecatedBuiltinCode=min(number, _PLACEHOLDER),
            builtinCode=number,
            version=_VERSIONS.get(name, 1),
        )


def _bytes_of(buffer: Any) -> int:
    return 0 if buffer.data is None else len(buffer.data) + ALIGNMENT


class _AlignedBuilder(flatbuffers.Builder):  # type: ignore[misc]
    """Puts vectors of bytes, which are the constants, where kernels may read them."""

    def StartVector(  # noqa: N802 (its names there)
        self, elemSize: int, numElems: int, alignment: int
    ) -> int:
        least = ALIGNMENT if elemSize == 1 else 1
        return int(super().StartVector(elemSize, numElems, max(alignment, least)))
