from __future__ import annotations

import math

import numpy as np
import pytest

from packlight.maths.divergence import explained_variance, signal_to_noise_db, top1_agreement


def test_signal_to_noise_by_hand() -> None:
    reference = np.array([3.0, 4.0], np.float32)
    assert signal_to_noise_db(reference, reference) == math.inf
    assert signal_to_noise_db(reference, reference + np.float32([0.5, 0])) == pytest.approx(20)
    assert signal_to_noise_db(reference, 0 * reference) == pytest.approx(0)
    assert signal_to_noise_db(0 * reference, reference) == -math.inf


def test_explained_variance_by_hand() -> None:
    reference = np.array([[1.0, 2.0], [3.0, 6.0]])
    assert explained_variance(reference, reference) == 1
    assert explained_variance(reference, np.full((2, 2), 3.0)) == 0
    off = np.array([[1, 0], [0, 0]])
    assert explained_variance(reference, reference + off) == pytest.approx(13 / 14)
    # A large mean is no merit: the same errors on a shifted reference explain as much.
    assert explained_variance(reference + 100, reference + 100 + off) == pytest.approx(13 / 14)
    constant = np.full(4, 7.0)
    assert explained_variance(constant, constant) == 1
    assert explained_variance(constant, constant + 1e-3) == 0


def test_agreement_by_hand() -> None:
    reference = np.eye(4)
    assert top1_agreement(reference, reference[[0, 1, 2, 0]]) == 0.75


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="do not compare"):
        signal_to_noise_db(np.ones(3), np.ones((3, 1)))


def test_pytorch_gives_the_same_figures() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    y, other = rng.standard_normal((2, 50, 4))
    for figure in (signal_to_noise_db, explained_variance, top1_agreement):
        assert figure(torch.asarray(y), torch.asarray(other)) == pytest.approx(figure(y, other))
