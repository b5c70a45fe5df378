"""Types are weighed by less work than they are rounded with, and come out nearly as far off."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from packlight.llm.compress_blocks import _round_cheaply
from packlight.llm.costs import GGUF
from packlight.llm.formats import decode, quantize
from packlight.llm.rounding import relative_error

KINDS = ("Q2_K", "Q3_K", "Q4_K", "Q6_K")


def test_what_is_weighed_is_about_as_far_off_as_what_is_rounded() -> None:
    random = np.random.default_rng(0)
    weight = random.standard_normal((48, 256)).astype(np.float32)
    mixed = random.standard_normal((2000, 64)) @ random.standard_normal((64, 256))
    inputs = mixed + 2 * random.standard_normal((2000, 256))
    moments = (inputs.T @ inputs / 2000).astype(np.float32)
    plain = {kind: decode(kind, quantize(kind, weight)) for kind in KINDS}
    ratios = []
    for kind, near in _round_cheaply(KINDS, weight, moments, 0.01, GGUF):
        weighed = relative_error(weight, near, moments)[0]
        rounded = decode(kind, quantize(kind, weight, moments))
        ratios.append(weighed / relative_error(weight, rounded, moments)[0])
        assert weighed < 0.8 * relative_error(weight, plain[kind], moments)[0]
    assert min(ratios) > 0.75 and max(ratios) < 2  # descent, which is left out, betters all
    assert max(ratios) / min(ratios) < 1.3  # types are told apart as they will be


def test_without_moments_it_is_the_rounding_itself() -> None:
    weight = np.random.default_rng(1).standard_normal((4, 256)).astype(np.float32)
    for kind, near in _round_cheaply(KINDS, weight, None, 0.01, GGUF):
        np.testing.assert_allclose(near, decode(kind, quantize(kind, weight)), atol=1e-6)
