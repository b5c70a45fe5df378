"""Healing: nearer to the original, the same twice, resumed, and never worse than before."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graph_bench import Bench, snr_db
from residual import pictures, residual_net

torch = pytest.importorskip("torch")

from packlight.errors import WrongUsage  # noqa: E402
from packlight.graph.layers import find_layers  # noqa: E402
from packlight.graph.model import Model  # noqa: E402
from packlight.graph.rewrite.prune import remove_channels  # noqa: E402
from packlight.graph.torch import distill as healing  # noqa: E402
from packlight.graph.torch.distill import Distilled, Lessons  # noqa: E402
from packlight.graph.torch.heal import heal  # noqa: E402
from packlight.graph.torch.hints import find_hints  # noqa: E402
from packlight.graph.torch.vary import vary  # noqa: E402
from packlight.samples import open_samples  # noqa: E402


@pytest.fixture
def net(bench: Bench) -> Model:
    return residual_net(bench)


@dataclass(frozen=True)
class Run:
    """A healed graph and how it came about, in one."""

    model: Any
    training: Distilled

    def __getattr__(self, name: str) -> Any:
        return getattr(self.training, name)


def run(bench: Bench, net: Model, *, count: int = 256, **options: Any) -> tuple[Any, Run]:
    student = remove_channels(net.ir, {"one": [1, 4, 5, 8, 10]})
    samples = open_samples({"x": pictures(count)}, net.inputs)
    options = {"steps": 60, "rate": 5e-3, "batch": 32, **options}
    lessons = Lessons(samples, range(count), net.inputs, bench.process, **options)
    found = heal(net.ir, student, lessons)
    return student, Run(found.model, found.training)


def test_it_comes_nearer_to_the_original(bench: Bench, net: Model) -> None:
    student, found = run(bench, net)
    fresh = {"x": pictures(200, seed=9)}
    want = bench.run(net, fresh)[0]
    before, after = (
        snr_db(want, bench.run(bench.save(graph), fresh)[0]) for graph in (student, found.model)
    )
    assert after > before + 3
    assert found.after < 0.6 * found.before and found.steps == found.planned == 60
    shapes = [[layer.weight_shape for layer in find_layers(g)] for g in (student, found.model)]
    assert shapes[0] == shapes[1]


def test_the_same_seed_gives_the_same_bytes(bench: Bench, net: Model) -> None:
    paths = [bench.save(run(bench, net, steps=8)[1].model) for _ in range(2)]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    other = bench.save(run(bench, net, steps=8, seed=1)[1].model)
    assert other.read_bytes() != paths[0].read_bytes()


def test_an_interrupted_run_goes_on_to_the_same_end(
    bench: Bench, net: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, whole = run(bench, net, steps=24)
    kept = tmp_path / "state.npz"
    step = healing._Training.step

    def interrupted(self: Any, number: int, share: float) -> float:
        if number == 13:
            raise KeyboardInterrupt
        return step(self, number, share)

    monkeypatch.setattr(healing._Training, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(bench, net, steps=24, checkpoint=kept)
    monkeypatch.setattr(healing._Training, "step", step)
    _, resumed = run(bench, net, steps=24, checkpoint=kept)
    assert any("went on from step 12" in note for note in resumed.notes)
    first, second = bench.save(whole.model), bench.save(resumed.model)
    assert first.read_bytes() == second.read_bytes()
    # Of other settings, or damaged, it is not taken.
    _, other = run(bench, net, steps=20, checkpoint=kept)
    assert not any("went on" in note for note in other.notes)
    kept.write_bytes(b"no archive")
    damaged = run(bench, net, steps=4, checkpoint=kept)[1].notes
    assert not any("went on" in note for note in damaged)


@pytest.mark.parametrize("rate", [1e4, 3.0])
def test_ruin_goes_back_to_the_best_state_and_says_so(
    bench: Bench, net: Model, rate: float
) -> None:
    student, found = run(bench, net, rate=rate, steps=40)
    assert found.after <= found.before
    if found.after == found.before:
        assert any("left as it was" in note for note in found.notes)
        paths = [bench.save(graph) for graph in (student, found.model)]
        assert paths[0].read_bytes() == paths[1].read_bytes()
    assert found.notes


def test_minutes_become_steps(bench: Bench, net: Model) -> None:
    _, found = run(bench, net, steps=None, minutes=0.02)
    assert found.planned >= 1


def test_what_cannot_be_asked(bench: Bench, net: Model) -> None:
    with pytest.raises(WrongUsage, match="either a number of steps, or minutes"):
        run(bench, net, steps=None)
    with pytest.raises(WrongUsage, match="too few"):
        run(bench, net, count=6)


def test_hints_are_sums_of_the_same_shape(net: Model) -> None:
    student = remove_channels(net.ir, {"one": [0, 1]})
    assert find_hints(net.ir, student) == ("t",)
    narrow = remove_channels(net.ir, {"stem": [0]})
    assert "t" not in find_hints(net.ir, narrow)


def test_variations_keep_what_a_picture_is() -> None:
    given = {"x": pictures(64)}
    held = given["x"].copy()
    found = vary(given, np.random.default_rng(3))["x"]
    np.testing.assert_array_equal(given["x"], held)
    assert found.shape == held.shape and found.dtype == held.dtype
    assert not np.array_equal(found, held)
    for picture, own in zip(found, held, strict=True):
        assert np.isin(picture, own).all()  # mirrored and shifted, nothing else


def test_inputs_that_are_no_floats_are_left_alone() -> None:
    given = {"ids": np.arange(12).reshape(4, 3), "x": np.ones((4, 2), np.float32)}
    found = vary(given, np.random.default_rng(3))
    assert all(np.array_equal(found[name], given[name]) for name in given)


def test_pictures_with_channels_last_are_varied_likewise() -> None:
    given = pictures(16)
    first = vary({"x": given}, np.random.default_rng(3))["x"]
    last = vary({"x": np.ascontiguousarray(given.transpose(0, 2, 3, 1))}, np.random.default_rng(3))
    np.testing.assert_array_equal(last["x"].transpose(0, 3, 1, 2), first)


def test_one_sample_at_a_time_trains_as_many_at_once_do(bench: Bench) -> None:
    """A graph whose batch is fixed at 1 sees all samples of a step, not the first alone."""
    random = np.random.default_rng(8)
    weights = {
        name: (random.standard_normal(shape) / 3).astype(np.float32)
        for name, shape in (("w0", (9, 16)), ("b0", (16,)), ("w1", (16, 4)), ("b1", (4,)))
    }
    rows = random.standard_normal((120, 9)).astype(np.float32)
    found = []
    for size in ("n", "1"):
        net = bench.model(
            f"""g (float[{size},9] x) => (float[{size},4] y) {{
                [one] a = Gemm (x, w0, b0) r = Relu(a)
                [two] y = Gemm (r, w1, b1) }}""",
            **weights,
        )
        student = remove_channels(net.ir, {"one": [2, 3, 7, 11]})
        samples = open_samples({"x": rows}, net.inputs)
        lessons = Lessons(
            samples, range(120), net.inputs, bench.process, steps=12, batch=8, rate=5e-3
        )
        found.append(heal(net.ir, student, lessons))
    several, single = found
    assert several.training.before == pytest.approx(single.training.before, rel=1e-4)
    assert several.training.after == pytest.approx(single.training.after, rel=1e-2)
    for one, other in zip(find_layers(several.model), find_layers(single.model), strict=True):
        np.testing.assert_allclose(
            one.weight.const_value.numpy(), other.weight.const_value.numpy(), atol=2e-3
        )


def test_steps_of_fewer_samples_are_smaller(
    bench: Bench, net: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = {}
    make = healing._Training.__init__

    def noted(self: Any, pupil: Any, rate: float, batch: int, *rest: Any) -> None:
        rates[batch] = rate
        make(self, pupil, rate, batch, *rest)

    monkeypatch.setattr(healing._Training, "__init__", noted)
    for batch in (4, 16, 64, 128):
        run(bench, net, steps=1, rate=None, batch=batch)
    assert rates[16] == pytest.approx(2 * rates[4], rel=0.05)
    assert rates[64] == pytest.approx(2 * rates[16], rel=0.05)
    assert rates[128] == pytest.approx(rates[64], rel=0.05)


def test_a_model_that_multiplies_a_lot_takes_fewer_samples_a_step(
    bench: Bench, net: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    feeds = healing._Training.feeds

    def noted(self: Any, number: int) -> Any:
        runs = feeds(self, number)
        sizes.append([len(run["x"]) for run in runs])
        return runs

    monkeypatch.setattr(healing._Training, "feeds", noted)
    macs = 64 * 9 * (3 * 12 + 12 * 7 + 7 * 12) + 12 * 5  # 5 of the first layer's channels are gone
    for work, batch in ((1e12, 64), (20.5 * macs, 20), (1.0, 8)):
        monkeypatch.setattr(healing, "STEP_WORK", work)
        sizes.clear()
        run(bench, net, steps=1, batch=None)
        assert sizes == [[batch]]
