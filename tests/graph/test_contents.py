"""Tensors that do not hold what their shape says, wherever they are in the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from packlight.errors import UnusableModel
from packlight.graph.model import load_model


def tensor(**fields: object) -> TensorProto:
    return TensorProto(**({"name": "bad", "data_type": TensorProto.FLOAT, "dims": [2]} | fields))


GOOD = numpy_helper.from_array(np.ones(2, np.float32), "good")


def save(path: Path, nodes: list[onnx.NodeProto], **graph: object) -> Path:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    functions = graph.pop("functions", [])
    proto = helper.make_graph(nodes, "g", [x], [y])
    for key, value in graph.items():
        getattr(proto, key).extend(value)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    model = helper.make_model(proto, opset_imports=opsets, ir_version=8, functions=functions)
    path.write_bytes(model.SerializeToString())
    return path


def in_initializer(path: Path, bad: TensorProto) -> Path:
    return save(path, [helper.make_node("Add", ["x", "bad"], ["y"])], initializer=[bad])


def in_constant(path: Path, bad: TensorProto) -> Path:
    constant = helper.make_node("Constant", [], ["bad"], value=bad)
    return save(path, [constant, helper.make_node("Add", ["x", "bad"], ["y"])])


def in_subgraph(path: Path, bad: TensorProto) -> Path:
    out = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    nodes = [helper.make_node("Add", ["x", "bad"], ["z"])]
    then = helper.make_graph(nodes, "then", [], [out], initializer=[bad])
    other = helper.make_graph([helper.make_node("Identity", ["x"], ["z"])], "else", [], [out])
    condition = numpy_helper.from_array(np.array(True), "condition")
    branch = helper.make_node("If", ["condition"], ["y"], then_branch=then, else_branch=other)
    return save(path, [branch], initializer=[condition])


def in_function(path: Path, bad: TensorProto) -> Path:
    nodes = [
        helper.make_node("Constant", [], ["bad"], value=bad),
        helper.make_node("Add", ["a", "bad"], ["b"]),
    ]
    function = helper.make_function("mine", "f", ["a"], ["b"], nodes, [helper.make_opsetid("", 17)])
    return save(path, [helper.make_node("f", ["x"], ["y"], domain="mine")], functions=[function])


PLACES = [in_initializer, in_constant, in_subgraph, in_function]


@pytest.mark.parametrize("place", PLACES)
def test_good_tensors_pass_everywhere(
    tmp_path: Path, place: Callable[[Path, TensorProto], Path]
) -> None:
    load_model(place(tmp_path / "m.onnx", tensor(raw_data=b"\0" * 8)))
    load_model(place(tmp_path / "m.onnx", tensor(float_data=[1, 2])))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (tensor(raw_data=b"\0" * 7), "holds 7 bytes where its shape"),
        (tensor(float_data=[1]), "holds 1 numbers"),
        (tensor(dims=[1 << 20, 1 << 20]), "holds 0 numbers"),
        (tensor(dims=[1 << 31, 1 << 31, 4]), "more elements than any file"),
        (tensor(dims=[0, 1 << 62]), "more elements than any file"),
        (tensor(dims=[-2], raw_data=b"\0" * 8), "impossible shape"),
        (tensor(dims=[1] * 65, raw_data=b"\0" * 4), "impossible shape"),
        (tensor(data_type=99, raw_data=b"\0" * 8), "unknown element type 99"),
        (tensor(data_type=0, raw_data=b"\0" * 8), "unknown element type 0"),
        (tensor(data_type=TensorProto.INT4, dims=[3], raw_data=b"\0"), "holds 1 bytes"),
        (tensor(data_type=TensorProto.STRING, string_data=[b"a"]), "holds 1 numbers"),
    ],
)
def test_tensors_that_lie_are_refused_everywhere(
    tmp_path: Path, place: Callable[[Path, TensorProto], Path], bad: TensorProto, said: str
) -> None:
    with pytest.raises(UnusableModel, match=said):
        load_model(place(tmp_path / "m.onnx", bad))


def sparse(indices: np.ndarray, dims: list[int]) -> onnx.SparseTensorProto:
    values = numpy_helper.from_array(np.full(len(indices), 5, np.float32), "s")
    return helper.make_sparse_tensor(values, numpy_helper.from_array(indices, "i"), dims)


def test_sparse_initializers_become_dense(tmp_path: Path) -> None:
    node = helper.make_node("Add", ["x", "s"], ["y"])
    for indices in (np.array([1]), np.array([[1]])):
        path = save(tmp_path / "m.onnx", [node], sparse_initializer=[sparse(indices, [2])])
        found = load_model(path).ir.graph.initializers["s"].const_value
        assert found is not None
        np.testing.assert_array_equal(found.numpy(), [0, 5])
    table = save(
        tmp_path / "m.onnx", [node], sparse_initializer=[sparse(np.array([[1, 0]]), [2, 2])]
    )
    found = load_model(table).ir.graph.initializers["s"].const_value
    assert found is not None
    np.testing.assert_array_equal(found.numpy(), [[0, 0], [5, 0]])


@pytest.mark.parametrize(
    ("indices", "dims", "said"),
    [
        (np.array([2]), [2], "outside its shape"),
        (np.array([-1]), [2], "outside its shape"),
        (np.array([[0, 5]]), [2, 2], "outside its shape"),
        (np.array([0]), [1 << 20, 1 << 20], "as an ordinary tensor"),
        (np.array([0]), [1 << 62, 1 << 62], "as an ordinary tensor"),
        (np.array([0]), [-4], "impossible shape"),
        (np.array([0], np.int32), [2], "sparse format"),
    ],
)
def test_sparse_initializers_that_lie_are_refused(
    tmp_path: Path, indices: np.ndarray, dims: list[int], said: str
) -> None:
    node = helper.make_node("Add", ["x", "s"], ["y"])
    path = save(tmp_path / "m.onnx", [node], sparse_initializer=[sparse(indices, dims)])
    with pytest.raises(UnusableModel, match=said):
        load_model(path)


def test_names_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    path = in_initializer(tmp_path / "m.onnx", tensor(raw_data=b"\0" * 8))
    path.write_bytes(path.read_bytes().replace(b"bad", b"b\xff\xfe"))
    with pytest.raises(UnusableModel):
        load_model(path)
