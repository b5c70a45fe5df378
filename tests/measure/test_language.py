from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from packlight.errors import UnusableSamples
from packlight.measure.language import (
    DivergenceSums,
    Piece,
    compare_logits,
    compare_tokens,
)

Floats = NDArray[np.float32]


def draw(seed: int, *shape: int, scale: float = 3.0) -> Floats:
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def slow_kl(p_logits: Floats, q_logits: Floats) -> float:
    """KL by its definition, one token after another, with exact sums."""
    p = [math.exp(float(value)) for value in p_logits]
    q = [math.exp(float(value)) for value in q_logits]
    p_sum, q_sum = math.fsum(p), math.fsum(q)
    return math.fsum(
        a / p_sum * (math.log(a / p_sum) - math.log(b / q_sum)) for a, b in zip(p, q, strict=True)
    )


def test_figures_of_tokens_equal_their_definitions() -> None:
    first, second = draw(0, 7, 50), draw(1, 7, 50)
    targets = np.random.default_rng(2).integers(0, 50, 7)
    found = compare_tokens(first, second, targets)
    expected = [slow_kl(a, b) for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(found.kl, expected, rtol=1e-12)
    for surprise, logits in (
        (found.surprise_original, first),
        (found.surprise_compressed, second),
    ):
        shares = np.exp(logits.astype(np.float64))
        shares /= shares.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(surprise, -np.log(shares[np.arange(7), targets]), rtol=1e-12)
    assert found.agrees.tolist() == [
        a.argmax() == b.argmax() for a, b in zip(first, second, strict=True)
    ]


def test_a_golden_pair() -> None:
    """P = (1/2, 1/4, 1/4) and q = (1/4, 1/2, 1/4): KL = ln 2 / 4."""
    p, q = (np.log(np.array([values])) for values in ((0.5, 0.25, 0.25), (0.25, 0.5, 0.25)))
    found = compare_tokens(p + 7.0, q - 3.0, np.array([0]))
    assert found.kl[0] == pytest.approx(math.log(2) / 4, rel=1e-12)
    assert found.surprise_original[0] == pytest.approx(math.log(2), rel=1e-12)
    assert found.surprise_compressed[0] == pytest.approx(math.log(4), rel=1e-12)
    assert not found.agrees[0]


def test_a_tiny_difference_is_told_exactly() -> None:
    """Around q = p KL is d^2 / 8 for two even outcomes; the plain sum would be all noise."""
    off = Fraction(1, 2**30)
    p, q = np.zeros((1, 2)), np.array([[0.0, float(off)]])
    found = compare_tokens(p, q, np.array([0]))
    assert found.kl[0] == pytest.approx(float(off) ** 2 / 8, rel=1e-6)
    log_p, log_q = (x - np.log(np.exp(x).sum()) for x in (p, q))
    plain = float((np.exp(log_p) * (log_p - log_q)).sum())
    assert abs(plain - float(off) ** 2 / 8) > 1e-2 * float(off) ** 2 / 8


def test_far_logits_neither_overflow_nor_vanish() -> None:
    p = np.array([[0.0, -900.0, 0.0]], np.float32)
    q = np.array([[0.0, 900.0, 0.0]], np.float32)
    found = compare_tokens(p, q, np.array([1]))
    assert found.kl[0] == pytest.approx(900 - math.log(2), rel=1e-6)
    assert found.surprise_original[0] == pytest.approx(900 + math.log(2), rel=1e-6)
    assert found.surprise_compressed[0] == 0
    assert compare_tokens(q, p, np.array([1])).kl[0] == pytest.approx(900 + math.log(2), rel=1e-6)


@given(st.integers(0, 10_000), st.floats(0.0, 30.0), st.floats(-1e3, 1e3))
def test_kl_is_never_negative_and_blind_to_shifts(seed: int, scale: float, shift: float) -> None:
    first, second = draw(seed, 3, 40, scale=scale), draw(seed + 1, 3, 40, scale=scale)
    targets = np.zeros(3, np.int64)
    found = compare_tokens(first, second, targets)
    assert (found.kl >= 0).all()
    shifted = compare_tokens(first.astype(np.float64) + shift, second, targets)
    np.testing.assert_allclose(shifted.kl, found.kl, rtol=1e-6, atol=1e-12)
    same = compare_tokens(first, first, targets)
    assert not same.kl.any()
    assert same.agrees.all()


def test_blocks_of_a_large_vocabulary_change_nothing() -> None:
    words = (1 << 20) // 3
    first, second = draw(0, 7, words), draw(1, 7, words)
    targets = np.arange(7)
    whole = compare_tokens(first, second, targets)
    alone = [
        compare_tokens(first[k : k + 1], second[k : k + 1], targets[k : k + 1]).kl[0]
        for k in range(7)
    ]
    np.testing.assert_array_equal(whole.kl, alone)


@pytest.mark.parametrize(
    ("original", "compressed", "targets", "words"),
    [
        (np.zeros((2, 3)), np.zeros((2, 4)), [0, 0], "do not compare"),
        (np.zeros((0, 3)), np.zeros((0, 3)), [], "do not compare"),
        (np.zeros((2, 3)), np.zeros((2, 3)), [0], "need a token below 3"),
        (np.zeros((2, 3)), np.zeros((2, 3)), [0, 3], "need a token below 3"),
        (np.zeros((1, 2)), np.array([[0.0, np.nan]]), [0], "not finite"),
        (np.array([[0.0, -np.inf]]), np.zeros((1, 2)), [0], "not finite"),
    ],
)
def test_what_does_not_compare_is_refused(
    original: NDArray[np.float64], compressed: NDArray[np.float64], targets: list[int], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        compare_tokens(original, compressed, np.array(targets, np.int64))


def pieces(windows: int, length: int, *, noise: float, seed: int = 0) -> list[Piece]:
    """Two streams, each window with noise of a size of its own."""
    found = []
    rng = np.random.default_rng(seed)
    for window in range(windows):
        original = draw(1000 * seed + window, length, 30)
        compressed = original + noise * rng.uniform(0, 2) * rng.standard_normal(original.shape)
        targets = rng.integers(0, 30, length)
        found.append(Piece(window, original, compressed.astype(np.float32), targets))
    return found


def test_a_divergence_is_the_mean_over_all_tokens() -> None:
    parts = pieces(12, 20, noise=0.5)
    found = compare_logits(parts)
    figures = [compare_tokens(p.original, p.compressed, p.targets) for p in parts]
    kl = np.concatenate([one.kl for one in figures])
    assert (found.tokens, found.windows) == (240, 12)
    assert found.mean_kl == pytest.approx(kl.mean(), rel=1e-12)
    assert found.p99_kl == pytest.approx(np.quantile(kl, 0.99), rel=1e-6)
    agrees = np.concatenate([one.agrees for one in figures])
    assert found.top_agreement == pytest.approx(agrees.mean())
    first = np.concatenate([one.surprise_original for one in figures])
    second = np.concatenate([one.surprise_compressed for one in figures])
    assert found.perplexity_original == pytest.approx(np.exp(first.mean()))
    assert found.perplexity_compressed == pytest.approx(np.exp(second.mean()))
    assert found.perplexity_ratio == pytest.approx(np.exp((second - first).mean()))
    for value, (low, high) in (
        (found.mean_kl, found.mean_kl_interval_95),
        (found.top_agreement, found.top_agreement_interval_95),
        (found.perplexity_ratio, found.perplexity_ratio_interval_95),
    ):
        assert low < value < high


def test_how_windows_are_cut_into_pieces_does_not_matter() -> None:
    whole = pieces(5, 20, noise=0.3)
    cut = [
        Piece(p.window, p.original[k:j], p.compressed[k:j], p.targets[k:j])
        for p in whole
        for k, j in ((0, 7), (7, 8), (8, 20))
    ]
    assert compare_logits(cut).mean_kl == pytest.approx(compare_logits(whole).mean_kl, rel=1e-12)
    assert compare_logits(cut).p99_kl == compare_logits(whole).p99_kl
    first, second = compare_logits(cut), compare_logits(whole)
    assert first.mean_kl_interval_95 == pytest.approx(second.mean_kl_interval_95, rel=1e-9)


def test_pieces_of_many_files_may_come_in_turns() -> None:
    ours, theirs = pieces(4, 9, noise=0.1), pieces(4, 9, noise=0.4)
    sums = [DivergenceSums(), DivergenceSums()]
    for pair in zip(ours, theirs, strict=True):
        for total, piece in zip(sums, pair, strict=True):
            total.add(piece)
    assert sums[0].divergence() == compare_logits(ours)
    assert sums[1].divergence() == compare_logits(theirs)


def test_the_interval_holds_the_truth_though_tokens_of_a_window_go_together() -> None:
    """Windows differ far more than tokens: an interval over single tokens misses the mean."""
    truth = compare_logits(pieces(1500, 20, noise=0.5, seed=99), resamples=10).mean_kl
    held = held_by_tokens = 0
    for seed in range(60):
        parts = pieces(25, 20, noise=0.5, seed=seed)
        low, high = compare_logits(parts, resamples=300).mean_kl_interval_95
        held += low <= truth <= high
        kl = np.concatenate([compare_tokens(p.original, p.compressed, p.targets).kl for p in parts])
        off = 1.96 * kl.std() / math.sqrt(len(kl))
        held_by_tokens += abs(kl.mean() - truth) <= off
    assert held >= 53
    assert held_by_tokens < 45


def test_equal_models_are_equal_but_not_proven_to_agree_for_ever() -> None:
    parts = [Piece(p.window, p.original, p.original, p.targets) for p in pieces(3, 10, noise=0.0)]
    found = compare_logits(parts)
    assert found.mean_kl == found.p99_kl == 0
    assert found.mean_kl_interval_95 == (0, 0)
    assert found.perplexity_ratio == 1
    assert found.top_agreement == 1
    assert found.top_agreement_interval_95[0] < 0.95


def test_one_window_allows_no_interval() -> None:
    found = compare_logits(pieces(1, 10, noise=0.3))
    assert found.mean_kl_interval_95 == (0.0, math.inf)
    assert found.perplexity_ratio_interval_95 == (0.0, math.inf)
    assert found.top_agreement_interval_95 == (0.0, 1.0)


def test_the_same_seed_gives_the_same_interval() -> None:
    parts = pieces(8, 10, noise=0.3)
    assert compare_logits(parts) == compare_logits(parts)
    assert compare_logits(parts, seed=1) != compare_logits(parts)


def test_no_text_is_said_so() -> None:
    with pytest.raises(UnusableSamples, match="no text to compare"):
        compare_logits([])
