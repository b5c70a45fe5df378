"""What runs in integers: which nodes, which tensors, whose scale, which clamps vanish."""

from __future__ import annotations

import numpy as np
import pytest
from graph_bench import Bench, snr_db
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from packlight.graph.layers import find_layers
from packlight.graph.model import Model
from packlight.graph.placement import Placement, place_quantization, root_of
from packlight.graph.rewrite.quantize import tensors_to_observe

RANDOM = np.random.default_rng(2)
CONV = "[conv] a = Conv(x, w) "


def place(
    bench: Bench, nodes: str, *, outputs: str = "y", chosen: set[str] | None = None
) -> tuple[Placement, Model]:
    """Quantization of nodes between x [n,4,6,6] and the outputs; w, v are pointwise kernels."""
    listed = ", ".join(f"float[n,c,h,i] {name}" for name in outputs.split())
    kernel = RANDOM.standard_normal((4, 4, 1, 1)).astype(np.float32)
    model = bench.model(
        f"g (float[n,4,6,6] x, bool cond) => ({listed}) {{ {nodes} }}",
        w=kernel,
        v=kernel[::-1].copy(),
        zero=np.zeros((), np.float32),
        one=np.ones((), np.float32),
        six=np.full((), 6, np.float32),
        minus=np.full((), -1, np.float32),
        pads=np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        matrix=RANDOM.standard_normal((6, 6)).astype(np.float32),
        heads=np.array([0, 4, 6, 6]),
    )
    layers = [one for one in find_layers(model.ir) if chosen is None or one.name in chosen]
    return place_quantization(model.ir, layers), model


@pytest.mark.parametrize(
    ("clamp", "vanishes"),
    [
        ("Relu(a)", True),
        ("Clip(a, zero, six)", True),
        ("Clip(a, minus, one)", True),
        ("Clip(a, , six)", True),
        ("Clip(a, zero)", True),
        ("Clip(a)", True),
        ("Clip(a, one, six)", False),
        ("Clip(a, , minus)", False),
        ("LeakyRelu(a)", False),
        ("my.domain.Relu(a)", False),
    ],
)
def test_clamps_vanish_where_the_range_does_their_work(
    bench: Bench, clamp: str, vanishes: bool
) -> None:
    placement, _ = place(bench, CONV + f"[clamp] y = {clamp}")
    assert placement.clamped == ({"clamp"} if vanishes else set())
    assert placement.tensors == ("x", "y" if vanishes else "a")


def test_a_clamp_stays_where_others_read_what_it_reads(bench: Bench) -> None:
    placement, _ = place(bench, CONV + "[clamp] r = Relu(a) y = Neg(a) z = Neg(r)", outputs="y z")
    assert (placement.clamped, placement.tensors) == (frozenset(), ("x", "a"))
    placement, _ = place(bench, CONV + "[clamp] y = Relu(a)", outputs="a y")
    assert (placement.clamped, placement.tensors) == (frozenset(), ("x", "a"))


def test_a_clamp_read_twice_vanishes(bench: Bench) -> None:
    nodes = CONV + "[clamp] r = Relu(a) [two] b = Conv(r, v) y = Add(b, r)"
    placement, _ = place(bench, nodes)
    assert placement.clamped == {"clamp"}
    assert placement.tensors == ("x", "r", "b")


