"""A pruned model computes what the model computes with zeros where the channels were read."""

from __future__ import annotations

import numpy as np
import pytest
from coupling_oracle import build, check_exact, free

from packlight.graph.coupling.groups import CoupledGroup, find_groups


def sizes(groups: tuple[CoupledGroup, ...]) -> dict[str, int]:
    return {group.name: group.size for group in free(groups)}


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


def test_plain_convolutions():
    model = build(
        """net (float[n, 3, 8, 8] x) => (float[n, 4] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
            r = Relu(a)
            p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
            c = Conv <pads = [1, 1, 1, 1]> (p, w2, b2)
            s = HardSwish(c)
            g = GlobalAveragePool(s)
            f = Flatten(g)
            y = Gemm <transB = 1> (f, w3, b3)
        }""",
        w1=(8, 3, 3, 3), b1=(8,), w2=(12, 8, 3, 3), b2=(12,), w3=(4, 12), b3=(4,),
    )  # fmt: skip
    groups = check_exact(model)
    assert sizes(groups) == {"a": 8, "c": 12}
    first, second, last = groups
    assert [(m.node, m.role, m.axis) for m in first.members] == [
        ("a", "makes", 0), ("a", "follows", 0), ("c", "reads", 1),
    ]  # fmt: skip
    assert first.readers[0].lines[2].tolist() == list(range(18, 27))
    assert [lane.value for lane in second.lanes] == ["c", "s", "g", "f"]
    assert last.pinned == "the model's output 'y' keeps its shape"


def test_flattened_channels_are_blocks_of_columns():
    model = build(
        """net (float[n, 2, 4, 4] x) => (float[n, 5] y) {
            a = Conv(x, w1)
            f = Flatten(a)
            y = MatMul(f, w2)
        }""",
        w1=(6, 2, 1, 1), w2=(96, 5),
    )  # fmt: skip
    group = check_exact(model)[0]
    assert group.readers[0].positions[1].tolist() == list(range(16, 32))
    assert group.lanes[-1].positions[5].tolist() == list(range(80, 96))


@pytest.mark.parametrize("target", [(-1, 96), (0, -1), (0, 96)])
def test_a_reshape_to_constant_sizes_is_mended(target: tuple[int, int]):
    model = build(
        """net (float[n, 2, 4, 4] x) => (float[n, 5] y) {
            a = Conv(x, w1)
            f = Reshape(a, shape)
            y = MatMul(f, w2)
        }""",
        w1=(6, 2, 1, 1), w2=(96, 5), shape=ints(*target),
    )  # fmt: skip
    check_exact(model)


def test_residual_stream_with_projection():
    model = build(
        """net (float[n, 3, 8, 8] x) => (float[n, 4, 1, 1] y) {
            s = Conv(x, w0, b0)
            a = Conv <pads = [1, 1, 1, 1]> (s, w1, b1)
            ar = Relu(a)
            b = Conv <pads = [1, 1, 1, 1]> (ar, w2, b2)
            t = Add(s, b)
            tr = Relu(t)
            c = Conv <strides = [2, 2]> (tr, w3, b3)
            cr = Relu(c)
            d = Conv(cr, w4, b4)
            e = Conv <strides = [2, 2]> (tr, w5, b5)
            u = Add(d, e)
            g = GlobalMaxPool(u)
            y = Conv(g, w6)
        }""",
        w0=(8, 3, 1, 1), b0=(8,), w1=(8, 8, 3, 3), b1=(8,), w2=(8, 8, 3, 3), b2=(8,),
        w3=(12, 8, 1, 1), b3=(12,), w4=(16, 12, 1, 1), b4=(16,), w5=(16, 8, 1, 1), b5=(16,),
        w6=(4, 16, 1, 1),
    )  # fmt: skip
    groups = check_exact(model)
    assert sizes(groups) == {"s": 8, "a": 8, "c": 12, "d": 16}
    stream = groups[0]
    assert [m.node for m in stream.makers] == ["s", "b"]
    assert [m.node for m in stream.readers] == ["a", "c", "e"]


