from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage

from packlight.maths.folding import cluster_channels, fold_columns, fold_rows, merge_channels


def rows_of(seed: int, channels: int = 12, features: int = 5) -> np.ndarray:
    """Rows around a few common ones."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(channels // 3, 1), features)) * 2
    return centres[rng.integers(0, len(centres), channels)] + rng.standard_normal(
        (channels, features)
    )


def partition(labels: object) -> set[frozenset[int]]:
    found: dict[int, set[int]] = {}
    for place, label in enumerate(labels):  # type: ignore[call-overload]
        found.setdefault(int(label), set()).add(place)
    return {frozenset(own) for own in found.values()}


@pytest.mark.parametrize("keep", [1, 3, 6, 11, 12])
@pytest.mark.parametrize("seed", range(4))
def test_clusters_are_wards(seed: int, keep: int) -> None:
    rows = rows_of(seed)
    found = cluster_channels([rows[:, :2], rows[:, 2:]], keep, rounds=0)
    expected = fcluster(linkage(rows, "ward"), keep, "maxclust")
    assert partition(found.stands_in) == partition(expected)
    loss = sum(
        np.sum((rows[list(own)] - rows[list(own)].mean(axis=0)) ** 2)
        for own in partition(found.stands_in)
    )
    assert found.loss == pytest.approx(loss)
    assert len(found.kept) == keep and set(found.stands_in) == set(found.kept)
    for own in partition(found.stands_in):
        away = np.sum((rows - rows[list(own)].mean(axis=0)) ** 2, axis=1)
        assert found.stands_in[min(own)] == min(own, key=lambda c: (round(away[c], 9), c))


@given(st.integers(0, 10**6), st.integers(2, 14), st.integers(1, 14))
def test_k_means_never_hurts(seed: int, channels: int, keep: int) -> None:
    rows = rows_of(seed, channels)
    keep = min(keep, channels)
    first = cluster_channels([rows], keep, rounds=0)
    found = cluster_channels([rows], keep)
    assert len(found.kept) == keep and found.loss <= first.loss * (1 + 1e-9) + 1e-12
    assert all(found.stands_in[c] == c for c in found.kept)


@pytest.mark.parametrize("centre", ["mean", "medoid"])
def test_equal_channels_fold_without_a_loss(centre: str) -> None:
    """Two layers with a ReLU between, each channel there three times, taps side by side."""
    rng = np.random.default_rng(0)
    maker = np.repeat(rng.standard_normal((4, 6)), 3, axis=0)[rng.permutation(12)]
    bias = maker.sum(axis=1)
    reader = rng.standard_normal((5, 24))
    columns = [(2 * c, 2 * c + 1) for c in range(12)]
    merged = merge_channels([maker, bias], [(reader, columns)], 4, centre=centre)
    assert merged.folding.loss == pytest.approx(0, abs=1e-12)
    x = rng.standard_normal((6, 30))

    def run(maker: np.ndarray, bias: np.ndarray, reader: np.ndarray, kept: list[int]) -> np.ndarray:
        made = np.maximum(maker[kept] @ x + bias[kept, None], 0)
        both = np.stack([made, made**2], axis=1).reshape(2 * len(kept), -1)
        return reader[:, [column for c in kept for column in columns[c]]] @ both

    expected = run(maker, bias, reader, list(range(12)))
    kept = list(merged.folding.kept)
    np.testing.assert_allclose(run(*merged.makers, *merged.readers, kept), expected, atol=1e-12)
    # What is not kept weighs nothing, so that it can be cut.
    whole = run(*merged.makers, *merged.readers, list(range(12)))
    np.testing.assert_allclose(whole, expected, atol=1e-12)


def test_golden() -> None:
    rows = np.array([[0.0], [1.0], [5.0], [6.0], [6.5]])
    found = cluster_channels([rows], 2)
    assert found.kept == (0, 3) and found.stands_in == (0, 0, 3, 3, 3)
    assert found.loss == pytest.approx(0.5 + 7 / 6)
    np.testing.assert_allclose(fold_rows(rows, found)[:, 0], [0.5, 0.5, 35 / 6, 35 / 6, 35 / 6])
    np.testing.assert_allclose(fold_rows(rows, found, centre="medoid")[:, 0], [0, 0, 6, 6, 6])
    weight = np.array([[1.0, 2, 3, 4, 5]])
    np.testing.assert_allclose(
        fold_columns(weight, [(c,) for c in range(5)], found), [[3, 0, 0, 12, 0]]
    )


def test_what_does_not_fit_is_refused() -> None:
    rows = rows_of(0)
    with pytest.raises(ValueError, match="there are none"):
        cluster_channels([], 2)
    with pytest.raises(ValueError, match=r"not \[3, 12\]"):
        cluster_channels([rows, rows[:3]], 2)
    with pytest.raises(ValueError, match="1 to 12 channels can be kept, not 0"):
        cluster_channels([rows], 0)
    found = cluster_channels([rows], 1)
    with pytest.raises(ValueError, match="12 channels were folded, not 3"):
        fold_columns(rows, [(0,)] * 3, found)
    uneven = [(c,) if c else (0, 1) for c in range(12)]
    with pytest.raises(ValueError, match="columns"):
        fold_columns(np.ones((2, 13)), uneven, found)


def test_pytorch_gives_the_same() -> None:
    torch = pytest.importorskip("torch")
    rows = rows_of(3)
    readers = [(rows.T, [(c,) for c in range(12)])]
    expected = merge_channels([rows], readers, 5)
    like = [(torch.asarray(rows.T.copy()), readers[0][1])]
    found = merge_channels([torch.asarray(rows)], like, 5)
    assert found.folding.stands_in == expected.folding.stands_in
    np.testing.assert_allclose(found.makers[0].numpy(), expected.makers[0])
    np.testing.assert_allclose(found.readers[0].numpy(), expected.readers[0])