@pytest.mark.parametrize(
    ("node", "joins"),
    [
        ("MaxPool <kernel_shape = [2,2]> (a)", True),
        ("AveragePool <kernel_shape = [2,2]> (a)", True),
        ("Transpose <perm = [0,2,3,1]> (a)", True),
        ("Pad(a, pads)", True),
        ("Pad(a, pads, zero)", True),
        ("Pad <mode = 'reflect'> (a, pads)", True),
        ("Pad(a, pads, one)", False),
        ("Sigmoid(a)", True),
        ("Add(a, x)", True),
        ("Concat <axis = 1> (a, x)", True),
        ("Add(a, one)", False),  # a float constant
        ("Add(a, f)", False),  # a float tensor
        ("Concat <axis = 1> (a, f)", False),
        ("Exp(a)", False),
        ("my.domain.MaxPool(a)", False),
    ],
)
def test_nodes_join_that_read_codes_only(bench: Bench, node: str, joins: bool) -> None:
    nodes = CONV + f"f = Exp(x) [node] b = {node} [two] y = Conv(b, v)"
    placement, _ = place(bench, nodes.replace("'", '"'))
    assert ("node" in placement.nodes) is joins
    assert {"x", "a", "b", "y"} == set(placement.tensors)


def test_the_indices_of_a_pool_keep_it_in_float(bench: Bench) -> None:
    pool = "[node] b, i = MaxPool <kernel_shape = [2,2]> (a) [two] y = Conv(b, v) "
    placement, _ = place(bench, CONV + pool)
    assert "node" in placement.nodes
    placement, _ = place(bench, CONV + pool + "k = Cast <to = 1> (i) z = Neg(k)", outputs="y z")
    assert "node" not in placement.nodes
    placement, _ = place(bench, CONV + pool.replace("b, i", "b, z"), outputs="y z")
    assert "node" not in placement.nodes


def test_moved_codes_share_the_scale_through_chains(bench: Bench) -> None:
    nodes = (
        CONV
        + """r = Relu(a) p = Pad(r, pads) m = MaxPool <kernel_shape = [2,2]> (p)
        [two] y = Conv(m, v)"""
    )
    placement, model = place(bench, nodes)
    assert placement.same_scale == {"p": "r", "m": "p"}
    assert [root_of(name, placement.same_scale) for name in placement.tensors] == [
        *("x", "r", "r", "r", "y")
    ]
    assert set(tensors_to_observe(model.ir, find_layers(model.ir))) == {"x", "r", "m", "y"}


@pytest.mark.parametrize(
    ("tail", "nodes"),
    [
        ("[node] b = Add(a, x) y = Exp(b)", {"conv"}),
        ("[node] b = Sigmoid(a) y = Exp(b)", {"conv"}),
        ("[node] b = MaxPool <kernel_shape = [2,2]> (a) y = Exp(b)", {"conv", "node"}),
        ("[node] y = MaxPool <kernel_shape = [2,2]> (a)", {"conv"}),
        ("[node] b = Add(a, x) [end] c = Sigmoid(b) y = Exp(c)", {"conv"}),
    ],
)
def test_the_end_of_an_island_is_pruned(bench: Bench, tail: str, nodes: set[str]) -> None:
    placement, _ = place(bench, CONV + tail)
    assert placement.nodes == nodes


def test_nothing_chosen_and_an_empty_graph(bench: Bench) -> None:
    placement, _ = place(bench, CONV + "y = Relu(a)", chosen=set())
    assert placement == Placement(frozenset(), (), {}, frozenset())
    model = bench.model("g (float[n,4] x) => (float[n,4] y) { y = Identity(x) }")
    assert place_quantization(model.ir, ()).tensors == ()


def test_readers_in_a_subgraph_read_on(bench: Bench) -> None:
    nodes = """[conv] a = Conv(x, w) r = Relu(a)
        y = If(cond) <then_branch = t () => (p) { p = Exp(r) },
                      else_branch = e () => (q) { q = Identity(r) }>"""
    placement, model = place(bench, nodes)
    assert placement.nodes == {"conv"}
    x = RANDOM.standard_normal((16, 4, 6, 6)).astype(np.float32)
    data = {"x": x, "cond": np.ones(16, bool)}
    model = bench.model(
        f"g (float[n,4,6,6] x) => (float[n,c,h,i] y) {{ {nodes.replace('cond', 'k')} }}",
        w=RANDOM.standard_normal((4, 4, 1, 1)).astype(np.float32),
        k=np.array(False),
    )
    path = bench.apply(model, "int8", {"x": data["x"]})
    reference = bench.run(model, {"x": x})[0]
    assert snr_db(reference, bench.run(path, {"x": x})[0]) > 30