def test_a_padded_shortcut_couples_channels_with_an_offset():
    model = build(
        """net (float[n, 3, 8, 8] x) => (float[n, 2, 8, 8] y) {
            s = Conv(x, w0, b0)
            p = Pad(s, pads)
            c = Conv(s, w1, b1)
            t = Add(p, c)
            y = Conv(t, w2)
        }""",
        w0=(4, 3, 1, 1), b0=(4,), w1=(9, 4, 1, 1), b1=(9,), w2=(2, 9, 1, 1),
        pads=ints(0, 3, 0, 0, 0, 2, 0, 0),
    )  # fmt: skip
    groups = check_exact(model, share=0.5)
    assert sizes(groups) == {"s": 4, "c": 5}
    assert [m.positions.ravel().tolist() for m in groups[0].readers if m.node == "y"] == [
        [3, 4, 5, 6]
    ]


def test_concatenated_channels_stay_apart():
    model = build(
        """net (float[n, 3, 8, 8] x) => (float[n, 2, 8, 8] y) {
            a = Conv(x, w1, b1)
            ar = Relu(a)
            b = Conv <pads = [1, 1, 1, 1]> (ar, w2, b2)
            c = Concat <axis = 1> (ar, b)
            d = Conv <pads = [1, 1, 1, 1]> (c, w3, b3)
            e = Concat <axis = 1> (c, d)
            n = BatchNormalization(e, scale, shift, mean, variance)
            r = Relu(n)
            y = Conv(r, w4)
        }""",
        w1=(6, 3, 1, 1), b1=(6,), w2=(4, 6, 3, 3), b2=(4,), w3=(4, 10, 3, 3), b3=(4,),
        scale=(14,), shift=(14,), mean=(14,), w4=(2, 14, 1, 1),
        variance=np.linspace(0.5, 2, 14).astype(np.float32),
    )  # fmt: skip
    groups = check_exact(model)
    assert sizes(groups) == {"a": 6, "b": 4, "d": 4}
    assert groups[2].readers[0].positions.ravel().tolist() == [10, 11, 12, 13]


def test_channels_that_are_split_shuffled_and_joined():
    model = build(
        """net (float[n, 3, 4, 4] x) => (float[n, 2, 4, 4] y) {
            a = Conv(x, w1, b1)
            s, t = Split <axis = 1> (a, halves)
            b = Conv(t, w2, b2)
            c = Concat <axis = 1> (s, b)
            d = Reshape(c, apart)
            e = Transpose <perm = [0, 2, 1, 3, 4]> (d)
            f = Reshape(e, together)
            g, h = Split <axis = 1> (f, halves)
            gr = Relu(g)
            i = Conv(gr, w3)
            j = Conv(h, w4)
            y = Add(i, j)
        }""",
        w1=(12, 3, 1, 1), b1=(12,), w2=(6, 6, 1, 1), b2=(6,), w3=(2, 6, 1, 1), w4=(2, 6, 1, 1),
        halves=ints(6, 6), apart=ints(0, 2, 6, 4, 4), together=ints(0, 12, 4, 4),
    )  # fmt: skip
    groups = check_exact(model, share=0.34)
    assert sum(sizes(groups).values()) == 12


def test_depthwise_separable():
    model = build(
        """net (float[n, 3, 8, 8] x) => (float[n, 5, 6, 6] y) {
            a = Conv(x, w1, b1)
            ar = Clip(a, low, high)
            b = Conv <group = 8> (ar, w2, b2)
            br = Clip(b, low, high)
            y = Conv(br, w3, b3)
        }""",
        w1=(8, 3, 1, 1), b1=(8,), w2=(16, 1, 3, 3), b2=(16,), w3=(5, 16, 1, 1), b3=(5,),
        low=np.float32(0), high=np.float32(6),
    )  # fmt: skip
    groups = check_exact(model)
    assert sizes(groups) == {"a": 8}
    assert [m.role for m in groups[0].members if m.node == "b"] == ["follows", "follows"]
    assert groups[0].readers[0].positions[3].tolist() == [6, 7]


