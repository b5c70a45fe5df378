"""Residual branches are found, and a model goes on without them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from coupling_oracle import build, feeds_of, session_of, weigh

from packlight.errors import WrongUsage
from packlight.graph.observe import with_outputs
from packlight.graph.rewrite.branches import find_branches, remove_part, with_stand_ins


def blocks() -> ir.Model:
    return build(
        """net (float[n, 4, 4, 4] x) => (float[n, 6, 4, 4] y) {
            s = Conv(x, w0)
            a = Conv(s, w1)
            ar = Relu(a)
            b = Conv(ar, w2)
            t = Add(b, s)
            tr = Relu(t)
            c = Conv(tr, w3)
            cr = Relu(c)
            d = Conv(cr, w4)
            p = Conv(tr, w5)
            u = Add(p, d)
            y = Relu(u)
        }""",
        w0=(8, 4, 1, 1), w1=(8, 8, 1, 1), w2=(8, 8, 1, 1), w3=(8, 8, 1, 1), w4=(6, 8, 1, 1),
        w5=(6, 8, 1, 1),
    )  # fmt: skip


def silenced(model: ir.Model, weights: list[str]) -> ir.Model:
    """The model with these weights 0."""
    for name in weights:
        weight = model.graph.initializers[name]
        weight.const_value = ir.Tensor(np.zeros_like(weight.const_value.numpy()), name=name)
    return model


def test_branches_are_named_with_what_is_in_them():
    first, second = find_branches(blocks())
    assert (first.name, first.shortcut, first.layers) == ("t", "s", ("a", "b"))
    assert (second.name, second.shortcut, second.layers) == ("u", "p", ("c", "d"))
    assert second.nodes == ("c", "cr", "d")
    assert first.parameters == 128


@pytest.mark.parametrize("names", [["t"], ["u"], ["t", "u"], ["u", "t", "t"]])
def test_a_part_is_gone_as_if_its_last_layer_were_zero(names: list[str]):
    model = blocks()
    pruned = remove_part(model, names)
    feeds = feeds_of(model)
    without = silenced(blocks(), ["w2" if name == "t" else "w4" for name in names])
    expected = session_of(without).run(None, feeds)[0]
    found = session_of(pruned).run(None, feeds)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert weigh(pruned) < weigh(model)
    assert len(model.graph) == 12


def test_a_branch_in_a_branch_goes_with_it():
    model = build(
        """net (float[n, 8] x) => (float[n, 8] y) {
            s = MatMul(x, w0)
            a = MatMul(s, w1)
            b = MatMul(a, w2)
            i = Add(a, b)
            c = MatMul(i, w3)
            t = Add(s, c)
            y = Relu(t)
        }""",
        w0=(8, 8), w1=(8, 8), w2=(8, 8), w3=(8, 8),
    )  # fmt: skip
    inner, outer = find_branches(model)
    assert (inner.name, inner.layers) == ("i", ("b",))
    assert outer.layers == ("a", "b", "c")
    assert [node.name for node in remove_part(model, ["t", "i"]).graph] == ["s", "y"]


def test_sums_of_other_kinds_are_no_branches():
    model = build(
        """net (float[n, 8] x, float[n, 8] z, float[1, 8] row) => (float[n, 8] y) {
            a = MatMul(x, w1)
            b = MatMul(z, w2)
            c = Add(a, b)
            d = Add(c, bias)
            e = MatMul(row, w3)
            f = Add(e, row)
            g = Add(d, f)
            h = Add(g, g)
            r = Relu(h)
            y = Add(h, r)
        }""",
        w1=(8, 8), w2=(8, 8), w3=(8, 8), bias=(8,),
    )  # fmt: skip
    # Only f is one: two inputs, a bias, a stretched row, itself and a bare activation are not.
    assert [branch.name for branch in find_branches(model)] == ["f"]


def test_a_branch_that_does_not_exist_is_refused():
    with pytest.raises(WrongUsage, match="no residual branch 'q'"):
        remove_part(blocks(), ["q"])


def test_a_sum_that_is_an_output_keeps_its_name_or_is_refused():
    text = """net (float[n, 8] x) => (float[n, 8] y) {
        s = MatMul(x, w0)
        a = MatMul(s, w1)
        y = Add(s, a)
    }"""
    pruned = remove_part(build(text, w0=(8, 8), w1=(8, 8)), ["y"])
    assert [value.name for value in pruned.graph.outputs] == ["y"]
    direct = text.replace("s = MatMul(x, w0)", "").replace("(s, ", "(x, ")
    with pytest.raises(WrongUsage, match="its sum is an output"):
        remove_part(build(direct, w1=(8, 8)), ["y"])


CHAIN = """net (float[n, 8] x) => (float[n, 8] y) {
    s = MatMul(x, w0)
    sr = Relu(s)
    a = MatMul(sr, w1)
    t = Add(a, sr)
    tr = Relu(t)
    b = MatMul(tr, w2)
    u = Add(tr, b)
    ur = Relu(u)
    c = MatMul(ur, w3)
    v = Add(c, ur)
    y = LAST(v)
}"""


def chain(text: str = CHAIN.replace("LAST", "Relu")) -> ir.Model:
    return build(text, **{f"w{k}": (8, 8) for k in range(4)})


@pytest.mark.parametrize(
    ("names", "left"),
    [
        (["t"], ["t", "tr", "b", "u", "ur", "c", "v", "y"]),
        (["t", "u"], ["u", "ur", "c", "v", "y"]),
        (["u", "t"], ["u", "ur", "c", "v", "y"]),
        (["u"], ["s", "sr", "a", "u", "ur", "c", "v", "y"]),
        (["t", "u", "v"], ["v", "y"]),
    ],
)
def test_what_stands_for_a_sum_has_its_name(names: list[str], left: list[str]):
    """An activation that was there twice is there once, under the later one's name."""
    model = chain()
    pruned = remove_part(model, names)
    assert [value.name for node in pruned.graph for value in node.outputs] == left
    without = silenced(chain(), [{"t": "w1", "u": "w2", "v": "w3"}[name] for name in names])
    feeds = feeds_of(model)
    expected = session_of(without).run(None, feeds)[0]
    np.testing.assert_allclose(session_of(pruned).run(None, feeds)[0], expected, atol=1e-6)


def test_another_activation_stays_and_names_too():
    model = chain(CHAIN.replace("LAST", "Tanh"))
    pruned = remove_part(model, ["v"])
    assert [node.op_type for node in pruned.graph][-2:] == ["Relu", "Tanh"]
    # What another branch reads too stands for nothing but itself.
    text = CHAIN.replace("c = MatMul(ur, w3)", "c = MatMul(ur, w3) z = Add(ur, sr)")
    text = text.replace("LAST(v)", "Add(v, z)")
    model = chain(text)
    kept = remove_part(model, ["t"])
    assert "s" in [value.name for node in kept.graph for value in node.outputs]


def test_what_stands_for_a_sum_is_held_to_the_branch_and_what_was_before_the_activation():
    model = chain()
    seen = with_stand_ins(model, ["t", "u"])
    feeds = feeds_of(model)
    expected = session_of(model).run(None, feeds)[0]
    np.testing.assert_array_equal(session_of(seen).run(None, feeds)[0], expected)
    inner = with_outputs(model, ["s", "a", "b"])
    s, a, b = session_of(inner).run(None, feeds)
    t, u = session_of(with_outputs(seen, ["t", "u"])).run(None, feeds)
    np.testing.assert_allclose(t, s + a, atol=1e-5)
    np.testing.assert_allclose(u, s + a + b, atol=1e-5)
