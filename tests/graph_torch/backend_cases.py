"""Runs the cases of ONNX's own backend tests through the module."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests

from packlight.graph.torch.module import GraphModule
from packlight.graph.torch.values import DTYPES, array_from, tensor_from_array


@cache
def cases_of(kind: str) -> dict[str, TestCase]:
    """The cases of a kind by name; those that need a download are left out."""
    found = load_model_tests(kind=kind)
    return {case.name: case for case in found if case.model is not None or case.model_dir}


def run_case(case: TestCase) -> None:
    """Raise AssertionError where a case's outputs are not those expected."""
    proto = case.model or onnx.load(Path(case.model_dir) / "model.onnx")
    model = ir.from_proto(proto)
    given = [value for value in model.graph.inputs if not value.is_initializer()]
    module = GraphModule(model)
    for inputs, outputs in data_of(case, proto):
        by_name = dict(zip([value.name for value in proto.graph.input], inputs, strict=False))
        with torch.no_grad():
            found = module(*[to_value(by_name[str(value.name)], value) for value in given])
        found = found if isinstance(found, tuple) else (found,)
        assert len(found) == len(outputs)
        for value, expected, result in zip(model.graph.outputs, outputs, found, strict=True):
            check_equal(result, expected, value, rtol=case.rtol, atol=case.atol)


def data_of(case: TestCase, proto: onnx.ModelProto) -> list[tuple[Sequence[Any], Sequence[Any]]]:
    if case.data_sets is not None:
        return list(case.data_sets)
    found = []
    for folder in sorted(Path(case.model_dir).glob("test_data_set*")):
        pair = []
        for kind, values in (("input", proto.graph.input), ("output", proto.graph.output)):
            count = len(list(folder.glob(f"{kind}_*.pb")))
            pair.append(
                [
                    read(folder / f"{kind}_{index}.pb", value.type)
                    for index, value in enumerate(list(values)[:count])
                ]
            )
        found.append((pair[0], pair[1]))
    return found


def read(path: Path, kind: onnx.TypeProto) -> Any:
    content = path.read_bytes()
    if kind.HasField("sequence_type"):
        return onnx.numpy_helper.to_list(onnx.SequenceProto.FromString(content))
    if kind.HasField("optional_type"):
        return onnx.numpy_helper.to_optional(onnx.OptionalProto.FromString(content))
    return onnx.numpy_helper.to_array(onnx.TensorProto.FromString(content))


def code_of(value: ir.Value) -> int:
    kind: Any = value.type
    while isinstance(kind, ir.SequenceType | ir.OptionalType):
        kind = kind.elem_type
    return int(kind.dtype if isinstance(kind, ir.TensorType) else kind)


def as_array(data: Any) -> NDArray[Any]:
    """A case's data, which are protobufs where NumPy has no such type."""
    if isinstance(data, onnx.TensorProto):
        return onnx.numpy_helper.to_array(data)
    return np.asarray(data)


def to_value(data: Any, value: ir.Value) -> Any:
    """What the module takes for an input of a case."""
    if data is None:
        return None
    if isinstance(data, list):
        return [to_value(one, value) for one in data]
    code = code_of(value)
    array = as_array(data)
    if code == ir.DataType.STRING:
        text = [one.decode() if isinstance(one, bytes) else str(one) for one in array.flat]
        return np.asarray(text, dtype=object).reshape(array.shape)
    return tensor_from_array(array, code)


def check_equal(found: Any, expected: Any, value: ir.Value, *, rtol: float, atol: float) -> None:
    if expected is None:
        assert found is None
    elif isinstance(expected, list):
        assert isinstance(found, list)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            check_equal(one, other, value, rtol=rtol, atol=atol)
    else:
        code = code_of(value)
        wanted = as_array(expected)
        if code == ir.DataType.STRING:
            text = [one.decode() if isinstance(one, bytes) else str(one) for one in wanted.flat]
            assert list(found.flat) == text
            assert found.shape == wanted.shape
            return
        assert found.dtype == DTYPES[code], (found.dtype, DTYPES[code])
        assert tuple(found.shape) == wanted.shape
        array = array_from(found, code)
        if found.dtype in (torch.float16, torch.bfloat16):
            # Two steps of the type: the cases were computed in another order.
            rtol = max(rtol, 2 * torch.finfo(found.dtype).eps)
        if array.dtype.kind not in "biufc":
            array, wanted = array.astype(np.float64), wanted.astype(np.float64)
        np.testing.assert_allclose(array, wanted, rtol=rtol, atol=atol, equal_nan=True)
