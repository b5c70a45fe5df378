"""Loading: structure, interface, names, and numbers that are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from packlight.errors import UnusableModel
from packlight.graph.model import copy_model, load_model, walk_nodes

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'


def write(path: Path, text: str, **weights: np.ndarray) -> Path:
    proto = onnx.parser.parse_model(HEAD + text)
    for name, array in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    path.write_bytes(proto.SerializeToString())
    return path


LINEAR = "g (float[n, 4] x) => (float[n, 2] y) { y = MatMul(x, w) }"


def test_inputs_are_told_without_weights(tmp_path: Path) -> None:
    text = "g (float[n, 4] x, float[4, 2] w) => (float[n, 2] y) { y = MatMul(x, w) }"
    model = load_model(write(tmp_path / "m.onnx", text, w=np.ones((4, 2), np.float32)))
    assert [str(spec) for spec in model.inputs] == ["x: float32[n, 4]"]
    assert [str(spec) for spec in model.outputs] == ["y: float32[n, 2]"]
    assert [value.name for value in model.ir.graph.inputs] == ["x"]


def test_axes_and_types_are_told_as_they_are(tmp_path: Path) -> None:
    text = """g (int64 s, float16[?, n] h, bfloat16[2] b, string[1] t, bool[] c)
    => (int64 s2) { s2 = Identity(s) }"""
    path = write(tmp_path / "m.onnx", text)
    proto = onnx.load(path)
    proto.graph.input[2].type.tensor_type.shape.dim[0].dim_value = -1
    onnx.save(proto, path)
    specs = {spec.name: (spec.dtype, spec.shape) for spec in load_model(path).inputs}
    assert specs["h"] == ("float16", (None, "n"))
    assert specs["b"] == ("bfloat16", (None,))
    assert specs["t"] == ("str", (1,))
    assert specs["c"] == ("bool", ())


def test_inputs_that_are_no_tensors_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", "g (seq(float[n]) x) => (int64 y) { y = SequenceLength(x) }")
    with pytest.raises(UnusableModel, match=r"'x'.*sequence"):
        load_model(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("g (float[2] x) => (float[2] y) { y = Add(x, nothing) }", "'nothing'"),
        ("g (float[2] x) => (float[2] nothing) { y = Relu(x) }", "'nothing'"),
        ("g (float[2] x) => (float[2] y) { a = Add(x, b) b = Relu(a) y = Relu(b) }", "cycle"),
        ("g (float[2] x) => (float[2] y) { y = Relu(x) y = Neg(x) }", "redeclared"),
    ],
)
def test_broken_graphs_are_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UnusableModel, match=said):
        load_model(write(tmp_path / "m.onnx", text))


def test_nodes_out_of_order_are_sorted(tmp_path: Path) -> None:
    text = "g (float[2] x) => (float[2] y) { y = Relu(a) a = Neg(x) }"
    model = load_model(write(tmp_path / "m.onnx", text))
    assert [node.op_type for node in model.ir.graph] == ["Neg", "Relu"]


def test_every_node_gets_a_name_of_its_own(tmp_path: Path) -> None:
    text = "g (float[2] x) => (float[2] y) { a = Neg(x) b = Relu(a) y = Relu(b) }"
    path = write(tmp_path / "m.onnx", text)
    proto = onnx.load(path)
    hostile = "../../<script>\n\x1b[31m" + "x" * 5000
    proto.graph.node[0].name = proto.graph.node[1].name = hostile
    onnx.save(proto, path)
    names = [node.name for _, node in walk_nodes(load_model(path).ir)]
    assert names == [hostile, hostile + "_2", "y"]
    assert names == [node.name for _, node in walk_nodes(load_model(path).ir)]


def broken(*values: float, shape: tuple[int, ...] = (4, 2)) -> np.ndarray:
    array = np.ones(shape, np.float32)
    array.reshape(-1)[: len(values)] = values
    return array


@pytest.mark.parametrize(("value", "said"), [(np.nan, "NaN"), (np.inf, "infinity")])
def test_weights_that_are_no_numbers_are_named(tmp_path: Path, value: float, said: str) -> None:
    with pytest.raises(UnusableModel, match=f"'w'.*{said}"):
        load_model(write(tmp_path / "m.onnx", LINEAR, w=broken(value)))
    inside = """g (float[n, 4] x, bool c) => (float[n, 2] y) {
    y = If(c) <then_branch = t () => (float[n, 2] a) { a = MatMul(x, w) },
    else_branch = e () => (float[n, 2] b) { b = MatMul(x, w) }> }"""
    with pytest.raises(UnusableModel, match=f"'w'.*{said}"):
        load_model(write(tmp_path / "m.onnx", inside, w=broken(value)))


@pytest.mark.parametrize(
    ("text", "weight"),
    [
        ("g (float[n] x) => (float[n] y) { y = Max(x, w) }", np.array(-np.inf, np.float32)),
        ("g (float[2] x) => (float[2] y) { y = Mul(x, w) }", np.array([0, -np.inf], np.float32)),
        ("g (float[2] x) => (float[2] y) { y = Add(x, w) }", np.array([1, -np.inf], np.float32)),
    ],
)
def test_masks_and_bounds_may_be_infinite(tmp_path: Path, text: str, weight: np.ndarray) -> None:
    load_model(write(tmp_path / "m.onnx", text, w=weight))


def test_a_copy_shares_weights_and_nothing_else(tmp_path: Path) -> None:
    model = load_model(write(tmp_path / "m.onnx", LINEAR, w=broken())).ir
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    copy = copy_model(model)
    old, new = model.graph.initializers["w"], copy.graph.initializers["w"]
    assert old.const_value is not None and new.const_value is not None
    assert np.shares_memory(old.const_value.numpy(), new.const_value.numpy())
    new.name = "renamed"
    new.dtype = ir.DataType.DOUBLE
    for node in copy.graph:
        node.name = "other"
        node.outputs[0].dtype = ir.DataType.DOUBLE
    copy.graph.inputs[0].dtype = ir.DataType.DOUBLE
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
