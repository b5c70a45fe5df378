"""What stays and why, which constants belong to a group, and what channels cost."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from coupling_oracle import build, check_exact, draw_channels, feeds_of, free, masked, session_of

from packlight.errors import WrongUsage
from packlight.graph.anatomy import count_macs
from packlight.graph.coupling.cost import macs_of_channels, macs_without
from packlight.graph.coupling.groups import find_groups
from packlight.graph.coupling.rules import RULES
from packlight.graph.layers import find_layers, matrix_to_weight, weight_matrix
from packlight.graph.rewrite.prune import remove_channels


def reasons(model: ir.Model) -> dict[str, str]:
    return {group.name: group.pinned for group in find_groups(model)}


def two_layers(between: str, *, size: int = 8, opset: int = 17, **weights) -> ir.Model:
    return build(
        f"""net (float[n, 6] x) => (float[n, 3] y) {{
            a = MatMul(x, w1)
            {between}
            y = MatMul(b, w2)
        }}""",
        opset=opset,
        w1=(6, size),
        w2=(size, 3),
        **weights,
    )


@pytest.mark.parametrize(
    ("between", "why"),
    [
        ("b = Softmax(a)", "mixes them"),
        ("b = LayerNormalization(a, scale)", "takes statistics over them"),
        ("m = ReduceMean <axes = [1]> (a)\nb = Sub(a, m)", "ReduceMean 'm' mixes them"),
        ("b = CumSum(a, axis)", "the operator CumSum ('b') has no rule"),
        ("b = Slice(a, start, end, one, step)", "takes some of them in steps"),
    ],
)
def test_what_mixes_channels_keeps_them(between: str, why: str):
    model = two_layers(
        between, scale=(8,), axis=np.int64(1), start=np.array([7]), end=np.array([-9]),
        one=np.array([1]), step=np.array([-1]),
    )  # fmt: skip
    assert why in reasons(model)["a"]


@pytest.mark.parametrize(("opset", "stays"), [(12, True), (13, False)])
def test_a_softmax_of_old_mixes_all_axes_behind_its_own(opset: int, stays: bool):
    model = build(
        """net (float[n, 5, 6] x) => (float[n, 5, 3] y) {
            a = MatMul(x, w1)
            b = Softmax <axis = 1> (a)
            y = MatMul(b, w2)
        }""",
        opset=opset,
        w1=(6, 8),
        w2=(8, 3),
    )
    assert bool(reasons(model)["a"]) is stays


def test_what_touches_the_interface_stays():
    model = build(
        """net (float[n, 4] x) => (float[n, 8] a, float[n, 3] y) {
            a = MatMul(x, w1)
            b = Add(x, bias)
            c = MatMul(a, w2)
            d = MatMul(b, w3)
            y = Add(c, d)
        }""",
        w1=(4, 8), bias=(4,), w2=(8, 3), w3=(4, 3),
    )  # fmt: skip
    assert reasons(model) == {
        "a": "the model's output 'a' keeps its shape",
        "c": "the model's output 'y' keeps its shape",
    }


def test_bodies_are_not_looked_into():
    model = build(
        """net (float[n, 6] x, bool yes) => (float[n, 3] y) {
            a = MatMul(x, w1)
            b = If (yes) <
                then_branch = left () => (float[n, 8] p) { p = Relu(a) },
                else_branch = right () => (float[n, 8] q) { q = Neg(a) }
            >
            y = MatMul(b, w2)
        }""",
        w1=(6, 8), w2=(8, 3),
    )  # fmt: skip
    assert reasons(model)["a"] == "the operator If ('b') has no rule"


def test_a_size_that_is_computed_with_stays():
    model = build(
        """net (float[n, 6] x) => (float[n, 3] y) {
            a = MatMul(x, w1)
            s = Shape(a)
            c = Gather(s, one)
            f = Cast <to = 1> (c)
            r = Sqrt(f)
            b = Div(a, r)
            y = MatMul(b, w2)
        }""",
        w1=(6, 8), w2=(8, 3), one=np.int64(1),
    )  # fmt: skip
    assert reasons(model)["a"] == "their number is computed with (Shape 's')"


def test_weights_that_are_shared_on_purpose_stay_shared():
    model = build(
        """net (float[n, 6] x, float[n, 6] z) => (float[n, 3] y) {
            a = MatMul(x, w1)
            b = MatMul(z, w1)
            ar = Relu(a)
            br = Relu(b)
            c = MatMul(ar, w2)
            d = MatMul(br, w2)
            y = Add(c, d)
        }""",
        w1=(6, 8), w2=(8, 3),
    )  # fmt: skip
    groups = check_exact(model)
    assert [(group.name, group.size) for group in free(groups)] == [("a", 8)]
    pruned = remove_channels(model, {"a": [1, 2]})
    assert sorted(pruned.graph.initializers) == ["w1_2", "w2_2"]


@pytest.mark.parametrize(
    ("removed", "words"),
    [
        ({"z": [0]}, "no group of channels 'z'"),
        ({"y": [0]}, "the model's output 'y' keeps its shape"),
        ({"a": [8]}, "has no channel 8: it has 8"),
        ({"a": [-1]}, "has no channel -1"),
        ({"a": list(range(8))}, "leave one at least"),
    ],
)
def test_what_cannot_be_removed_is_refused(removed: dict[str, list[int]], words: str):
    with pytest.raises(WrongUsage, match=words):
        remove_channels(two_layers("b = Relu(a)"), removed)


def test_the_model_is_not_changed_and_nothing_removed_is_no_change():
    model = two_layers("b = Relu(a)")
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    remove_channels(model, {"a": [3, 3, 1]})
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    same = remove_channels(model, {"a": []})
    feeds = feeds_of(model)
    np.testing.assert_array_equal(
        session_of(same).run(None, feeds)[0], session_of(model).run(None, feeds)[0]
    )


def test_the_same_removal_gives_the_same_bytes():
    model = two_layers("b = Relu(a)")
    one, two = (
        ir.to_proto(remove_channels(model, {"a": [5, 0]})).SerializeToString(deterministic=True)
        for _ in range(2)
    )
    assert one == two


@pytest.mark.parametrize(
    ("layer", "weights"),
    [
        ("b = Conv <kernel_shape = [3, 3]> (a, w)", {"w": (4, 8, 3, 3)}),
        ("b = ConvTranspose (a, w)", {"w": (8, 4, 2, 2)}),
        ("b = ConvTranspose <group = 2> (a, w)", {"w": (8, 2, 2, 2)}),
        ("b = Conv <group = 2> (a, w)", {"w": (4, 4, 3, 3)}),
    ],
)
def test_lines_are_the_rows_and_columns_of_the_matrix(layer: str, weights: dict):
    model = build(
        f"""net (float[n, 3, 6, 6] x) => (float[n, 2, h, v] y) {{
            a = Conv(x, w1)
            {layer}
            y = Conv(b, w2)
        }}""",
        w1=(8, 3, 1, 1), w2=(2, 4, 1, 1), **weights,
    )  # fmt: skip
    layers = {found.name: found for found in find_layers(model)}
    for group in find_groups(model):
        for member in group.members:
            if member.lines is None:
                continue
            found = layers[member.node]
            matrix = weight_matrix(found, member.index).copy()
            rows = member.role == "makes"
            if rows:
                matrix[member.lines[1]] = 0
            else:
                matrix[:, member.lines[1]] = 0
            array = member.constant.const_value.numpy().copy()
            at = [slice(None)] * array.ndim
            at[member.axis] = member.positions[1]
            array[tuple(at)] = 0
            stored = matrix_to_weight(found, matrix, member.index)
            whole = found.groups == 1 or member.axis == 1
            # A column of a layer in groups is read by each of them: lines say it once.
            np.testing.assert_array_equal(stored if whole else stored[: len(array)], array)


def test_costs_are_predicted():
    model = build(
        """net (float[n, 3, 8, 8] x) => (float[n, 2, 6, 6] y) {
            a = Conv(x, w1, b1)
            b = Conv <group = 8> (a, w2, b2)
            c = Conv(b, w3)
            y = Conv(c, w4)
        }""",
        w1=(8, 3, 1, 1), b1=(8,), w2=(8, 1, 3, 3), b2=(8,), w3=(12, 8, 1, 1), w4=(2, 12, 1, 1),
    )  # fmt: skip
    groups = find_groups(model)
    removed = draw_channels(groups)
    predicted = macs_without(model, groups, removed)
    assert predicted == count_macs(remove_channels(model, removed))
    one = macs_of_channels(model, groups)
    assert one["a"] == 64 * 3 + 36 * 9 + 36 * 12
    assert one["c"] == 36 * 8 + 36 * 2
    before = sum(v or 0 for v in count_macs(model).values())
    after = sum(v or 0 for v in macs_without(model, groups, {"c": [4]}).values())
    assert before - after == one["c"]


def test_masking_is_not_what_pruning_is_made_of():
    # The oracle must notice a wrong channel: prune one, mask another.
    model = two_layers("b = Relu(a)")
    groups = find_groups(model)
    feeds = feeds_of(model)
    pruned = session_of(remove_channels(model, {"a": [1]})).run(None, feeds)[0]
    other = session_of(masked(model, groups, {"a": [2]})).run(None, feeds)[0]
    assert np.abs(pruned - other).max() > 1e-3


def test_every_rule_is_of_a_known_operator():
    import onnx

    for domain, operator in RULES:
        if not domain and operator not in ("SimplifiedLayerNormalization", "Upsample"):
            onnx.defs.get_schema(operator, 24)
