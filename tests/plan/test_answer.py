"""Bits first; channels go too where those do not reach the budget, or where speed is wished for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graph_bench import build_model, gemm_weights
from numpy.typing import NDArray

import packlight
from packlight.plan import search, thinning
from packlight.plan.answer import LEAST_SHARE, _next_share
from packlight.plan.thinning import parse_share

NET = """g (float[n,16] x) => (float[n,6] y) {
    [first] a = Gemm (x, w0, b0) r = Relu(a)
    [second] b = Gemm (r, w1, b1) s = Relu(b)
    [third] y = Gemm (s, w2, b2) }"""


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Most of the first layer's channels say next to nothing."""
    weights = gemm_weights(np.random.default_rng(2), ((16, 192), (192, 64), (64, 6)))
    weights["w1"][16:] *= 0.001
    return build_model(tmp_path_factory.mktemp("net") / "net.onnx", NET, weights).source


@pytest.fixture(autouse=True)
def few(steady: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels alone, and few choices: no clock decides."""
    monkeypatch.setattr(thinning, "measure_ranks", lambda *_, **__: {})
    monkeypatch.setattr(search, "candidate_words", lambda wish: ("float32", "int8"))
    monkeypatch.setattr(search, "_variants", lambda *_, **__: [])


def rows() -> NDArray[np.float32]:
    return np.random.default_rng(4).standard_normal((600, 16)).astype(np.float32)


def compress(net: Path, **options: Any) -> packlight.Result:
    found = packlight.compress(net, data=rows(), max_drop=0.1, **options)
    assert isinstance(found, packlight.Result)
    return found


def test_channels_go_where_bits_alone_do_not_reach_the_size(net: Path, tmp_path: Path) -> None:
    found = compress(net, max_size="14%")
    assert found.verdict == "met"
    evidence = found.evidence
    assert dict(found.recipe.channels)["first"] <= 96 and evidence.thinning is not None
    (note,) = (note for note in evidence.notes if "weights went too" in note)
    assert note.startswith("bits alone do not reach the budget") and "put aside" not in note
    # All that was tried is there, before and after, and one of it was chosen.
    less = [trial for trial in evidence.trials if "less to multiply" in trial.label]
    assert 0 < len(less) < len(evidence.trials)
    assert [trial for trial in evidence.trials if trial.chosen] == [t for t in less if t.chosen]
    folder = found.save(tmp_path / "out")
    again = packlight.compress(net, data=rows(), recipe=folder / "recipe.yaml", max_size="14%")
    assert isinstance(again, packlight.Result)
    assert again.model.read_bytes() == found.model.read_bytes()


def test_nothing_goes_where_bits_reach_the_budget(net: Path) -> None:
    found = compress(net, max_size="40%")
    assert found.verdict == "met" and not found.recipe.thins
    assert not any("multiply" in note for note in found.evidence.notes)


def test_nothing_goes_where_the_user_says_so(net: Path) -> None:
    assert parse_share("0%") == 0
    found = compress(net, max_size="14%", prune="0%")
    assert found.verdict == "best-effort" and not found.recipe.thins


def test_what_makes_it_no_better_is_put_aside(net: Path) -> None:
    """No file is so small, and what comes nearest loses nearly all answers."""
    found = compress(net, max_size="1%")
    assert found.verdict == "best-effort"
    notes = [note for note in found.evidence.notes if "bits alone" in note]
    assert 1 <= len(notes) <= 2
    assert len([trial for trial in found.evidence.trials if trial.chosen]) == 1


def test_the_fastest_goes_without_what_the_drop_allows(net: Path) -> None:
    plain = compress(net)
    found = compress(net, preset="fastest")
    assert not plain.recipe.thins and found.recipe.thins
    assert found.verdict == "met"
    assert found.evidence.latency_ms.ratio < plain.evidence.latency_ms.ratio


def test_a_model_that_cannot_lose_parts_keeps_what_bits_gave(tmp_path: Path) -> None:
    text = "g (float[n,16] x) => (float[n,6] y) { [only] y = Gemm (x, w0, b0) }"
    weights = gemm_weights(np.random.default_rng(0), ((16, 6),))
    model = build_model(tmp_path / "one.onnx", text, weights)
    found = compress(model.source, max_size="5%")
    assert found.verdict in ("best-effort", "not-worth-it")
    assert any("cannot go too" in note for note in found.evidence.notes)


class _Found:
    """What `_next_share` asks of an answer."""

    def __init__(self, over: float, beyond: float) -> None:
        self.over, self.beyond = over, beyond


@pytest.mark.parametrize(
    ("share", "over", "beyond", "next_share"),
    [
        (0.3, 0.9, 0.0, None),  # the budget is kept
        (0.4, 1.2, 0.2, 0.525),  # still too large: 0.6 * 0.95 / 1.2 are left
        (0.4, 0.9, 0.5, 0.2),  # small enough, but it loses too much
        (LEAST_SHARE, 0.9, 0.5, None),
        (0.7, 3.0, 2.0, None),  # more than may go
        ("auto", 1.0, 0.3, None),
    ],
)
def test_the_next_share_learns_from_the_last(
    share: float, over: float, beyond: float, next_share: float | None
) -> None:
    found: Any = _Found(over, beyond)
    expected = None if next_share is None else pytest.approx(next_share)
    assert _next_share(share, found) == expected
