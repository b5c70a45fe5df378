"""Calibration: exact statistics, whatever the batches, in memory that does not grow."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from graph_bench import Bench
from numpy.typing import NDArray

import packlight.graph.observe as room
from packlight.errors import UnusableSamples
from packlight.graph.layers import Layer, find_layers, weight_matrix
from packlight.graph.model import Model, save_model
from packlight.graph.observe import Observations, observe, wants_moments, with_outputs
from packlight.graph.patches import kernel_order, rows_reaching
from packlight.maths.histograms import add_to_histogram, empty_histogram
from packlight.samples import open_samples

RANDOM = np.random.default_rng(5)
CHAIN = """g (float[n, 3, 8, 8] x) => (float[n, 4, 6, 6] y) {
    [first] a = Conv <pads = [1, 1, 1, 1]> (x, w)
    r = Relu(a)
    [second] y = Conv(r, v) }"""


def chain(bench: Bench) -> Model:
    w = RANDOM.standard_normal((6, 3, 3, 3)).astype(np.float32)
    v = RANDOM.standard_normal((4, 6, 3, 3)).astype(np.float32)
    return bench.model(CHAIN, w=w, v=v)


def pictures(count: int) -> NDArray[np.float32]:
    return RANDOM.standard_normal((count, 3, 8, 8)).astype(np.float32)


def look(
    bench: Bench,
    model: Model,
    data: Any,
    tensors: Sequence[str] = (),
    layers: Sequence[Layer] = (),
    **settings: Any,
) -> Observations:
    samples = open_samples(data, model.inputs)
    return observe(
        model.ir,
        samples,
        range(len(samples)),
        model.inputs,
        tensors=tensors,
        layers=layers,
        process=bench.process,
        **settings,
    )


def relu_of(bench: Bench, model: Model, x: NDArray[np.float32]) -> NDArray[np.float32]:
    path = bench.folder / "inner.onnx"
    save_model(with_outputs(model.ir, ["r"]), path)
    return bench.run(path, {"x": x})[0]


def test_histograms_are_those_of_all_values_at_once(bench: Bench) -> None:
    model, x = chain(bench), pictures(70)
    seen = look(bench, model, {"x": x}, ["x", "r", "y"])
    assert seen.samples == 70 and set(seen.histograms) == {"x", "r", "y"}
    wanted = {"x": x, "r": relu_of(bench, model, x), "y": bench.run(model, {"x": x})[0]}
    for name, array in wanted.items():
        found = seen.histograms[name]
        expected = add_to_histogram(empty_histogram(), array)
        assert (found.count, found.zeros) == (expected.count, expected.zeros)
        assert found.minimum == pytest.approx(expected.minimum, rel=1e-5)
        assert found.maximum == pytest.approx(expected.maximum, rel=1e-5)
        assert found.sum_of_squares == pytest.approx(expected.sum_of_squares, rel=1e-6)
        moved = np.abs(found.counts - expected.counts).sum()
        assert moved <= 4 + 1e-3 * expected.count  # float noise moves values over an edge


def test_moments_are_those_of_the_rows_by_hand(bench: Bench) -> None:
    model, x = chain(bench), pictures(20)
    layers = find_layers(model.ir)
    seen = look(bench, model, {"x": x}, ["x"], layers)
    assert set(seen.moments) == {"first", "second"}
    inputs = {"first": x, "second": relu_of(bench, model, x)}
    for layer in layers:
        moments = seen.moments[layer.name]
        rows = rows_reaching(layer, inputs[layer.name], 10**6, np.random.default_rng(0))
        rows = rows.astype(np.float64)
        assert moments.count == len(rows)
        second = rows.T @ rows / len(rows)
        np.testing.assert_allclose(moments.second, second, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(moments.mean, rows.mean(axis=0), rtol=1e-3, atol=1e-4)
        # What they are for: the mean square of the layer's output without bias.
        matrix = weight_matrix(layer)[:, kernel_order(layer)].astype(np.float64)
        power = np.trace(matrix @ moments.second @ matrix.T)
        assert power == pytest.approx(np.square(rows @ matrix.T).sum() / len(rows), rel=1e-3)


def test_batches_and_groups_make_no_difference(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = chain(bench), pictures(9)
    layers = find_layers(model.ir)
    one = look(bench, model, {"x": x}, ["x", "a", "r", "y"], layers)
    monkeypatch.setattr(room, "BATCH_BYTES", 100)  # a sample a run, a tensor a group
    other = look(bench, model, {"x": x}, ["x", "a", "r", "y"], layers)
    for name, histogram in one.histograms.items():
        again = other.histograms[name]
        assert (again.count, again.zeros) == (histogram.count, histogram.zeros)
        assert again.sum == pytest.approx(histogram.sum, abs=1e-3)
    for name, moments in one.moments.items():
        np.testing.assert_allclose(other.moments[name].second, moments.second, rtol=1e-3, atol=1e-4)


def test_a_seed_gives_the_same_rows(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MOMENT_ROWS", 40)
    model, x = chain(bench), pictures(8)
    layers = find_layers(model.ir)
    one, same, other = (
        look(bench, model, {"x": x}, ["x"], layers, seed=seed).moments["first"].products
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_moments_end_after_so_many_samples_and_rows(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "MOMENT_ROWS", 1000)
    monkeypatch.setattr(room, "MOMENT_SAMPLES", 10)
    model = chain(bench)
    seen = look(bench, model, {"x": pictures(200)}, ["x"], find_layers(model.ir))
    # The last batch may be whole: 32 samples of 100 rows.
    assert 500 < seen.moments["first"].count <= 3200
    assert seen.histograms["x"].count == 200 * 3 * 64


@pytest.mark.parametrize("rows", [None, 300])
def test_moments_in_several_passes_are_those_of_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, rows: int | None
) -> None:
    """Held in memory or mapped from a folder; also where only some positions are drawn."""
    if rows is not None:
        monkeypatch.setattr(room, "MOMENT_ROWS", rows)
    model, x = chain(bench), pictures(50)
    layers = find_layers(model.ir)
    one = look(bench, model, {"x": x}, ["x", "r"], layers)
    several = look(bench, model, {"x": x}, ["x", "r"], layers, moment_bytes=1)
    folder = bench.folder / "moments"
    folder.mkdir()
    mapped = look(bench, model, {"x": x}, ["x", "r"], layers, moment_bytes=1, folder=folder)
    assert len(list(folder.iterdir())) == len(layers) == 2
    for other in (several, mapped):
        assert other.samples == one.samples
        assert other.histograms["r"].count == one.histograms["r"].count
        for name, moments in one.moments.items():
            again = other.moments[name]
            assert again.count == moments.count
            np.testing.assert_allclose(again.products, moments.products, rtol=1e-6)
            np.testing.assert_allclose(again.mean, moments.mean, rtol=1e-6)
    assert all(isinstance(one.products, np.memmap) for one in mapped.moments.values())


def test_what_fits_is_not_put_into_the_folder(bench: Bench) -> None:
    model = chain(bench)
    folder = bench.folder / "moments"
    folder.mkdir()
    seen = look(bench, model, {"x": pictures(4)}, [], find_layers(model.ir), folder=folder)
    assert list(folder.iterdir()) == [] and len(seen.moments) == 2


def test_memory_of_several_passes_does_not_grow_with_the_samples(bench: Bench) -> None:
    model = chain(bench)
    layers = find_layers(model.ir)
    samples = open_samples({"x": pictures(256)}, model.inputs)

    def peak(count: int) -> int:
        tracemalloc.start()
        observe(
            model.ir,
            samples,
            range(count),
            model.inputs,
            tensors=["x", "r"],
            layers=layers,
            process=bench.process,
            moment_bytes=1,
            folder=bench.folder,
        )
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(32)
    small, large = peak(64), peak(256)
    one_batch = 32 * 4 * (3 * 64 + 6 * 64)
    assert large < small + one_batch, (small, large)


def test_memory_does_not_grow_with_the_samples(bench: Bench) -> None:
    """Not one array more is held after 600 samples than after 60."""
    model = chain(bench)
    layers = find_layers(model.ir)

    class Endless:
        source, notes, labels, generated = "made as they are read", (), None, False

        def __len__(self) -> int:
            return 600

        def read(self, indices: Sequence[int]) -> dict[str, NDArray[np.float32]]:
            return {"x": np.ones((len(indices), 3, 8, 8), np.float32) * indices[0]}

    def peak(count: int) -> int:
        tracemalloc.start()
        observe(
            model.ir,
            Endless(),
            range(count),
            model.inputs,
            tensors=["x", "a", "r", "y"],
            layers=layers,
            process=bench.process,
        )
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(32)
    small, large = peak(60), peak(600)
    one_batch = 32 * 4 * (3 * 64 + 6 * 64 * 2 + 4 * 36)
    assert large < small + one_batch, (small, large)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("tensors", [["x", "r", "y"], []])
def test_a_broken_activation_names_its_tensor(bench: Bench, bad: float, tensors: list[str]) -> None:
    """Finite samples, broken inside: by tensor, whether its histogram is wanted or not."""
    scale = np.array([1e38], np.float32)
    w = np.ones((2, 3, 1, 1), np.float32)
    text = """g (float[n, 3, 8, 8] x) => (float[n, 2, 8, 8] y) {
        b = Mul(x, s) r = Mul(b, s) [conv] y = Conv(r, w) }"""
    if np.isnan(bad):
        text = text.replace("r = Mul(b, s)", "c = Mul(b, s) r = Sub(c, c)")
    model = bench.model(text, s=scale, w=w)
    x = pictures(3) + 5
    with pytest.raises(UnusableSamples, match=r"'r'.*samples 0 to 2"):
        look(bench, model, {"x": x}, tensors, find_layers(model.ir))


def test_only_layers_of_the_main_graph_have_moments(bench: Bench) -> None:
    text = """g (float[n, 4] x, bool c, float[n, 4, 5, 5] p) => (y, z, u) {
        [plain] a = MatMul(x, w)
        [branch] y = If(c) <then_branch = t () => (q) { [inside] q = MatMul(a, w) },
                            else_branch = e () => (s) { s = Identity(a) }>
        [grouped] z = Conv <group = 2> (p, k)
        [constant] u = MatMul(m, w) }"""
    k = RANDOM.standard_normal((4, 2, 1, 1)).astype(np.float32)
    w, m = RANDOM.standard_normal((2, 4, 4)).astype(np.float32)
    model = bench.model(text, w=w, k=k, m=m)
    wanted = {layer.name: wants_moments(layer) for layer in find_layers(model.ir)}
    assert wanted == {"plain": True, "grouped": True, "constant": False, "inside": False}


def test_moments_of_groups_say_what_the_output_is(bench: Bench) -> None:
    """The mean square and the mean of each channel's output, without running it by hand."""
    text = """g (float[n, 6, 9, 9] x) => (float[n, 12, k, l] y) {
        [pairs] a = Conv <group = 3, pads = [1, 1, 1, 1]> (x, w)
        [depthwise] b = Conv <group = 6, strides = [2, 2]> (a, v)
        [spread] y = Conv <group = 6, dilations = [2, 2]> (b, u) }"""
    w = RANDOM.standard_normal((6, 2, 3, 3)).astype(np.float32)
    v = RANDOM.standard_normal((6, 1, 3, 2)).astype(np.float32)
    u = RANDOM.standard_normal((12, 1, 1, 2)).astype(np.float32)
    model, x = bench.model(text, w=w, v=v, u=u), RANDOM.standard_normal((20, 6, 9, 9))
    x = (x + 0.5).astype(np.float32)
    layers = find_layers(model.ir)
    seen = look(bench, model, {"x": x}, ["x"], layers)
    path = bench.folder / "inner.onnx"
    save_model(with_outputs(model.ir, ["a", "b", "y"]), path)
    shapes = {"pairs": (3, 18, 18), "depthwise": (6, 6, 6), "spread": (6, 2, 2)}
    for layer, output in zip(layers, bench.run(path, {"x": x}), strict=True):
        moments = seen.moments[layer.name]
        assert moments.grouped and moments.products.shape == shapes[layer.name]
        matrix = weight_matrix(layer)[:, kernel_order(layer)].astype(np.float64)
        stack = matrix.reshape(layer.groups, -1, matrix.shape[1])
        power = np.einsum("goi,gij,goj->go", stack, moments.second, stack).reshape(-1)
        mean = np.einsum("goi,gi->go", stack, moments.mean).reshape(-1)
        channels = np.moveaxis(output.astype(np.float64), 1, 0).reshape(len(matrix), -1)
        assert moments.count == channels.shape[1]
        np.testing.assert_allclose(power, np.square(channels).mean(axis=1), rtol=1e-3)
        np.testing.assert_allclose(mean, channels.mean(axis=1), rtol=1e-3, atol=1e-3)


