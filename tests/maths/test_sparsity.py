from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packlight.maths import sparsity
from packlight.maths.grids import IntegerGrid, LevelGrid
from packlight.maths.importance import score_by_activation, score_by_magnitude, score_by_removal
from packlight.maths.rounding import output_error
from packlight.maths.sparsity import (
    Pattern,
    keep_highest,
    prune_with_compensation,
    refit_masked,
)

INT4 = IntegerGrid(4, signed=True, symmetric=True)
HALF = Pattern(share=0.5)
ROWS = Pattern(share=0.4, within="row")
TWO_OF_FOUR = Pattern(keep=2, of=4)


def problem(seed: int, outputs: int = 6, inputs: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """A weight and the second moments of correlated inputs that a ReLU let through."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((inputs, inputs)) + 1.5 * rng.standard_normal((1, inputs))
    rows = np.maximum(rng.standard_normal((40 * inputs, inputs)) @ mix, 0)
    return rng.standard_normal((outputs, inputs)), rows.T @ rows / len(rows)


def damped(h: np.ndarray, damping: float = 0.01) -> np.ndarray:
    return h + damping * np.mean(np.diag(h)) * np.eye(len(h))


def prune_slowly(
    weight: np.ndarray,
    h: np.ndarray,
    pattern: Pattern,
    block: int,
    scale: np.ndarray | None = None,
) -> np.ndarray:
    """After each input, re-solve all that are still free by least squares."""
    inputs = len(h)
    free, final = weight.copy(), np.zeros_like(weight)
    kept = np.zeros(weight.shape, bool)
    stretch = pattern.of or block
    for i in range(inputs):
        if i % stretch == 0:
            own = range(i, min(i + stretch, inputs))
            scores = np.stack(
                [free[:, j] ** 2 / np.linalg.inv(h[j:, j:])[0, 0] for j in own], axis=1
            )
            if pattern.of:
                part = pattern
            else:
                size = weight.shape[0] if pattern.within == "layer" else 1
                gone = round(pattern.share * own.stop * size) - round(pattern.share * i * size)
                part = Pattern(share=gone / (len(own) * size), within=pattern.within)
            kept[:, own.start : own.stop] = keep_highest(scores, part)
        value = free[:, i]
        if scale is not None:
            value = np.clip(np.round(value / scale), -7, 7) * scale
        final[:, i] = np.where(kept[:, i], value, 0)
        done, rest = slice(0, i + 1), slice(i + 1, None)
        gone_by = (weight - final)[:, done]
        free[:, rest] = (
            weight[:, rest] + np.linalg.solve(h[rest, rest], h[rest, done] @ gone_by.T).T
        )
    return final


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("pattern", "block"),
    [(HALF, 12), (HALF, 5), (ROWS, 4), (TWO_OF_FOUR, 8), (Pattern(keep=1, of=3), 128)],
    ids=str,
)
@pytest.mark.parametrize("rounded", [False, True])
def test_it_is_what_re_solving_the_free_inputs_gives(
    seed: int, pattern: Pattern, block: int, rounded: bool
) -> None:
    weight, h = problem(seed)
    scale = np.abs(weight).max(axis=1) / 7
    expected = prune_slowly(weight, damped(h), pattern, block, scale if rounded else None)
    grid = {"grid": INT4, "scale": scale} if rounded else {}
    found = prune_with_compensation(weight, h, pattern, block=block, **grid)
    np.testing.assert_allclose(found.weight, expected, atol=1e-10)
    assert found.damping == 0.01 and found.dead_inputs == 0
    if rounded:
        np.testing.assert_allclose(found.codes * scale[:, None], found.weight)
    else:
        assert found.codes is None


@pytest.mark.parametrize("pattern", [HALF, ROWS, TWO_OF_FOUR], ids=str)
@pytest.mark.parametrize(("precision", "near"), [("float64", 1e-9), ("float32", 1e-4)])
def test_the_sum_of_its_steps_is_the_error_at_the_output(
    pattern: Pattern, precision: str, near: float
) -> None:
    weight, h = problem(1, inputs=44)
    found = prune_with_compensation(weight, h, pattern, block=16, precision=precision)
    error = output_error(weight, found.weight, damped(h))
    assert found.error == pytest.approx(error, rel=near)
    # With the Cholesky factor of the inverse, as Frantar and Alistarh write it.
    upper = np.linalg.cholesky(np.linalg.inv(damped(h))).T
    off = (weight - found.weight) @ np.linalg.inv(upper)
    assert np.sum(off**2) == pytest.approx(error, rel=1e-9)
    np.testing.assert_array_equal(found.weight != 0, found.kept)


@pytest.mark.parametrize(("keep", "of"), [(2, 4), (1, 4), (4, 8), (3, 7), (8, 32)])
def test_so_many_of_so_many_are_kept_exactly(keep: int, of: int) -> None:
    weight, h = problem(2, inputs=40)
    pattern = Pattern(keep=keep, of=of)
    plain = keep_highest(score_by_magnitude(weight), pattern)
    found = prune_with_compensation(weight, h, pattern)
    for kept in (plain, found.kept):
        for start in range(0, 40, of):
            group = kept[:, start : start + of]
            assert np.all(group.sum(axis=1) == min(keep, group.shape[1]))


@given(st.integers(0, 1000), st.floats(0, 1), st.sampled_from(["layer", "row"]), st.integers(1, 20))
def test_shares_are_exact(seed: int, share: float, within: str, block: int) -> None:
    weight, h = problem(seed, outputs=3, inputs=10)
    pattern = Pattern(share=share, within=within)
    found = prune_with_compensation(weight, h, pattern, block=block)
    if within == "layer":
        assert np.count_nonzero(~found.kept) == round(share * 30)
    else:
        assert np.all(np.count_nonzero(~found.kept, axis=1) == round(share * 10))
    kept = keep_highest(score_by_magnitude(weight), pattern)
    assert np.count_nonzero(kept) == np.count_nonzero(found.kept)
    assert np.abs(weight)[kept].min(initial=9) >= np.abs(weight)[~kept].max(initial=0) or (
        within == "row"
    )


@pytest.mark.parametrize("pattern", [HALF, ROWS, TWO_OF_FOUR], ids=str)
def test_each_step_of_care_pays(pattern: Pattern) -> None:
    """Magnitude, activations, compensation, and least squares of what is kept."""
    ratios = []
    for seed in range(12):
        weight, h = problem(seed, outputs=16, inputs=32)
        whole = damped(h)
        plain = output_error(
            weight, weight * keep_highest(score_by_magnitude(weight), pattern), whole
        )
        wanda = output_error(
            weight, weight * keep_highest(score_by_activation(weight, h), pattern), whole
        )
        found = prune_with_compensation(weight, h, pattern)
        refit = refit_masked(weight, found.kept, h, start=found.weight)
        mended = output_error(weight, refit, whole)
        assert mended < found.error < plain
        ratios.append((wanda / plain, found.error / plain, mended / plain))
    wanda, compensated, mended = np.mean(ratios, axis=0)
    assert wanda < 1 and compensated < 0.5 and mended < 0.9 * compensated


@pytest.mark.parametrize("kind", ["share", "rows"])
def test_refitting_is_least_squares_of_each_row(kind: str) -> None:
    weight, h = problem(3, outputs=9, inputs=14)
    kept = keep_highest(score_by_magnitude(weight), HALF if kind == "share" else ROWS)
    kept[2, :], kept[5, :] = False, True
    found = refit_masked(weight, kept, h, damping=0.05)
    root = np.linalg.cholesky(damped(h, 0.05)).T
    for row in range(9):
        own = kept[row]
        expected = np.zeros(14)
        expected[own] = np.linalg.lstsq(root[:, own], root @ weight[row], rcond=None)[0]
        np.testing.assert_allclose(found[row], expected, atol=1e-9)
    np.testing.assert_array_equal(found[2], 0)
    np.testing.assert_allclose(found[5], weight[5])


def test_large_layers_get_there_by_conjugate_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, h = problem(4, outputs=9, inputs=24)
    start = prune_with_compensation(weight, h, HALF)
    exact = refit_masked(weight, start.kept, h)
    monkeypatch.setattr(sparsity, "LARGE", 8)
    errors = []
    for steps in (0, 1, 3, 100):
        found = refit_masked(weight, start.kept, h, start=start.weight, steps=steps)
        assert not found[~start.kept].any()
        errors.append(output_error(weight, found, damped(h)))
    assert errors[0] == pytest.approx(start.error)
    assert np.all(np.diff(errors) < 0)
    np.testing.assert_allclose(found, exact, atol=1e-6)


@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(2, 12), st.floats(0.1, 0.9))
def test_refitting_is_never_worse(seed: int, outputs: int, inputs: int, share: float) -> None:
    weight, h = problem(seed, outputs, inputs)
    found = prune_with_compensation(weight, h, Pattern(share=share))
    refit = refit_masked(weight, found.kept, h, start=found.weight)
    before, after = (output_error(weight, v, damped(h)) for v in (found.weight, refit))
    assert after <= before * (1 + 1e-9) + 1e-12
    assert not refit[~found.kept].any()


def test_a_mask_that_is_known_is_kept() -> None:
    weight, h = problem(5)
    kept = keep_highest(score_by_removal(weight, h), HALF)
    found = prune_with_compensation(weight, h, HALF, kept=kept)
    np.testing.assert_array_equal(found.kept, kept)
    assert found.error < output_error(weight, weight * kept, damped(h))


def test_what_never_comes_goes_first() -> None:
    weight, h = problem(6)
    weight[:, 4] = 1e6
    h[4, :] = h[:, 4] = 0
    found = prune_with_compensation(weight, h, Pattern(share=0.25))
    assert found.dead_inputs == 1 and not found.kept[:, 4].any() and found.error < 1e4


def test_golden() -> None:
    # Input 1 is input 0 with a little besides: it takes over all that input 0 did.
    h = np.array([[1.0, 1.0, 0.0], [1.0, 1.25, 0.0], [0.0, 0.0, 4.0]])
    weight = np.array([[1.0, 2.0, 3.0]])
    found = prune_with_compensation(weight, h, Pattern(share=1 / 3), damping=0)
    # w0 alone would cost 1; with the rest refit 1 - 1 / 1.25.
    np.testing.assert_allclose(found.weight, [[0, 2.8, 3]])
    assert found.error == pytest.approx(0.2)
    np.testing.assert_allclose(score_by_removal(weight, h, damping=0), [[0.2, 1, 36]])


def test_what_does_not_fit_is_refused() -> None:
    weight, h = problem(7)
    for wrong in ({}, {"share": 0.5, "keep": 2, "of": 4}, {"keep": 2}):
        with pytest.raises(ValueError, match="a share of zeros, or so many"):
            Pattern(**wrong)
    with pytest.raises(ValueError, match="from 0 to 1"):
        Pattern(share=1.5)
    with pytest.raises(ValueError, match="1 to 4 of 4"):
        Pattern(keep=5, of=4)
    with pytest.raises(ValueError, match="needs a scale"):
        prune_with_compensation(weight, h, HALF, grid=INT4)
    halves = LevelGrid("no zero", (-1.0, -0.3, 0.3, 1.0))
    with pytest.raises(ValueError, match="which is not on"):
        prune_with_compensation(weight, h, HALF, grid=halves, scale=np.ones(6))
    with pytest.raises(ValueError, match="do not fit 12 inputs"):
        prune_with_compensation(weight, h[:5, :5], HALF)
    with pytest.raises(ValueError, match="not finite"):
        refit_masked(weight, weight > 0, h * np.nan)


def test_pytorch_gives_the_same() -> None:
    torch = pytest.importorskip("torch")
    weight, h = problem(8)
    for pattern in (HALF, TWO_OF_FOUR):
        expected = prune_with_compensation(weight, h, pattern)
        found = prune_with_compensation(torch.asarray(weight), torch.asarray(h), pattern)
        np.testing.assert_allclose(found.weight.numpy(), expected.weight, atol=1e-9)
        refit = refit_masked(torch.asarray(weight), found.kept, torch.asarray(h))
        np.testing.assert_allclose(refit.numpy(), refit_masked(weight, expected.kept, h), atol=1e-9)
