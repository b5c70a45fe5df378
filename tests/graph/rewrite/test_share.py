"""Constants that are nearly the same are stored once, and notes say by how much they differed."""

from __future__ import annotations

import numpy as np
import pytest
from graph_bench import Bench, snr_db
from layer_kinds import normal

from packlight.errors import WrongUsage
from packlight.graph.rewrite.share import share_similar
from packlight.graph.rewrite.simplify import NEARLY_EQUAL, simplify

TEXT = """g (float[n,24] x) => (float[n,24] y) {
    a = MatMul(x, w1)
    b = Relu(a)
    c = MatMul(b, w2)
    d = Relu(c)
    y = MatMul(d, w3)
}"""


def test_rounding_noise_is_stored_once(bench: Bench) -> None:
    w1 = normal(24, 24)
    w2, w3 = w1 * (1 + 1e-7 * normal(24, 24)), w1 * 1.001
    model = bench.model(TEXT, w1=w1, w2=w2.astype(np.float32), w3=w3.astype(np.float32))
    data = {"x": normal(30, 24)}
    notes = share_similar(model.ir)
    assert list(notes) == ["w2"] and "read from w1" in notes["w2"]
    path = bench.save(model.ir)
    assert set(model.ir.graph.initializers) == {"w1", "w3"}
    assert snr_db(bench.run(model, data)[0], bench.run(path, data)[0]) > 100
    notes = share_similar(model.ir, tolerance=0.002)
    assert list(notes) == ["w3"] and set(model.ir.graph.initializers) == {"w1"}
    largest = float(np.abs(w1 * np.float32(0.001)).max())
    assert float(notes["w3"].split()[-1]) == pytest.approx(largest, rel=0.01)


def test_what_is_small_or_of_another_shape_stays(bench: Bench) -> None:
    text = (
        "g (float[n,24] x) => (float[n,24] y) { a = MatMul(x, w)\n b = Add(a, p)\n y = Add(b, q) }"
    )
    model = bench.model(
        text, w=normal(24, 24), p=np.ones(24, np.float32), q=np.ones(24, np.float32)
    )
    assert share_similar(model.ir) == {}
    with pytest.raises(WrongUsage, match="differ by at most"):
        share_similar(model.ir, tolerance=0.5)


@pytest.mark.parametrize("lowest", [-3e38, -np.inf])
def test_masks_that_say_other_things_stay_apart(bench: Bench, lowest: float) -> None:
    """Beside the lowest float any other value is small."""
    mask = np.where(np.tri(24, dtype=bool), 0, lowest).astype(np.float32)
    other = mask + np.float32(np.eye(24))
    text = "g (float[24,24] x) => (float[24,24] y) { a = Max(x, m)\n b = Relu(a)\n y = Max(b, o) }"
    model = bench.model(text, m=mask, o=other)
    assert share_similar(model.ir) == {}


def test_simplifying_makes_the_file_smaller_and_the_outputs_hold(bench: Bench) -> None:
    w1 = normal(24, 24)
    model = bench.model(TEXT, w1=w1, w2=(w1 * np.float32(1 + 4e-7)), w3=w1 * np.float32(1.001))
    data = {"x": normal(30, 24)}
    graph, steps = simplify(model.ir, check=None)
    (step,) = [one for one in steps if one.name == NEARLY_EQUAL and one.changed]
    assert step.kept and step.bytes_before - step.bytes_after == w1.nbytes
    path = bench.save(graph)
    assert path.stat().st_size < model.source.stat().st_size - 0.9 * w1.nbytes
    assert snr_db(bench.run(model, data)[0], bench.run(path, data)[0]) > 100
    refused, steps = simplify(model.ir, check=lambda _: False)
    assert len(refused.graph.initializers) == 3  # what changes the outputs is undone
