"""Fitting what is left to the original: the closed form, its target, and what is not touched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graph_bench import Bench, snr_db
from numpy.typing import NDArray

from packlight.graph import repair as repairing
from packlight.graph.coupling.groups import find_groups
from packlight.graph.coupling.shapes import infer_shapes
from packlight.graph.fitting import find_target
from packlight.graph.layers import find_layers, weight_matrix
from packlight.graph.model import Model
from packlight.graph.observe import observe, wants_moments, with_outputs
from packlight.graph.repair import repair
from packlight.graph.rewrite.prune import remove_channels
from packlight.graph.thin import gone_of, order_groups, rows_left
from packlight.graph.walk import constant_of
from packlight.samples import open_samples

Array = NDArray[Any]

BLOCK = """g (float[n,8,6,6] x) => (float[n,8,6,6] y) {
    [stem] a = Conv <pads = [1,1,1,1]> (x, w0, b0) s = Relu(a)
    [one] c = Conv <pads = [1,1,1,1]> (s, w1, b1) r = Relu(c)
    [two] d = Conv <pads = [1,1,1,1]> (r, w2, b2)
    t = Add(d, s) u = Relu(t)
    [last] y = Conv (u, w3, b3) }"""


def pictures(count: int = 96) -> Array:
    """Channels that have much in common, as real ones have."""
    random = np.random.default_rng(5)
    base = random.standard_normal((count, 3, 6, 6))
    mix = random.standard_normal((8, 3))
    noise = 0.2 * random.standard_normal((count, 8, 6, 6))
    return (np.einsum("oc,nchw->nohw", mix, base) + noise + 0.3).astype(np.float32)


@pytest.fixture
def block(bench: Bench) -> Model:
    random = np.random.default_rng(3)
    weights = {
        f"w{i}": random.standard_normal((8, 8, k, k)) / (8 * k * k) ** 0.5
        for i, k in enumerate((3, 3, 3, 1))
    }
    weights |= {f"b{i}": 0.2 * random.standard_normal(8) for i in range(4)}
    return bench.model(BLOCK, **{name: a.astype(np.float32) for name, a in weights.items()})


def thin(bench: Bench, model: Model, data: Array, keep: dict[str, int], *, mend: bool = True):
    samples = open_samples({"x": data}, model.inputs)
    layers = [layer for layer in find_layers(model.ir) if wants_moments(layer)]
    seen = observe(
        model.ir, samples, range(len(data)), model.inputs, tensors=(), layers=layers,
        process=bench.process,
    )  # fmt: skip
    groups = find_groups(model.ir)
    gone = gone_of(order_groups(model.ir, groups, seen.moments), keep)
    thinned = remove_channels(model.ir, gone)
    if not mend:
        return thinned, ()
    return repair(
        model.ir, thinned, samples, range(len(data)), model.inputs, process=bench.process,
        rows=rows_left(model.ir, groups, gone),
    )  # fmt: skip


def test_the_target_is_the_sum_with_the_shortcut(block: Model) -> None:
    infer_shapes(block.ir)
    targets = {layer.name: find_target(layer.node.outputs[0]) for layer in find_layers(block.ir)}
    assert (targets["two"].value, targets["two"].others) == ("t", ("s",))
    assert (targets["one"].value, targets["one"].others) == ("c", ())


def test_a_constant_on_the_way_is_taken_off(bench: Bench) -> None:
    model = bench.model(
        "g (float[n,4] x) => (float[n,4] y) { [l] a = MatMul(x, w) b = Add(v, a) y = Add(b, x) }",
        w=np.eye(4, dtype=np.float32), v=np.arange(4, dtype=np.float32),
    )  # fmt: skip
    infer_shapes(model.ir)
    (layer,) = find_layers(model.ir)
    target = find_target(layer.node.outputs[0])
    assert target.value == "y" and target.others[1:] == ("x",)
    np.testing.assert_array_equal(target.others[0], np.arange(4))


def test_nothing_removed_is_left_as_it_was(bench: Bench, block: Model) -> None:
    data = pictures()
    samples = open_samples({"x": data}, block.inputs)
    fitted, names = repair(
        block.ir, block.ir, samples, range(len(data)), block.inputs, process=bench.process
    )
    assert names == ("stem", "one", "two", "last")
    path = bench.save(fitted)
    assert snr_db(bench.run(block, {"x": data})[0], bench.run(path, {"x": data})[0]) > 60


def test_what_is_left_is_fitted_and_the_shape_stays(bench: Bench, block: Model) -> None:
    data, fresh = pictures(), pictures(160)[96:]
    want = bench.run(block, {"x": fresh})[0]
    found = {}
    for mend in (False, True):
        graph, _ = thin(bench, block, data, {"one": 5, "stem": 6}, mend=mend)
        found[mend] = bench.run(bench.save(graph), {"x": fresh})[0]
        assert found[mend].shape == want.shape
        shapes = {layer.name: layer.weight_shape[:2] for layer in find_layers(graph)}
        assert shapes == {"stem": (6, 8), "one": (5, 6), "two": (6, 5), "last": (8, 6)}
    assert snr_db(want, found[True]) > snr_db(want, found[False]) + 3


def test_the_last_layer_is_the_least_squares_solution(bench: Bench, block: Model) -> None:
    """An independent solution: all rows, by `lstsq`, of what reaches it in the fitted graph."""
    data = pictures()
    graph, _ = thin(bench, block, data, {"one": 6})
    copy = bench.save(graph)
    layers = {layer.name: layer for layer in find_layers(graph)}
    inner = bench.run(bench.save(with_outputs(graph, ["u"])), {"x": data})[0]
    rows = inner.transpose(0, 2, 3, 1).reshape(-1, 8).astype(np.float64)
    rows = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
    want = bench.run(block, {"x": data})[0].transpose(0, 2, 3, 1).reshape(-1, 8)
    solution = np.linalg.lstsq(rows, want.astype(np.float64), rcond=None)[0]
    last = layers["last"]
    bias = constant_of(last.bias)
    assert bias is not None
    found = np.concatenate([weight_matrix(last).T, bias.numpy()[None]])
    # Damping pulls a little; the error is what counts.
    errors = [np.square(rows @ v - want).sum() for v in (solution, found)]
    assert errors[1] == pytest.approx(errors[0], rel=1e-3)
    given = bench.run(copy, {"x": data})[0].transpose(0, 2, 3, 1).reshape(-1, 8)
    np.testing.assert_allclose(given, rows @ found, atol=1e-3)


def test_a_depthwise_layer_is_fitted_channel_by_channel(bench: Bench) -> None:
    random = np.random.default_rng(8)
    weights = {
        "w0": random.standard_normal((8, 8, 1, 1)) / 3, "b0": random.standard_normal(8) / 5,
        "w1": random.standard_normal((8, 1, 3, 3)) / 3, "b1": random.standard_normal(8) / 5,
        "w2": random.standard_normal((4, 8, 1, 1)) / 3,
    }  # fmt: skip
    model = bench.model(
        """g (float[n,8,6,6] x) => (float[n,4,6,6] y) {
        [wide] a = Conv (x, w0, b0) r = Relu(a)
        [deep] d = Conv <group = 8, pads = [1,1,1,1]> (r, w1, b1) s = Relu(d)
        [thin] y = Conv (s, w2) }""",
        **{name: array.astype(np.float32) for name, array in weights.items()},
    )
    data = pictures()
    graph, names = thin(bench, model, data, {"wide": 5})
    assert names == ("wide", "deep", "thin")
    assert [layer.weight_shape[:2] for layer in find_layers(graph)] == [(5, 8), (5, 1), (4, 5)]
    plain, _ = thin(bench, model, data, {"wide": 5}, mend=False)
    want = bench.run(model, {"x": data})[0]
    errors = [snr_db(want, bench.run(bench.save(g), {"x": data})[0]) for g in (plain, graph)]
    assert errors[1] > errors[0] + 1.5


def normalized(bench: Bench) -> Model:
    """The normalization comes before its layer and an activation: nothing can take it in."""
    random = np.random.default_rng(11)
    weights = {
        "w0": random.standard_normal((8, 8, 3, 3)) / 8, "b0": random.standard_normal(8) / 5,
        "w1": random.standard_normal((4, 8, 3, 3)) / 8, "b1": random.standard_normal(4) / 5,
        "scale": 1 + random.random(8), "shift": random.standard_normal(8) / 3,
        "mean": random.standard_normal(8) / 3, "variance": 0.5 + random.random(8),
    }  # fmt: skip
    return bench.model(
        """g (float[n,8,6,6] x) => (float[n,4,6,6] y) {
        [one] a = Conv <pads = [1,1,1,1]> (x, w0, b0) p = Relu(a)
        [norm] m = BatchNormalization (p, scale, shift, mean, variance) r = Relu(m)
        [two] y = Conv <pads = [1,1,1,1]> (r, w1, b1) }""",
        **{name: array.astype(np.float32) for name, array in weights.items()},
    )


def test_normalization_that_is_left_is_estimated_again(bench: Bench) -> None:
    model, data = normalized(bench), pictures()
    graph, names = thin(bench, model, data, {"one": 5})
    assert names == ("one", "norm", "two")
    plain, _ = thin(bench, model, data, {"one": 5}, mend=False)
    (reaches,) = bench.run(bench.save(with_outputs(_known(graph), ["p"])), {"x": data})
    scale, shift, mean, variance = _normalization(graph)
    assert scale.shape == (5,)
    np.testing.assert_allclose(mean, reaches.mean(axis=(0, 2, 3)), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(variance, reaches.var(axis=(0, 2, 3)), rtol=1e-3)
    # An independent solution: a line through what reaches and what the original gives.
    left = _normalization(plain)[0].tolist()  # each channel's scale is one of a kind
    kept = [_normalization(model.ir)[0].tolist().index(value) for value in left]
    original = bench.run(bench.save(with_outputs(_known(model.ir), ["m"])), {"x": data})[0]
    for channel, old in enumerate(kept):
        x, t = reaches[:, channel].ravel(), original[:, old].ravel()
        line = np.polyfit(x.astype(np.float64), t.astype(np.float64), 1)
        fitted = scale[channel] / np.sqrt(variance[channel] + 1e-5)
        assert fitted == pytest.approx(line[0], rel=0.01)
        assert shift[channel] == pytest.approx(t.mean(), abs=1e-3)
    original = bench.run(model, {"x": data})[0]
    errors = [snr_db(original, bench.run(bench.save(g), {"x": data})[0]) for g in (plain, graph)]
    assert errors[1] > errors[0] + 3


def _known(graph: Any) -> Any:
    infer_shapes(graph)
    return graph


def _normalization(graph: Any) -> tuple[Array, ...]:
    """Scale, bias, mean and variance of the only such node."""
    (node,) = [node for node in graph.graph if node.op_type == "BatchNormalization"]
    return tuple(constant_of(value).numpy() for value in node.inputs[1:])


def test_the_same_samples_give_the_same_bytes(bench: Bench, block: Model) -> None:
    paths = [bench.save(thin(bench, block, pictures(), {"one": 4})[0]) for _ in range(2)]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_orders_leave_out_what_is_pinned(bench: Bench, block: Model) -> None:
    data = pictures(16)
    samples = open_samples({"x": data}, block.inputs)
    layers = [layer for layer in find_layers(block.ir) if wants_moments(layer)]
    seen = observe(
        block.ir, samples, range(16), block.inputs, tensors=(), layers=layers,
        process=bench.process,
    )  # fmt: skip
    orders = order_groups(block.ir, find_groups(block.ir), seen.moments)
    assert set(orders) == {"stem", "one"}
    losses = orders["one"].losses
    assert len(losses) == 9 and list(losses) == sorted(losses)
    # All gone, a reader with a bias loses all of its variance: the share is 1, damping aside.
    assert losses[-1] == pytest.approx(1.0, rel=0.02)


def test_a_model_that_multiplies_a_lot_is_fitted_on_fewer_samples(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = bench.model(
        "g (float[n,6] x) => (float[n,3] y) { [l] y = Gemm <transB = 1> (x, w, b) }",
        w=np.ones((3, 6), np.float32), b=np.zeros(3, np.float32),
    )  # fmt: skip
    data = np.random.default_rng(0).standard_normal((300, 6)).astype(np.float32)
    samples = open_samples({"x": data}, model.inputs)
    read: list[int] = []
    taken = type(samples).read

    def counted(self: Any, indices: Any) -> Any:
        read.append(len(indices))
        return taken(self, indices)

    monkeypatch.setattr(type(samples), "read", counted)
    # 18 multiplications: all samples, a hundred, and never fewer than 64.
    for work, count in ((1e12, 300), (1801.0, 100), (20.0, 64)):
        monkeypatch.setattr(repairing, "WORK", work)
        read.clear()
        repair(model.ir, model.ir, samples, range(300), model.inputs, process=bench.process)
        assert sum(size for size in read if size > 1) == count  # single ones tell shapes