BRANCHES = """g (float[n,4,6,6] x) => (float[n,c,h,i] y, float[n,c,h,i] z, float[n,k] u) {
    [c1] a = Conv <pads = [1,1,1,1]> (x, w1) r = Relu(a) [c2] b = Conv <pads = [1,1,1,1]> (r, w2)
    s = Add(b, r) t = Relu(s) m = MaxPool <kernel_shape = [3,3], pads = [1,1,1,1]> (t)
    [c3] c = Conv <pads = [1,1,1,1]> (x, w3) d = Concat <axis = 1> (m, c, x)
    e = Transpose <perm = [0,1,3,2]> (d) [c4] y = Conv(e, w4)
    f = Add(a, c) z = MaxPool <kernel_shape = [2,2]> (f) [c5] g = Conv(z, w5)
    h = GlobalAveragePool(g) i = Flatten(h) [g1] j = Gemm(i, w6) l = Relu(j)
    [g2] u = Gemm(l, w7) }"""


def branches(bench: Bench) -> tuple[Model, NDArray[np.float32]]:
    def kernel(*shape: int) -> NDArray[np.float32]:
        return (RANDOM.standard_normal(shape) * 0.3).astype(np.float32)

    weights = {f"w{i}": kernel(4, 4, 3, 3) for i in (1, 2, 3)}
    weights |= {"w4": kernel(4, 12, 1, 1), "w5": kernel(6, 4, 2, 2)}
    weights |= {"w6": kernel(6, 8), "w7": kernel(8, 3)}
    model = bench.model(BRANCHES, **weights)
    return model, RANDOM.standard_normal((32, 4, 6, 6)).astype(np.float32)


def test_every_subset_of_layers_runs_and_needs_only_what_was_observed(bench: Bench) -> None:
    model, x = branches(bench)
    layers = find_layers(model.ir)
    observed = set(tensors_to_observe(model.ir, layers))
    reference = bench.run(model, {"x": x})
    seen = bench.observe(model, {"x": x})

    @settings(max_examples=25)
    @given(chosen=st.sets(st.sampled_from([layer.name for layer in layers]), min_size=1))
    def check(chosen: set[str]) -> None:
        placement = place_quantization(model.ir, [one for one in layers if one.name in chosen])
        roots = {root_of(name, placement.same_scale) for name in placement.tensors}
        assert roots <= observed
        assert chosen <= placement.nodes
        path = bench.apply(model, dict.fromkeys(sorted(chosen), "int8"), observations=seen)
        for optimize in (True, False):
            found = bench.run(path, {"x": x}, optimize=optimize)
            assert min(map(snr_db, reference, found)) > 20

    check()


def test_a_value_that_is_output_and_read_by_integer_nodes(bench: Bench) -> None:
    """z is a pool's output, given out and read by a Conv: one is float, the other codes."""
    model, x = branches(bench)
    path = bench.apply(model, {"c1": "int8", "c3": "int8", "c5": "int8"}, {"x": x})
    reference, found = bench.run(model, {"x": x}), bench.run(path, {"x": x})
    assert all(snr_db(*pair) > 28 for pair in zip(reference, found, strict=True))


def test_products_on_their_way_to_attention_stay_float(bench: Bench) -> None:
    tail = "r = Transpose <perm = [0, 1, 3, 2]> (q) y = MatMul(q, r)"
    placement, _ = place(bench, "[layer] m = MatMul(x, matrix) q = Reshape(m, heads) " + tail)
    assert placement.nodes == {"layer"} and placement.tensors == ("x",)
    # A Conv gives codes in any case: moving those costs less than moving floats.
    placement, _ = place(bench, CONV + "[turned] r = Transpose(a) y = Softmax(r)")
    assert placement.nodes == {"conv", "turned"}
