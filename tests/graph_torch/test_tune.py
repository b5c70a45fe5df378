"""Tuning: gradients of learned scales, codes within their range, and onnxruntime's own outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from graph_bench import Bench, snr_db
from hypothesis import given, settings
from hypothesis import strategies as st
from residual import pictures, residual_net

torch = pytest.importorskip("torch")

from packlight.errors import UnsupportedOperator  # noqa: E402
from packlight.graph.apply import apply_recipe  # noqa: E402
from packlight.graph.layers import find_layers  # noqa: E402
from packlight.graph.model import Model, load_model  # noqa: E402
from packlight.graph.patches import kernel_order  # noqa: E402
from packlight.graph.rewrite.weights import PAIR_LIMIT, weight_grid  # noqa: E402
from packlight.graph.torch import distill as training  # noqa: E402
from packlight.graph.torch.distill import Lessons  # noqa: E402
from packlight.graph.torch.fake_quantized import (  # noqa: E402
    CodeRule,
    FakeQuantized,
    keep_pairs,
)
from packlight.graph.torch.learned_steps import (  # noqa: E402
    codes_of,
    gradient_factor,
    scale_of,
)
from packlight.graph.torch.tune import Tuned, find_rules, tune  # noqa: E402
from packlight.recipe import Recipe  # noqa: E402
from packlight.samples import open_samples  # noqa: E402


@pytest.fixture
def net(bench: Bench) -> Model:
    return residual_net(bench, opset=21)


def quantize(bench: Bench, net: Model, *words: str) -> tuple[ir.Model, Recipe]:
    layers = find_layers(net.ir)
    chosen = words * len(layers) if len(words) == 1 else words
    pairs = tuple((layer.name, word) for layer, word in zip(layers, chosen, strict=False))
    recipe = Recipe(layers=pairs)
    seen = bench.observe(net, {"x": pictures(128)})
    return apply_recipe(net.ir, recipe, seen)[0], recipe


def train(bench: Bench, net: Model, quantized: ir.Model, recipe: Recipe, **options: Any) -> Tuned:
    samples = open_samples({"x": pictures()}, net.inputs)
    options = {"steps": 80, "rate": 2e-4, "batch": 32, **options}
    lessons = Lessons(samples, range(256), net.inputs, bench.process, **options)
    return tune(net.ir, quantized, recipe, find_layers(net.ir), lessons)


# Gradients ---------------------------------------------------------------------------------------


def test_gradients_of_scales_and_weights_are_those_of_the_paper() -> None:
    """Against central differences of s * (clip(x / s) + what rounding added), which is held."""
    random = np.random.default_rng(0)
    x = random.normal(0, 3, (5, 40))
    s = random.uniform(0.3, 1.5, (5, 1))
    up = random.standard_normal((5, 40))
    low, high = -4, 3
    inside = np.clip(x / s, low, high)
    added = np.rint(inside) - inside

    def value(x: np.ndarray, s: np.ndarray) -> np.ndarray:
        moved: np.ndarray = s * (np.clip(x / s, low, high) + added)
        return moved

    step = 1e-6
    by_scale = ((value(x, s + step) - value(x, s - step)) / (2 * step) * up).sum(1)
    by_weight = (value(x + step, s) - value(x - step, s)) / (2 * step) * up
    latent = torch.tensor(x, requires_grad=True)
    scale = torch.tensor(s, requires_grad=True)
    (codes_of(latent, scale, low, high) * scale * torch.tensor(up)).sum().backward()
    assert scale.grad is not None and latent.grad is not None
    np.testing.assert_allclose(scale.grad.numpy()[:, 0], by_scale, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(latent.grad.numpy(), by_weight, rtol=1e-6, atol=1e-6)


def test_a_scale_moves_in_shares_of_itself_and_its_gradient_is_weighed() -> None:
    factor = gradient_factor(400, 7)
    assert factor == pytest.approx(1 / (400 * 7) ** 0.5)
    logarithm = torch.zeros(3, requires_grad=True)
    start = torch.tensor([0.01, 1.0, 50.0])
    scale = scale_of(logarithm, start, factor)
    (scale * torch.tensor([2.0, 3.0, 4.0])).sum().backward()
    assert logarithm.grad is not None
    want = factor * start.numpy() * np.array([2, 3, 4])
    np.testing.assert_allclose(scale.detach().numpy(), start.numpy())
    np.testing.assert_allclose(logarithm.grad.numpy(), want, rtol=1e-6)


# Codes -------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 30.0))
@settings(max_examples=60, deadline=None)
def test_pairs_are_the_nearest_that_keep_the_limit(seed: int, wide: float) -> None:
    random = np.random.default_rng(seed)
    layout = random.permutation(24).reshape(4, 6)
    rule = CodeRule(-127, 127, pair_limit=PAIR_LIMIT, layout=layout)
    target = torch.tensor(wide * 20 * random.standard_normal(24).reshape(4, 3, 2))
    codes = torch.round(target).clamp(-127, 127)
    found = keep_pairs(codes, target, rule)
    np.testing.assert_array_equal(keep_pairs(found, target, rule), found)
    flat, aims = found.reshape(-1).numpy(), target.reshape(-1).numpy()
    numbers = np.arange(-127, 128)
    fitting = np.abs(numbers[:, None] + numbers[None, :]) <= PAIR_LIMIT
    for first, second in layout.reshape(-1, 2):
        cost = (numbers[:, None] - aims[first]) ** 2 + (numbers[None, :] - aims[second]) ** 2
        mine = (flat[first] - aims[first]) ** 2 + (flat[second] - aims[second]) ** 2
        clipped = np.abs(aims[[first, second]]).max() > 127
        assert abs(flat[first] + flat[second]) <= PAIR_LIMIT and np.abs(flat).max() <= 127
        assert clipped or mine <= cost[fitting].min() + 1e-6


@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3), st.integers(2, 8))
@settings(max_examples=60, deadline=None)
def test_codes_stay_within_their_range(seed: int, wide: float, bits: int) -> None:
    grid = weight_grid(bits)
    random = np.random.default_rng(seed)
    latent = torch.tensor(wide * random.standard_normal((6, 9)))
    scale = torch.tensor(random.uniform(1e-3, 1e3, (6, 1)))
    codes = codes_of(latent, scale, grid.minimum, grid.maximum)
    assert grid.minimum <= float(codes.min()) and float(codes.max()) <= grid.maximum
    np.testing.assert_array_equal(codes, torch.round(codes))


def test_what_was_learned_is_written_back(bench: Bench) -> None:
    """By hand: other scales and weights give these codes, scales, and this bias."""
    model = bench.model(
        """g (float[n,2] x) => (float[n,2] y) {
        q = QuantizeLinear (x, sx, zx) d = DequantizeLinear (q, sx, zx)
        w = DequantizeLinear <axis = 0> (cw, sw) b = DequantizeLinear <axis = 0> (cb, sb)
        [g] y = Gemm <transB = 1> (d, w, b) }""",
        sx=np.float32(0.5).reshape(()),
        zx=np.uint8(128).reshape(()),
        cw=np.array([[3, -4], [1, 2]], np.int8),
        sw=np.array([0.25, 0.5], np.float32),
        cb=np.array([8, -6], np.int32),
        sb=np.array([0.125, 0.25], np.float32),
    )
    module = FakeQuantized(model.ir, {"cw": CodeRule(-4, 3)})
    parameters = dict(module.named_parameters())
    kinds = sorted(name.split("_")[0] for name in parameters)
    assert kinds == ["bias", "latent", "logarithm", "logarithm"]
    same = module.return_codes()
    for name in ("cw", "sw", "cb", "sb", "sx"):
        held, kept = (one.graph.initializers[name].const_value for one in (model.ir, same))
        np.testing.assert_array_equal(held.numpy(), kept.numpy())
    with torch.no_grad():
        for name, parameter in parameters.items():
            if name.startswith("latent"):
                parameter.copy_(torch.tensor([[9.0, -0.4], [-9.0, 1.3]]))
            if name.startswith("logarithm"):  # of the input, and of the weight
                wide = parameter.ndim == 0
                parameter.copy_(torch.tensor(2.0).log() if wide else torch.tensor([0.0, 4.0]).exp())
                if not wide:
                    parameter.copy_(torch.tensor([0.0, np.log(2.0)]))
            if name.startswith("bias"):
                parameter.copy_(torch.tensor([1.1, -3.3]))
    held = module.return_codes().graph.initializers
    found = {name: held[name].const_value.numpy() for name in ("sx", "sw", "cw", "sb", "cb")}
    np.testing.assert_allclose(found["sx"], 1.0, rtol=1e-6)
    np.testing.assert_allclose(found["sw"], [0.25, 1.0], rtol=1e-6)
    np.testing.assert_array_equal(found["cw"], [[3, -2], [-4, 1]])
    np.testing.assert_array_equal(found["sb"], found["sx"] * found["sw"])
    np.testing.assert_array_equal(found["cb"], [4, -3])  # 1.1 / 0.25 and -3.3 / 1


# Whole graphs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("int8",),
        ("int3",),
        ("int8", "int4-a4", "int4-a4", "int8"),
        ("weights-int2",),
        ("int8", "int4", "float32", "weights-int3"),
        ("int8", "weights-sparse0.5-int4", "weights-sparse0.5", "int8"),
    ],
    ids=lambda words: "+".join(words),
)
def test_it_is_nearer_and_the_runtime_gives_what_was_trained(
    bench: Bench, net: Model, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    quantized, recipe = quantize(bench, net, *words)
    modules: list[FakeQuantized] = []
    build = FakeQuantized.__init__

    def watched(self: FakeQuantized, *args: Any, **options: Any) -> None:
        build(self, *args, **options)
        modules.append(self)

    monkeypatch.setattr(FakeQuantized, "__init__", watched)
    found = train(bench, net, quantized, recipe)
    assert found.training is not None
    assert found.training.after <= found.training.before
    fresh = {"x": pictures(200, seed=9)}
    want = bench.run(net, fresh)[0]
    outputs = [bench.run(bench.save(graph), fresh)[0] for graph in (quantized, found.model)]
    before, after = (snr_db(want, one) for one in outputs)
    if words != ("int8",):  # of which little is left to gain
        assert found.training.better and after > before + 0.3
    (module,) = modules
    with torch.no_grad():
        mine = module.run({"x": torch.from_numpy(fresh["x"])})["y"].numpy()
    # A tie may be rounded to the other side: what is left is far below what rounding costs.
    if found.training.better:
        assert snr_db(mine, outputs[1]) > after + 15
    check_codes(found.model, quantized, recipe, net)


def check_codes(tuned: ir.Model, quantized: ir.Model, recipe: Recipe, net: Model) -> None:
    """Ranges, pairs, and zeros that were asked for."""
    layers = {layer.name: layer for layer in find_layers(net.ir)}
    rules = find_rules(quantized, recipe, list(layers.values()))
    for name, rule in rules.items():
        old, new = (
            one.graph.initializers[name].const_value.numpy().astype(int)
            for one in (quantized, tuned)
        )
        assert new.min() >= rule.low and new.max() <= rule.high
        if rule.sparse:
            assert not new[old == 0].any() and new[old != 0].any()
        if rule.pair_limit is not None:
            layer = next(one for one in layers.values() if name.startswith(str(one.weight.name)))
            matrix = new.T if layer.kind == "Gemm" else new.reshape(len(new), -1)
            matrix = matrix[:, kernel_order(layer)]
            even = matrix.shape[1] // 2 * 2
            first, second = matrix[:, 0:even:2], matrix[:, 1:even:2]
            assert (np.abs(first + second)[first * second > 0] <= PAIR_LIMIT).all()


def test_the_same_seed_gives_the_same_bytes(bench: Bench, net: Model) -> None:
    quantized, recipe = quantize(bench, net, "weights-int2")
    paths = [
        bench.save(train(bench, net, quantized, recipe, steps=24, seed=seed).model)
        for seed in (0, 0, 1)
    ]
    assert paths[0].read_bytes() == paths[1].read_bytes() != paths[2].read_bytes()


def test_an_interrupted_run_goes_on_to_the_same_end(
    bench: Bench, net: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantized, recipe = quantize(bench, net, "int4-a4")
    whole = train(bench, net, quantized, recipe, steps=24)
    kept = tmp_path / "sub" / "state.npz"
    step = training._Training.step

    def interrupted(self: Any, number: int, share: float) -> float:
        if number == 13:
            raise KeyboardInterrupt
        return step(self, number, share)

    monkeypatch.setattr(training._Training, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(bench, net, quantized, recipe, steps=24, checkpoint=kept)
    monkeypatch.setattr(training._Training, "step", step)
    resumed = train(bench, net, quantized, recipe, steps=24, checkpoint=kept)
    assert resumed.training is not None
    assert any("tuning went on from step 12" in note for note in resumed.training.notes)
    first, second = bench.save(whole.model), bench.save(resumed.model)
    assert first.read_bytes() == second.read_bytes()
    other, recipe = quantize(bench, net, "int3")  # another graph: the file is not taken
    stranger = train(bench, net, other, recipe, steps=24, checkpoint=kept)
    assert stranger.training is not None
    assert not any("went on" in note for note in stranger.training.notes)


def test_ruin_leaves_the_graph_as_it_was(bench: Bench, net: Model) -> None:
    quantized, recipe = quantize(bench, net, "int4")
    found = train(bench, net, quantized, recipe, rate=1e4, steps=12)
    assert found.training is not None and found.training.notes
    if not found.training.better:
        assert bench.save(found.model).read_bytes() == bench.save(quantized).read_bytes()


def test_what_keeps_its_codes_is_said(bench: Bench, net: Model) -> None:
    quantized, recipe = quantize(bench, net, "weights-nf4", "int4", "weights-shared3", "float32")
    found = train(bench, net, quantized, recipe, steps=12)
    (note,) = found.notes
    assert "weights-nf4, weights-shared3" in note and "2 layers" in note
    for name, value in quantized.graph.initializers.items():
        if name.startswith(("w0", "w2")):
            new = found.model.graph.initializers[name].const_value
            np.testing.assert_array_equal(new.numpy(), value.const_value.numpy())


def test_nothing_to_tune_is_said(bench: Bench, net: Model) -> None:
    plain = load_model(bench.save(net.ir))
    found = train(bench, net, plain.ir, Recipe(layers=(("stem", "float32"),)))
    assert found.training is None and found.notes == ("there was nothing to tune",)


def test_an_operator_that_is_not_known_is_named(bench: Bench, net: Model) -> None:
    quantized, recipe = quantize(bench, net, "int4")
    next(node for node in quantized.graph if node.op_type == "Flatten").op_type = "Sparkle"
    with pytest.raises(UnsupportedOperator, match="Sparkle"):
        train(bench, net, quantized, recipe)