def test_groups_that_take_too_much_memory_have_no_moments(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "g (float[n, 8, 5, 5] x) => (y) { y = Conv <group = 4> (x, w) }"
    model = bench.model(text, w=RANDOM.standard_normal((4, 2, 3, 3)).astype(np.float32))
    (layer,) = find_layers(model.ir)
    monkeypatch.setattr(room, "MOMENT_INPUTS", 36)  # 4 of 18 x 18 take as much as one of 36 x 36
    assert wants_moments(layer)
    monkeypatch.setattr(room, "MOMENT_INPUTS", 35)
    assert not wants_moments(layer)


def test_whole_feeds_and_integer_inputs_are_seen(bench: Bench) -> None:
    text = """g (float[3, 4] x, int64[2] i) => (float[2, 5] y) {
        g = Gather(x, i) [mul] y = MatMul(g, w) }"""
    model = bench.model(text, w=RANDOM.standard_normal((4, 5)).astype(np.float32))
    data = {
        "x": RANDOM.standard_normal((6, 3, 4)).astype(np.float32),
        "i": RANDOM.integers(0, 3, (6, 2)),
    }
    seen = look(bench, model, data, ["g", "y"], find_layers(model.ir))
    assert seen.histograms["g"].count == 6 * 2 * 4
    assert seen.moments["mul"].count == 12


def test_nothing_wanted_and_nothing_given(bench: Bench) -> None:
    model = chain(bench)
    seen = look(bench, model, {"x": pictures(3)})
    assert (dict(seen.histograms), dict(seen.moments)) == ({}, {})
    samples = open_samples({"x": pictures(3)}, model.inputs)
    with pytest.raises(UnusableSamples, match="are no samples"):
        observe(
            model.ir, samples, [], model.inputs, tensors=["x"], layers=[], process=bench.process
        )


def test_the_model_is_left_as_it_was(bench: Bench) -> None:
    model = chain(bench)
    copy = with_outputs(model.ir, ["r", "a"])
    assert [value.name for value in copy.graph.outputs] == ["r", "a"]
    assert [value.name for value in model.ir.graph.outputs] == ["y"]


def test_what_inner_tensors_do_not_need_is_left_out(bench: Bench) -> None:
    random = np.random.default_rng(3)
    weights = {f"w{i}": random.standard_normal((4, 4)).astype(np.float32) for i in range(3)}
    model = bench.model(
        """g (float[n,4] x, float[n,4] z) => (float[n,4] y) {
            a = MatMul (x, w0) b = MatMul (a, w1) c = Add (b, z) y = MatMul (c, w2) }""",
        **weights,
    )
    looked = with_outputs(model.ir, ["a"])
    assert [node.op_type for node in looked.graph] == ["MatMul"]
    assert list(looked.graph.initializers) == ["w0"]
    x = random.standard_normal((5, 4)).astype(np.float32)
    # Inputs stay, needed or not: a session is fed with all of them.
    save_model(looked, bench.folder / "looked.onnx")
    found = bench.process.load(bench.folder / "looked.onnx").run({"x": x, "z": x})
    np.testing.assert_allclose(found["a"], x @ weights["w0"], rtol=1e-5)
    assert len(list(model.ir.graph)) == 4
