"""Simplifying: each step does its work, changes no output, and is undone when it would."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from packlight.graph.model import load_model, save_model, walk_nodes
from packlight.graph.rewrite import simplify as simplify_module
from packlight.graph.rewrite.simplify import SimplifyStep, simplify

RANDOM = np.random.default_rng(3)


def weight(*shape: int) -> NDArray[Any]:
    return RANDOM.standard_normal(shape).astype(np.float32)


def make(folder: Path, text: str, *, opset: int = 21, **weights: NDArray[Any]) -> ir.Model:
    head = f'<ir_version: 8, opset_import: ["" : {opset}, "com.microsoft" : 1, "own" : 1]>\n'
    proto = onnx.parser.parse_model(head + text)
    for name, array in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.save(proto, folder / "m.onnx")
    return load_model(folder / "m.onnx").ir


def open_file(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def simplified(
    folder: Path, model: ir.Model, *feeds: dict[str, NDArray[Any]]
) -> tuple[ir.Model, Counter[str], tuple[SimplifyStep, ...]]:
    """Simplify without a check, and hold the result to the original here."""
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    result, steps = simplify(model, check=None)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before, "input was mutated"
    assert [step.reason for step in steps if not step.kept] == []
    save_model(result, folder / "s.onnx")
    old, new = open_file(folder / "m.onnx"), open_file(folder / "s.onnx")
    for part in ("get_inputs", "get_outputs"):
        ours, theirs = getattr(old, part)(), getattr(new, part)()
        kept = [(v.name, v.type, v.shape) for v in ours]
        assert kept == [(v.name, v.type, v.shape) for v in theirs]
    for feed in feeds:
        for expected, found in zip(old.run(None, feed), new.run(None, feed), strict=True):
            assert expected.shape == found.shape
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    return result, Counter(node.op_type for _, node in walk_nodes(result)), steps


def positive(*shape: int) -> NDArray[Any]:
    return np.abs(weight(*shape)) + np.float32(0.5)


@pytest.mark.parametrize(
    ("layer", "shape", "channels", "rank"),
    [
        ("Conv(x, w)", (6, 4, 3, 3), 6, 4),
        ("Conv <group = 2> (x, w, b)", (6, 2, 3, 3), 6, 4),
        ("ConvTranspose <group = 2> (x, w, b)", (4, 3, 2, 2), 6, 4),
        ("Gemm <alpha = 0.5, beta = 2.0> (x, w, b)", (4, 6), 6, 2),
        ("Gemm <transB = 1> (x, w, b)", (6, 4), 6, 2),
    ],
)
def test_batch_norm_and_scales_go_into_the_layer(
    tmp_path: Path, layer: str, shape: tuple[int, ...], channels: int, rank: int
) -> None:
    axes = ["n", "4", "8", "8"][:rank]
    text = f"""g (float[{",".join(axes)}] x) => (float[{",".join("nopq"[:rank])}] y) {{
    a = {layer}
    b1 = BatchNormalization <epsilon = 0.01> (a, gamma, beta, mean, variance)
    b2 = Mul(scale, b1)
    b3 = Add(b2, shift)
    b4 = Sub(one, b3)
    y = Div(b4, two) }}"""
    per_channel = (1, channels) + (1,) * (rank - 2)
    model = make(
        tmp_path,
        text,
        w=weight(*shape),
        b=weight(channels),
        gamma=weight(channels),
        beta=weight(channels),
        mean=weight(channels),
        variance=positive(channels),
        scale=weight(*per_channel),
        shift=weight(*per_channel[1:]),
        one=np.array([1], np.float32),
        two=np.array(2, np.float32),
    )
    feeds = [{"x": weight(n, *[int(axis) for axis in axes[1:]])} for n in (1, 3)]
    _, counts, _ = simplified(tmp_path, model, *feeds)
    assert counts == {layer.split("(")[0].split(" ")[0]: 1}


def test_scales_that_are_not_per_channel_stay(tmp_path: Path) -> None:
    text = "g (float[n,4,8,8] x) => (float[n,4,8,8] y) { a = Conv(x, w) y = Mul(a, s) }"
    model = make(tmp_path, text, w=weight(4, 4, 1, 1), s=weight(8))
    _, counts, _ = simplified(tmp_path, model, {"x": weight(2, 4, 8, 8)})
    assert counts == {"Conv": 1, "Mul": 1}


def test_a_weight_that_others_use_is_not_rescaled_under_them(tmp_path: Path) -> None:
    text = """g (float[n,4,8,8] x) => (float[n,4,8,8] y, float[n,4,8,8] z)
    { a = Conv(x, w) y = Mul(a, s) z = Conv(x, w) }"""
    model = make(tmp_path, text, w=weight(4, 4, 1, 1), s=weight(4, 1, 1))
    result, counts, _ = simplified(tmp_path, model, {"x": weight(2, 4, 8, 8)})
    assert counts == {"Conv": 2}
    assert "w" in result.graph.initializers


def test_an_output_in_the_middle_is_kept(tmp_path: Path) -> None:
    text = """g (float[n,4,8,8] x) => (float[n,4,8,8] a, float[n,4,8,8] y)
    { a = Conv(x, w) y = Mul(a, s) }"""
    model = make(tmp_path, text, w=weight(4, 4, 1, 1), s=weight(4, 1, 1))
    _, counts, _ = simplified(tmp_path, model, {"x": weight(2, 4, 8, 8)})
    assert counts == {"Conv": 1, "Mul": 1}


def test_batch_norm_in_training_stays(tmp_path: Path) -> None:
    text = """g (float[n,4,8,8] x) => (float[n,4,8,8] y) {
    a = Conv(x, w) y, m, v = BatchNormalization <training_mode = 1> (a, s, s, s, s) }"""
    model = make(tmp_path, text, w=weight(4, 4, 1, 1), s=positive(4))
    result, _ = simplify(model, check=None)
    assert "BatchNormalization" in {node.op_type for node in result.graph}


def test_what_does_nothing_goes(tmp_path: Path) -> None:
    text = """g (float[n,4,8,8] x) => (float[n,4,8,8] y, float[n,4,8,8] same) {
    same = Identity(x)
    a = Dropout(x)
    b = Cast <to = 1> (a)
    c = Add(zero, b)
    d = Mul(c, ones)
    e = Slice(d, starts, ends)
    f = Pad(e, pads)
    h = Reshape(f, shape)
    i = Concat <axis = 1> (h)
    j = Transpose <perm = [1,0,2,3]> (i)
    k = Transpose <perm = [1,0,2,3]> (j)
    l = Identity(k)
    y = Relu(l) }"""
    model = make(
        tmp_path,
        text,
        zero=np.zeros((), np.float32),
        ones=np.ones((4, 1, 1), np.float32),
        starts=np.zeros(4, np.int64),
        ends=np.full(4, np.iinfo(np.int64).max),
        pads=np.zeros(8, np.int64),
        shape=np.array([0, 4, -1, 8]),
    )
    _, counts, _ = simplified(tmp_path, model, {"x": weight(2, 4, 8, 8)})
    assert counts == {"Identity": 1, "Relu": 1}


@pytest.mark.parametrize(
    ("node", "weights"),
    [
        ("Add(x, w)", {"w": np.zeros((3, 4), np.float32)}),
        ("Mul(x, w)", {"w": np.ones((1, 1, 4), np.float32)}),
        ("Slice(x, s, e, a, t)", {"s": [-1], "e": [-99], "a": [1], "t": [-1]}),
        ("Slice(x, s, e)", {"s": [0], "e": [3]}),
        ("Reshape(x, w)", {"w": [4, -1]}),
        ("Pad(x, w)", {"w": [0, 0, 0, 1]}),
        ("Cast <to = 7> (x)", {}),
    ],
)
def test_what_only_looks_like_nothing_stays(
    tmp_path: Path, node: str, weights: dict[str, Any]
) -> None:
    # x has 1 or 4 rows: what stretches, reverses, cuts or reorders it must stay.
    out = "int64" if node.startswith("Cast") else "float"
    rank = "p,q,r" if "Mul" in node else "p,q"
    text = f"g (float[n,4] x) => ({out}[{rank}] y) {{ y = {node} }}"
    model = make(tmp_path, text, **{name: np.array(value) for name, value in weights.items()})
    sizes = (1,) if "Add" in node else (4, 8)
    simplified(tmp_path, model, *({"x": weight(n, 4)} for n in sizes))


def test_shape_computations_become_constant_for_every_batch(tmp_path: Path) -> None:
    text = """g (float[n,4,2,2] x) => (float[n,16] y) {
    s = Shape(x) i = Constant <value_int = 0> () n0 = Gather(s, i)
    axes = Constant <value_ints = [0]> () n1 = Unsqueeze(n0, axes)
    rest = Constant <value_ints = [16]> () target = Concat <axis = 0> (n1, rest)
    y = Reshape(x, target) }"""
    model = make(tmp_path, text)
    _, counts, _ = simplified(tmp_path, model, {"x": weight(1, 4, 2, 2)}, {"x": weight(5, 4, 2, 2)})
    assert counts == {"Reshape": 1}


def test_axes_that_change_places_are_not_taken_for_copies(tmp_path: Path) -> None:
    text = """g (float[n,m] x) => (float[p,q] y) {
    s = Shape(x) turned = Constant <value_ints = [1, 0]> () target = Gather(s, turned)
    y = Reshape(x, target) }"""
    model = make(tmp_path, text)
    _, counts, _ = simplified(tmp_path, model, {"x": weight(2, 3)}, {"x": weight(4, 1)})
    assert counts["Shape"] == 1


def test_slices_along_other_axes_are_merged(tmp_path: Path) -> None:
    text = """g (float[n,4,8,8] x) => (float[n,4,4,3] y) {
    a = Slice(x, s, e, two, step) y = Slice(a, one, seven, last, step) }"""
    model = make(
        tmp_path,
        text,
        s=np.array([0]),
        e=np.array([8]),
        two=np.array([2]),
        step=np.array([2]),
        one=np.array([1]),
        seven=np.array([7]),
        last=np.array([-1]),
    )
    _, counts, _ = simplified(tmp_path, model, {"x": weight(2, 4, 8, 8)})
    assert counts == {"Slice": 1}


def test_duplicates_dead_parts_and_unused_outputs_go(tmp_path: Path) -> None:
    text = """g (float[n,4] x, float[n] spare) => (float[n,3] y) {
    a = MatMul(x, w) b = MatMul(x, v) dead = Neg(a) y = Add(a, b) }"""
    same = weight(4, 3)
    model = make(tmp_path, text, w=same, v=same.copy(), unused=weight(9))
    feed = {"x": weight(2, 4), "spare": weight(2)}
    result, counts, _ = simplified(tmp_path, model, feed)
    assert counts == {"MatMul": 1, "Add": 1}
    assert len(result.graph.initializers) == 1


def test_weights_made_by_constant_of_shape_become_weights(tmp_path: Path) -> None:
    text = """g (float[n,4,8,8] x) => (float[n,2,8,8] y) {
    w = ConstantOfShape <value = float[1] {0.5}> (shape)
    s = ConstantOfShape <value = float[1] {2.0}> (two) axes = Constant <value_ints = [1,2]> ()
    t = Unsqueeze(s, axes) a = Conv(x, w) y = Mul(a, t) }"""
    model = make(tmp_path, text, shape=np.array([2, 4, 1, 1]), two=np.array([2]))
    result, counts, _ = simplified(tmp_path, model, {"x": weight(1, 4, 8, 8)})
    assert counts == {"Conv": 1}
    assert sum(len(value.shape or ()) == 4 for value in result.graph.initializers.values()) == 1


@pytest.mark.parametrize(
    "node",
    [
        "big = ConstantOfShape(shape)",
        "one = ConstantOfShape(single) big = Expand(one, shape)",
        "one = ConstantOfShape(single) big = Tile(one, shape2)",
    ],
)
def test_a_huge_constant_is_never_computed(
    tmp_path: Path, node: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"g (float[n] x) => (float[n] y) {{ {node} y = Add(x, big) }}"
    shape = np.array([1 << 40])
    model = make(tmp_path, text, shape=shape, shape2=shape, single=np.array([1]))
    result, steps = simplify(model, check=None)
    assert all(step.kept for step in steps)
    assert max(value.const_value.nbytes for value in result.graph.initializers.values()) < 100


def test_many_large_constants_stop_at_the_limit_in_all(tmp_path: Path) -> None:
    nodes = [f"a{i} = ConstantOfShape <value = float[1] {{{i}.5}}> (shape)" for i in range(12)]
    sums = [f"b{i} = Add(b{i - 1}, a{i})" if i else "b0 = Add(x, a0)" for i in range(12)]
    text = f"g (float[n] x) => (float[m] y) {{ {' '.join(nodes + sums)} y = Neg(b11) }}"
    model = make(tmp_path, text, shape=np.array([1 << 10]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("packlight.graph.rewrite.fold.FOLDED_ELEMENTS_IN_ALL", 4 << 10)
        result, _ = simplify(model, check=None)
    left = Counter(node.op_type for node in result.graph)["ConstantOfShape"]
    assert left == 8


def test_64_bit_floats_are_narrowed_inside(tmp_path: Path) -> None:
    text = """g (double[n,4] x, float[n,4] z) => (double[n,3] y, float[n,4] u) {
    a = MatMul(x, w) y = Add(a, b) c = Cast <to = 11> (z) d = Mul(c, two) u = Cast <to = 1> (d) }"""
    model = make(
        tmp_path,
        text,
        w=weight(4, 3).astype(np.float64),
        b=weight(3).astype(np.float64),
        two=np.array(3.0),
    )
    feed = {"x": weight(2, 4).astype(np.float64), "z": weight(2, 4)}
    result, _, _ = simplified(tmp_path, model, feed)
    kinds = {value.const_value.dtype for value in result.graph.initializers.values()}
    assert kinds == {ir.DataType.FLOAT}


def test_numbers_too_large_for_32_bits_stay(tmp_path: Path) -> None:
    text = "g (double[n] x) => (double[n] y) { y = Mul(x, w) }"
    model = make(tmp_path, text, w=np.array([1e300]))
    result, steps = simplify(model, check=None)
    (step,) = [step for step in steps if not step.kept]
    assert "too large for 32 bits" in step.reason
    assert result.graph.initializers["w"].dtype == ir.DataType.DOUBLE


def test_old_operator_sets_are_upgraded(tmp_path: Path) -> None:
    text = """g (float[1,2,4,4] x) => (float[1,2,8,8] y, float[1,2,8,8] z) {
    y = Upsample <mode = "linear"> (x, scales) z = Upsample <mode = "nearest"> (x, scales) }"""
    model = make(tmp_path, text, opset=9, scales=np.array([1, 1, 2, 2], np.float32))
    result, _, steps = simplified(tmp_path, model, {"x": weight(1, 2, 4, 4)})
    assert result.opset_imports[""] == 21
    assert next(step for step in steps if step.name == "operator set 21").changed


def test_functions_are_inlined_but_not_without_end(tmp_path: Path) -> None:
    text = """g (float[n,4] x) => (float[n,3] y) { y = own.linear(x, w) }
    <domain: "own", opset_import: ["" : 21]> linear (a, k) => (c) { c = MatMul(a, k) }"""
    model = make(tmp_path, text, w=weight(4, 3))
    _, counts, _ = simplified(tmp_path, model, {"x": weight(2, 4)})
    assert counts == {"MatMul": 1}
    bomb = "g (float[n] x) => (float[n] y) { y = own.f30(x) }\n"
    head = '<domain: "own", opset_import: ["" : 21, "own" : 1]>'
    bomb += f"{head} f0 (a) => (b) {{ b = Neg(a) }}\n"
    for level in range(1, 31):
        body = f"{{ c = own.f{level - 1}(a) b = own.f{level - 1}(c) }}"
        bomb += f"{head} f{level} (a) => (b) {body}\n"
    _, steps = simplify(make(tmp_path, bomb), check=None)
    (step,) = [step for step in steps if step.name == "functions inlined"]
    assert not step.kept and "expand" in step.reason


def test_doc_strings_go_and_model_metadata_stays(tmp_path: Path) -> None:
    model = make(tmp_path, "g (float[n] x) => (float[n] y) { y = Neg(x) }")
    model.metadata_props["names"] = "cat,dog"
    node = next(iter(model.graph))
    node.doc_string = "File train.py, line 3"
    node.metadata_props["pkg.torch.onnx.stack_trace"] = "..."
    result, _ = simplify(model, check=None)
    stripped = next(iter(result.graph))
    assert not stripped.doc_string and not stripped.metadata_props
    assert result.metadata_props == {"names": "cat,dog"}
    assert node.doc_string


TWO_STEPS = "g (float[n,4] x) => (float[n,4] y) { a = Identity(x) b = Relu(a) y = MatMul(b, w) }"


def test_a_step_that_changes_the_outputs_is_undone_and_said(tmp_path: Path) -> None:
    model = make(tmp_path, TWO_STEPS, w=weight(4, 4))

    def check(candidate: ir.Model) -> bool:
        return any(node.op_type == "Identity" for node in candidate.graph)

    result, steps = simplify(model, check=check)
    assert [node.op_type for node in result.graph] == ["Identity", "Relu", "MatMul"]
    undone = [step for step in steps if not step.kept]
    assert undone and all(step.reason == "the outputs changed" for step in undone)
    assert all(step.nodes_after == step.nodes_before for step in undone)


def breaking(model: ir.Model) -> bool:
    raise RuntimeError("a library tripped")


def renaming(model: ir.Model) -> bool:
    model.graph.outputs[0].name = "other"
    return True


@pytest.mark.parametrize(
    ("step", "reason"), [(breaking, "a library tripped"), (renaming, "change the model's outputs")]
)
def test_a_step_that_raises_or_renames_outputs_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: Any, reason: str
) -> None:
    model = make(tmp_path, TWO_STEPS, w=weight(4, 4))
    monkeypatch.setattr(simplify_module, "_ONCE", (("bad", step),))
    result, steps = simplify(model, check=lambda _: True)
    assert not steps[0].kept and reason in steps[0].reason
    assert [node.op_type for node in result.graph] == ["Relu", "MatMul"]
    assert [value.name for value in result.graph.outputs] == ["y"]


def test_resnet20_becomes_what_it_is(tmp_path: Path, real: Path) -> None:
    source = real / "cifar10" / "resnet20.onnx"
    (tmp_path / "m.onnx").write_bytes(source.read_bytes())
    model = load_model(tmp_path / "m.onnx").ir
    feeds = [{"image": weight(n, 3, 32, 32)} for n in (1, 3)]
    _, counts, _ = simplified(tmp_path, model, *feeds)
    assert counts == {
        "Conv": 19,
        "Relu": 19,
        "Add": 9,
        "Slice": 2,
        "Pad": 2,
        "AveragePool": 1,
        "Reshape": 1,
        "Gemm": 1,
    }