@pytest.mark.parametrize(("groups", "size"), [(8, 8), (2, 8)])
def test_grouped_convolutions_lose_whole_groups_or_the_same_of_each(groups: int, size: int):
    model = build(
        f"""net (float[n, 3, 4, 4] x) => (float[n, 5, 4, 4] y) {{
            a = Conv(x, w1, b1)
            b = Conv <group = {groups}> (a, w2, b2)
            y = Conv(b, w3)
        }}""",
        w1=(16, 3, 1, 1), b1=(16,), w2=(16, 16 // groups, 1, 1), b2=(16,), w3=(5, 16, 1, 1),
    )  # fmt: skip
    found = check_exact(model)
    whole = groups > 2
    assert sizes(found) == ({"a": size} if whole else {"a": 8, "b": 8})
    assert {m.role for g in found for m in g.members if m.node == "b" and m.number == 1} == (
        {"follows"} if whole else {"makes", "reads"}
    )


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_transposed_convolutions(groups: int):
    model = build(
        f"""net (float[n, 3, 4, 4] x) => (float[n, 5, 8, 8] y) {{
            a = Conv(x, w1, b1)
            b = ConvTranspose <group = {groups}, strides = [2, 2]> (a, w2, b2)
            y = Conv(b, w3)
        }}""",
        w1=(8, 3, 1, 1), b1=(8,), w2=(8, 8 // groups, 2, 2), b2=(8,), w3=(5, 8, 1, 1),
    )  # fmt: skip
    check_exact(model)


def test_a_u_net():
    model = build(
        """net (float[n, 3, 8, 8] x) => (float[n, 2, 8, 8] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
            ar = Relu(a)
            p = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (ar)
            b = Conv <pads = [1, 1, 1, 1]> (p, w2, b2)
            br = Relu(b)
            u = ConvTranspose <strides = [2, 2]> (br, w3, b3)
            r = Resize <mode = "nearest"> (br, none, scales)
            c = Concat <axis = 1> (ar, u, r)
            i = InstanceNormalization(c, scale, shift)
            y = Conv <pads = [1, 1, 1, 1]> (i, w4, b4)
        }""",
        w1=(6, 3, 3, 3), b1=(6,), w2=(8, 6, 3, 3), b2=(8,), w3=(8, 5, 2, 2), b3=(5,),
        w4=(2, 19, 3, 3), b4=(2,), scale=(19,), shift=(19,), none=np.zeros(0, np.float32),
        scales=np.array([1, 1, 2, 2], np.float32),
    )  # fmt: skip
    assert sizes(check_exact(model)) == {"a": 6, "b": 8, "u": 5}


def test_a_resize_to_sizes_is_mended():
    model = build(
        """net (float[n, 3, 4, 4] x) => (float[n, 2, 8, 8] y) {
            a = Conv(x, w1, b1)
            r = Resize <mode = "linear"> (a, none, none, sizes)
            y = Conv(r, w2)
        }""",
        w1=(6, 3, 1, 1), b1=(6,), w2=(2, 6, 1, 1), none=np.zeros(0, np.float32),
        sizes=ints(3, 6, 8, 8),
    )  # fmt: skip
    check_exact(model)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_channels_become_pixels(mode: str):
    model = build(
        f"""net (float[n, 3, 4, 4] x) => (float[n, 2, 4, 4] y) {{
            a = Conv(x, w1, b1)
            d = DepthToSpace <blocksize = 2, mode = "{mode}"> (a)
            b = Conv(d, w2, b2)
            s = SpaceToDepth <blocksize = 2> (b)
            y = Conv(s, w3)
        }}""",
        w1=(20, 3, 1, 1), b1=(20,), w2=(6, 5, 1, 1), b2=(6,), w3=(2, 24, 1, 1),
    )  # fmt: skip
    assert sizes(check_exact(model)) == {"a": 5, "b": 6}


def test_a_pixel_shuffle_of_reshapes():
    model = build(
        """net (float[n, 3, 4, 4] x) => (float[n, 2, 8, 8] y) {
            a = Conv(x, w1, b1)
            d = Reshape(a, apart)
            t = Transpose <perm = [0, 1, 4, 2, 5, 3]> (d)
            s = Reshape(t, together)
            y = Conv(s, w2)
        }""",
        w1=(20, 3, 1, 1), b1=(20,), w2=(2, 5, 1, 1), apart=ints(-1, 5, 2, 2, 4, 4),
        together=ints(-1, 5, 8, 8),
    )  # fmt: skip
    assert sizes(check_exact(model)) == {"a": 5}


def test_a_squeeze_and_excitation_block():
    model = build(
        """net (float[n, 3, 8, 8] x) => (float[n, 4, 8, 8] y) {
            a = Conv(x, w1, b1)
            m = ReduceMean <axes = [2, 3], keepdims = 0> (a)
            f = Gemm(m, w2, b2)
            fr = Relu(f)
            g = Gemm(fr, w3, b3)
            s = Sigmoid(g)
            u = Unsqueeze(s, last)
            e = Mul(a, u)
            y = Conv(e, w4)
        }""",
        w1=(12, 3, 1, 1), b1=(12,), w2=(12, 4), b2=(4,), w3=(4, 12), b3=(12,), w4=(4, 12, 1, 1),
        last=ints(2, 3),
    )  # fmt: skip
    groups = check_exact(model)
    assert sizes(groups) == {"a": 12, "f": 4}
    assert [m.node for m in groups[0].makers] == ["a", "g"]


def test_slopes_scales_and_pads_follow():
    model = build(
        """net (float[n, 3, 8, 8] x) => (float[n, 4, 9, 9] y) {
            a = Conv(x, w1)
            c = Add(a, shift)
            p = PRelu(c, slope)
            m = Mul(scale, p)
            w = Where(yes, m, c)
            q = Pad(w, pads)
            s = Slice(q, zero, ten, two)
            y = Conv(s, w2)
        }""",
        w1=(6, 3, 1, 1), shift=(6, 1, 1), slope=(6, 1, 1), scale=(1, 6, 1, 1),
        w2=(4, 6, 2, 2), yes=np.arange(6).reshape(6, 1, 1) % 2 == 0,
        pads=ints(0, 0, 1, 1, 0, 0, 1, 1), zero=ints(0), ten=ints(10), two=ints(2),
    )  # fmt: skip
    groups = check_exact(model)
    follows = {m.node for m in groups[0].members if m.role == "follows"}
    assert follows == {"c", "p", "m", "w"}


def test_slices_and_picks_along_the_channels():
    model = build(
        """net (float[n, 3, 4, 4] x) => (float[n, 2, 4, 4] y) {
            a = Conv(x, w1, b1)
            s = Slice(a, two, end, one)
            g = Gather <axis = 1> (a, picks)
            c = Concat <axis = 1> (s, g)
            y = Conv(c, w2)
        }""",
        w1=(8, 3, 1, 1), b1=(8,), w2=(2, 8, 1, 1), two=ints(2), end=ints(-1), one=ints(1),
        picks=ints(7, 0, -3),
    )  # fmt: skip
    groups = check_exact(model, share=0.5)
    # 0 and 7 are picked only, 5 twice, 1 not at all.
    assert [group.size for group in groups if not group.pinned] == [2, 1, 4, 1]


@pytest.mark.parametrize(
    ("operator", "gates", "bias"), [("LSTM", 4, 8), ("GRU", 3, 6), ("RNN", 1, 2)]
)
@pytest.mark.parametrize("directions", [1, 2])
def test_recurrent_units(operator: str, gates: int, bias: int, directions: int):
    way = "bidirectional" if directions == 2 else "forward"
    model = build(
        f"""net (float[5, n, 3] x) => (float[5, n, 4] y) {{
            i = MatMul(x, w0)
            a, last = {operator} <hidden_size = 6, direction = "{way}"> (i, w, r, b)
            t = Transpose <perm = [0, 2, 1, 3]> (a)
            f = Reshape(t, shape)
            m = MatMul(f, w2)
            q = Squeeze(last, zero)
            y = MatMul(m, w3)
        }}""",
        w0=(3, 8), w=(directions, gates * 6, 8), r=(directions, gates * 6, 6),
        b=(directions, bias * 6), w2=(directions * 6, 7), w3=(7, 4),
        shape=ints(0, 0, directions * 6), zero=ints(0),
    )  # fmt: skip
    if directions == 2:
        squeeze = next(node for node in model.graph if node.op_type == "Squeeze")
        model.graph.remove(squeeze, safe=True)
    groups = check_exact(model)
    assert sizes(groups) == {"i": 8, "a": 6, "m": 7}
    unit = groups[1]
    assert unit.makers[0].positions[2].tolist() == [2 + 6 * gate for gate in range(gates)]
    assert unit.makers[0].lines[2].tolist() == [2 + 6 * gate for gate in range(gates * directions)]
    assert [m.node for m in unit.readers] == ["a", "m"]


def test_an_embedding_and_a_head():
    model = build(
        """net (int64[n, 5] ids) => (float[n, 5, 3] y) {
            e = Gather(table, ids)
            p = Add(e, places)
            t = Tanh(p)
            y = MatMul(t, w)
        }""",
        table=(20, 8), places=(1, 5, 8), w=(8, 3),
    )  # fmt: skip
    groups = check_exact(model)
    assert sizes(groups) == {"e": 8}
    assert groups[0].makers[0].axis == 1


ATTENTION = """net (float[n, 5, 12] x) => (float[n, 5, 3] y) {
    q = MatMul(x, wq)
    qb = Add(q, bq)
    q4 = Reshape(qb, split)
    qt = Transpose <perm = [0, 2, 1, 3]> (q4)
    k = MatMul(x, wk)
    k4 = Reshape(k, split)
    kt = Transpose <perm = [0, 2, 3, 1]> (k4)
    v = MatMul(x, wv)
    v4 = Reshape(v, split)
    vt = Transpose <perm = [0, 2, 1, 3]> (v4)
    s = MatMul(qt, kt)
    m = Mul(s, scale)
    a = Softmax <axis = -1> (m)
    c = MatMul(a, vt)
    ct = Transpose <perm = [0, 2, 1, 3]> (c)
    o = Reshape(ct, join)
    u = MatMul(o, wo)
    ub = Add(u, bu)
    g = Relu(ub)
    y = MatMul(g, wy)
}"""


def attention(**other: object):
    weights = {
        "wq": (12, 16), "bq": (16,), "wk": (12, 16), "wv": (12, 16), "wo": (16, 6), "bu": (6,),
        "wy": (6, 3), "scale": np.float32(0.5), "split": ints(0, 0, 4, 4), "join": ints(0, 0, 16),
    }  # fmt: skip
    return build(ATTENTION, **(weights | other))


def test_heads_go_whole():
    groups = check_exact(attention())
    assert sizes(groups) == {"q": 4, "u": 6}
    heads = groups[0]
    assert [m.node for m in heads.makers] == ["q", "k", "v"]
    assert [m.node for m in heads.readers] == ["u"]
    assert heads.makers[1].positions[2].tolist() == [8, 9, 10, 11]


def test_channels_go_inside_heads():
    groups = check_exact(attention(), heads="inside")
    assert sizes(groups) == {"q": 4, "v": 4, "u": 6}
    assert [m.node for m in groups[0].makers] == ["q", "k"]
    assert groups[0].makers[0].positions[1].tolist() == [1, 5, 9, 13]


def test_queries_that_share_keys_go_with_them():
    text = ATTENTION.replace("k4 = Reshape(k, split)", "k4 = Reshape(k, fewer)")
    text = text.replace("v4 = Reshape(v, split)", "v4 = Reshape(v, fewer)")
    text = text.replace(
        "kt = Transpose <perm = [0, 2, 3, 1]> (k4)",
        """k5 = Unsqueeze(k4, third)
        k6 = Expand(k5, twice)
        k7 = Reshape(k6, split)
        kt = Transpose <perm = [0, 2, 3, 1]> (k7)""",
    )
    text = text.replace(
        "vt = Transpose <perm = [0, 2, 1, 3]> (v4)",
        """v5 = Unsqueeze(v4, third)
        v6 = Expand(v5, twice)
        v7 = Reshape(v6, split)
        vt = Transpose <perm = [0, 2, 1, 3]> (v7)""",
    )
    weights = {
        "wq": (12, 16), "bq": (16,), "wk": (12, 8), "wv": (12, 8), "wo": (16, 6), "bu": (6,),
        "wy": (6, 3), "scale": np.float32(0.5), "split": ints(0, 0, 4, 4), "join": ints(0, 0, 16),
        "fewer": ints(0, 0, 2, 4), "third": ints(3), "twice": ints(1, 1, 2, 2, 4),
    }  # fmt: skip
    groups = check_exact(build(text, **weights), share=0.5)
    assert sizes(groups) == {"q": 2, "u": 6}
    heads = groups[0]
    assert {m.node: m.positions[1].tolist() for m in heads.makers} == {
        "q": list(range(8, 16)), "k": [4, 5, 6, 7], "v": [4, 5, 6, 7],
    }  # fmt: skip
    inside = check_exact(build(text, **weights), heads="inside", share=0.5)
    assert sizes(inside) == {"q": 4, "v": 4, "u": 6}


def test_group_normalization_loses_whole_groups():
    model = build(
        """net (float[n, 3, 4, 4] x) => (float[n, 2, 4, 4] y) {
            a = Conv(x, w1, b1)
            g = GroupNormalization <num_groups = 4> (a, scale, shift)
            y = Conv(g, w2)
        }""",
        opset=21, w1=(8, 3, 1, 1), b1=(8,), scale=(8,), shift=(8,), w2=(2, 8, 1, 1),
    )  # fmt: skip
    assert sizes(check_exact(model)) == {"a": 4}


def test_sizes_that_are_computed_from_shapes_follow():
    model = build(
        """net (float[n, t, 6] x) => (float[n, t, 3] y) {
            a = MatMul(x, w1)
            whole = Shape(x)
            n = Gather(whole, zero)
            m = Gather(whole, one)
            n1 = Unsqueeze(n, zeros)
            m1 = Unsqueeze(m, zeros)
            apart = Concat <axis = 0> (n1, m1, four, two)
            b = Reshape(a, apart)
            c = Relu(b)
            together = Concat <axis = 0> (n1, m1, eight)
            d = Reshape(c, together)
            y = MatMul(d, w2)
        }""",
        w1=(6, 8), w2=(8, 3), zero=np.int64(0), one=np.int64(1), zeros=ints(0), four=ints(4),
        two=ints(2), eight=ints(8),
    )  # fmt: skip
    assert sizes(check_exact(model)) == {"a": 4}


def test_a_vector_that_several_nodes_share_couples_nothing():
    model = build(
        """net (float[n, 6] x) => (float[n, 3] y) {
            a = Gemm(x, w1, zeros)
            b = Gemm(a, w2, zeros)
            y = MatMul(b, w3)
        }""",
        w1=(6, 8), w2=(8, 8), w3=(8, 3), zeros=np.zeros(8, np.float32),
    )  # fmt: skip
    groups = find_groups(model)
    assert sizes(groups) == {"a": 8, "b": 8}
    check_exact(model)
