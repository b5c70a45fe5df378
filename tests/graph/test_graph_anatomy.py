"""What is found in a model: bytes, multiply-accumulates, milliseconds, redundancies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from packlight.graph.anatomy import Anatomy, count_macs, describe
from packlight.graph.model import load_model

HEAD = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1, "mine" : 1]>\n'


def make(folder: Path, text: str, **weights: NDArray[Any]) -> Anatomy:
    proto = onnx.parser.parse_model(HEAD + text)
    for name, array in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.save(proto, folder / "m.onnx")
    return describe(load_model(folder / "m.onnx"), milliseconds={"y": 0.5})


def ramp(*shape: int) -> NDArray[Any]:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize(
    ("text", "shape", "macs"),
    [
        ("g (float[n,4,8,8] x) => (y) { y = Conv <pads = [1,1,1,1]> (x, w) }", (6, 4, 3, 3), 13824),
        ("g (float[n,4,8,8] x) => (y) { y = Conv <group = 4> (x, w) }", (4, 1, 3, 3), 4 * 36 * 9),
        ("g (float[n,4,8,8] x) => (y) { y = ConvTranspose(x, w) }", (4, 6, 2, 2), 4 * 64 * 24),
        ("g (float[n,5] x) => (y) { y = Gemm <transB = 1> (x, w) }", (3, 5), 15),
        ("g (float[n,7,5] x) => (y) { y = MatMul(x, w) }", (5, 3), 7 * 15),
        ("g (float[n,s,5] x) => (y) { y = MatMul(x, w) }", (5, 3), None),
        ("g (int64[n,7] x) => (y) { y = Gather(w, x) }", (9, 4), 0),
    ],
)
def test_multiply_accumulates_are_those_of_one_sample(
    tmp_path: Path, text: str, shape: tuple[int, ...], macs: int | None
) -> None:
    anatomy = make(tmp_path, text, w=ramp(*shape))
    (layer,) = anatomy.layers
    assert layer.macs == macs
    assert anatomy.macs == (macs or 0)
    assert layer.ms == 0.5
    assert anatomy.operators[0].ms == 0.5
    assert anatomy.layer_bytes == anatomy.parameter_bytes == 4 * int(np.prod(shape))


def test_each_redundancy_is_found_once_and_in_order(tmp_path: Path) -> None:
    text = """g (float[n,4,8,8] x, float[n] spare) => (float[n,a,b,c] y) {
    c1 = Conv(x, w1)
    n1 = BatchNormalization(c1, s, s, s, v)
    c2 = Conv(n1, w2)
    d = Dropout(c2)
    e = Add(d, ones)
    wide = Cast <to = 1> (double)
    f = Mul(e, wide)
    q = QuantizeLinear(f, one)
    r = DequantizeLinear(q, one)
    y = mine.Secret(r)
    dead1 = Neg(x)
    dead2 = Neg(dead1) }"""
    anatomy = make(
        tmp_path,
        text,
        w1=ramp(4, 4, 1, 1),
        w2=ramp(4, 4, 1, 1),
        s=np.arange(1, 5, dtype=np.float32),
        v=np.ones(4, np.float32),
        ones=np.ones((4, 16, 16), np.float32),
        one=np.array(1, np.float32),
        double=np.array([2.0], np.float64),
        adam_momentum=ramp(3),
    )
    found = {item.kind: item for item in reversed(anatomy.redundancies)}
    assert list(dict.fromkeys(item.kind for item in anatomy.redundancies)) == [
        "duplicate tensors",
        "constant tensor",
        "dead nodes",
        "unused inputs",
        "unused initializers",
        "foldable BatchNorm",
        "float64 weights",
        "training leftovers",
        "already quantized",
        "custom operators",
    ]
    assert set(found["duplicate tensors"].names) == {"w1", "w2"}
    assert found["duplicate tensors"].bytes == 64
    assert found["constant tensor"].names == ("ones",)
    assert set(found["dead nodes"].names) == {"dead1", "dead2"}
    assert found["unused inputs"].names == ("spare",)
    assert found["unused initializers"].names == ("adam_momentum",)
    assert found["foldable BatchNorm"].names == ("n1",)
    assert found["float64 weights"].names == ("double",)
    assert found["training leftovers"].names == ("d",)
    assert "1 DequantizeLinear, 1 QuantizeLinear" in found["already quantized"].detail
    assert "mine::Secret" in found["custom operators"].detail


def test_a_clean_model_has_nothing_to_find(tmp_path: Path) -> None:
    text = "g (float[n,5] x) => (float[n,3] y) { y = MatMul(x, w) }"
    anatomy = make(tmp_path, text, w=ramp(5, 3))
    assert anatomy.redundancies == ()
    assert json.loads(json.dumps(anatomy.to_json()))["layers"][0]["macs"] == 15


def test_resnet20_has_its_known_cost(real: Path) -> None:
    anatomy = describe(load_model(real / "cifar10" / "resnet20.onnx"))
    assert len(anatomy.layers) == 20
    # He et al. (2016) count 41 million for this network; 40,551,040 by hand.
    assert anatomy.macs == 40_551_040


def test_open_lengths_are_those_of_the_samples(tmp_path: Path) -> None:
    net = """<ir_version: 8, opset_import: ["" : 17]>
    g (int64[batch,length] ids) => (float[batch,length,4] y)
    <float[9,6] table, float[6,5] w0, float[5,4] w1> {
        [table] e = Gather (table, ids) [one] a = MatMul (e, w0) [two] y = MatMul (a, w1) }"""
    proto = onnx.parser.parse_model(net)
    for value, shape in (("table", (9, 6)), ("w0", (6, 5)), ("w1", (5, 4))):
        array = np.ones(shape, np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, value))
    onnx.save(proto, tmp_path / "m.onnx")
    model = load_model(tmp_path / "m.onnx")
    assert count_macs(model.ir)["one"] is None
    macs = count_macs(model.ir, {"ids": (1, 7)})
    assert macs == {"table": 0, "one": 7 * 6 * 5, "two": 7 * 5 * 4}
    assert str(model.ir.graph.inputs[0].shape) == "[batch,length]"  # a copy was looked at
    assert describe(model, shapes={"ids": (1, 7)}).macs == 7 * (6 * 5 + 5 * 4)
