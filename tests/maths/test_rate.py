from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packlight.maths.entropy import ideal_bits
from packlight.maths.rate import LARGEST, RateRounded, round_to_rate, round_with_rate
from packlight.maths.rounding import output_error

SMOOTHING = 0.5


def problem(seed: int, outputs: int = 24, inputs: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """A Laplace weight and correlated second moments, as rectified activations have them."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((inputs, inputs)) + 2 * rng.standard_normal((1, inputs))
    rows = np.maximum(rng.standard_normal((40 * inputs, inputs)) @ mix, 0)
    return rng.laplace(size=(outputs, inputs)), rows.T @ rows / len(rows) / inputs


def values(found: RateRounded) -> np.ndarray:
    return np.asarray(found.codes) * found.scale


def cost(w: np.ndarray, h: np.ndarray, codes: np.ndarray, step: float, price: float) -> float:
    return output_error(w, codes * step, h) + price * ideal_bits(codes)


def plain(w: np.ndarray, h: np.ndarray, bits: float) -> float:
    """Error of rounding to nearest, all at one step, with that many bits a weight."""
    low, high = 1e-3, 100.0
    for _ in range(60):
        step = math.sqrt(low * high)
        codes = np.rint(w / step)
        low, high = (step, high) if ideal_bits(codes) > bits * w.size else (low, step)
    return output_error(w, np.rint(w / high) * high, h)


@pytest.mark.parametrize("price", [0.0, 0.01, 0.3, 3.0, 100.0])
def test_without_correlation_each_code_is_the_cheapest_of_all(price: float) -> None:
    # Where inputs are alike and independent the final counts alone say which code is best.
    w = np.random.default_rng(0).laplace(size=(40, 50)) * 2
    found = round_with_rate(w, None, 1.0, price, damping=0.0, sweeps=60)
    codes = np.asarray(found.codes)
    known, counts = np.unique(codes, return_counts=True)
    used = dict(zip(known.tolist(), counts.tolist(), strict=True))
    reach = 2 + max(map(abs, used)) * 5 // 4
    every = {k: used.get(k, 0) + SMOOTHING * 0.7 ** abs(k) for k in range(-reach, reach + 1)}
    total = sum(every.values())
    for weight, code in zip(w.ravel(), codes.ravel(), strict=True):
        paid = {k: (k - weight) ** 2 + price * math.log2(total / n) for k, n in every.items()}
        assert paid[code] <= min(paid.values()) + 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_small_problems_are_solved_nearly_as_well_as_by_trying_everything(seed: int) -> None:
    # Eight correlated inputs, codes -1, 0 and 1: all 6561 rows are tried against fixed counts.
    _, h = problem(seed, inputs=8)
    w = np.random.default_rng(seed).uniform(-0.8, 0.8, (80, 8))
    step, price = 0.6, 0.1 * 0.36 * float(np.mean(np.diag(h)))
    found = round_with_rate(w, h, step, price, damping=0.0, sweeps=30)
    codes = np.asarray(found.codes)
    small = np.abs(codes).max(axis=1) <= 1
    assert small.mean() > 0.6
    rows = np.array(list(product((-1, 0, 1), repeat=8)), float)
    share = {k: (np.count_nonzero(codes == k) + 0.5) / codes.size for k in (-1, 0, 1)}
    bits = -np.log2([[share[int(k)] for k in row] for row in rows]).sum(axis=1)
    best = ours = 0.0
    for weight, row in zip(w[small], codes[small], strict=True):
        off = weight - rows * step
        best += float((np.einsum("ij,jk,ik->i", off, h, off) + price * bits).min())
        rest = weight - row * step
        paid = sum(-math.log2(share[int(k)]) for k in row)
        ours += float(rest @ h @ rest) + price * paid
    assert ours <= 1.15 * best


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), bits=st.floats(0.3, 4.0))
def test_the_rate_is_met_and_beats_rounding_to_nearest(seed: int, bits: float) -> None:
    w, h = problem(seed)
    found = round_to_rate(w, h, bits=bits)
    assert found.bits == pytest.approx(bits, rel=0.12)
    assert found.bits == pytest.approx(ideal_bits(found.codes) / w.size)
    assert found.error == pytest.approx(output_error(w, values(found), h), rel=1e-9)
    # Correlation, and a price on bits, are each worth more than a tenth.
    assert found.error < 0.9 * plain(w, h, found.bits)


@pytest.mark.parametrize("bits", [0.4, 1.0, 2.5])
def test_a_rising_price_beats_the_full_price_at_once(
    bits: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    w, h = problem(5, 48, 64)
    gained = round_to_rate(w, h, bits=bits)
    monkeypatch.setattr("packlight.maths.rate._RISE", ((1.0, 2),))
    at_once = round_to_rate(w, h, bits=bits)
    assert gained.error < at_once.error


@pytest.mark.parametrize("price", [0.01, 0.1])
def test_more_sweeps_do_not_cost_more(price: float) -> None:
    w, h = problem(2)
    costs = [
        cost(w, h, np.asarray(round_with_rate(w, h, 0.7, price, sweeps=n).codes), 0.7, price)
        for n in (0, 2, 12)
    ]
    assert costs[0] > costs[1] and costs[2] <= 1.01 * costs[1]


def test_higher_prices_take_fewer_bits_and_more_error() -> None:
    w, h = problem(1)
    found = [round_with_rate(w, h, 0.5, price) for price in (0.0, 0.02, 0.1, 0.5)]
    assert [one.bits for one in found] == sorted((one.bits for one in found), reverse=True)
    assert [one.error for one in found] == sorted(one.error for one in found)


def test_a_large_layer_is_searched_by_some_of_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    w, h = problem(3, 400, 32)
    monkeypatch.setattr("packlight.maths.rate._SAMPLE", 1024)
    found = round_to_rate(w, h, bits=1.0)
    assert found.bits == pytest.approx(1.0, rel=0.05)
    whole = round_with_rate(w, h, found.scale, 0.1 * found.scale**2 * 1.03 * np.diag(h).mean())
    np.testing.assert_array_equal(found.codes, whole.codes)


def test_dead_inputs_get_zeros_and_singular_moments_are_fine() -> None:
    rng = np.random.default_rng(4)
    rows = rng.standard_normal((5, 16))  # fewer rows than inputs
    rows[:, 3] = rows[:, 9] = 0
    w = rng.standard_normal((6, 16))
    found = round_to_rate(w, rows.T @ rows / 5, bits=1.0)
    codes = np.asarray(found.codes)
    assert not codes[:, [3, 9]].any() and codes.any()


def test_single_precision_finds_nearly_the_same() -> None:
    w, h = problem(6)
    wide = round_with_rate(w, h, 0.4, 0.02, precision="float64")
    narrow = round_with_rate(w.astype(np.float32), h, 0.4, 0.02, precision="float32")
    assert narrow.error + 0.02 * narrow.bits * w.size == pytest.approx(
        wide.error + 0.02 * wide.bits * w.size, rel=0.02
    )


def test_golden_codes() -> None:
    weight = np.array([[0.9, -0.2, 0.1, 2.1], [0.3, -1.1, 0.45, -0.6], [-0.1, 0.2, 1.6, 0.05]])
    moments = np.array(
        [[1.0, 0.5, 0.2, 0.1], [0.5, 1.0, 0.5, 0.2], [0.2, 0.5, 1.0, 0.5], [0.1, 0.2, 0.5, 1.0]]
    )
    found = round_with_rate(weight, moments, 0.5, 0.0)
    assert np.asarray(found.codes).tolist() == GOLDEN_FREE
    found = round_with_rate(weight, moments, 0.5, 0.12)
    assert np.asarray(found.codes).tolist() == GOLDEN_PRICED


# In halves; at a price, what was 1 and -1 gives way to 0.
GOLDEN_FREE = [[2, 0, 0, 4], [0, -2, 1, -1], [0, 0, 3, 0]]
GOLDEN_PRICED = [[2, 0, 0, 4], [0, -2, 0, 0], [0, 0, 3, 0]]


def test_torch_gives_the_same() -> None:
    torch = pytest.importorskip("torch")
    w, h = problem(7)
    ours = round_with_rate(w, h, 0.5, 0.03)
    theirs = round_with_rate(torch.from_numpy(w), torch.from_numpy(h), 0.5, 0.03)
    np.testing.assert_array_equal(ours.codes, theirs.codes.numpy())


def test_codes_fit_in_bytes_and_zeros_stay_zeros() -> None:
    w, h = problem(8)
    w[0, 0] = 1e4
    assert np.abs(np.asarray(round_with_rate(w, h, 0.1, 0.0).codes)).max() <= LARGEST
    empty = round_to_rate(np.zeros((3, 32)), h, bits=1.0)
    assert not np.asarray(empty.codes).any() and empty.bits == 0


def test_what_cannot_be_is_refused() -> None:
    w, h = problem(0)
    with pytest.raises(ValueError, match="above 0, not 0"):
        round_to_rate(w, h, bits=0)
    h[0, 0] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        round_to_rate(w, h, bits=1)
