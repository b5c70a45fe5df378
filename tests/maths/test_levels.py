from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from packlight.maths.levels import (
    E2M1,
    E4M3,
    E5M2,
    E8M0,
    FloatLayout,
    float_levels,
    float_values,
    normal_levels,
    power_levels,
)

# Table of NF4 as published with QLoRA (Dettmers et al. 2023, appendix E).
NF4 = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
]


@pytest.mark.parametrize(
    ("layout", "dtype", "bits"),
    [
        (E4M3, ml_dtypes.float8_e4m3fn, 8),
        (E5M2, ml_dtypes.float8_e5m2, 8),
        (E2M1, ml_dtypes.float4_e2m1fn, 4),
        (E8M0, ml_dtypes.float8_e8m0fnu, 8),
        (FloatLayout(3, 2, 3, "none"), ml_dtypes.float6_e3m2fn, 6),
        (FloatLayout(4, 3, 7, "ieee"), ml_dtypes.float8_e4m3, 8),
    ],
    ids=["e4m3", "e5m2", "e2m1", "e8m0", "e3m2", "e4m3-ieee"],
)
def test_every_bit_pattern_is_read_as_ml_dtypes_reads_it(
    layout: FloatLayout, dtype: type, bits: int
) -> None:
    patterns = np.arange(1 << bits, dtype=np.uint8)
    expected = patterns.view(dtype).astype(np.float64)
    found = float_values(layout)
    np.testing.assert_array_equal(found, expected)
    zeros = expected == 0
    np.testing.assert_array_equal(np.signbit(found[zeros]), np.signbit(expected[zeros]))


def test_levels_are_the_finite_numbers_in_order() -> None:
    assert float_levels(E2M1) == (
        *(-6.0, -4.0, -3.0, -2.0, -1.5, -1.0, -0.5),
        *(0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0),
    )
    counts = [len(float_levels(layout)) for layout in (E4M3, E5M2, E8M0)]
    assert counts == [253, 247, 255]
    assert float_levels(E4M3)[-1] == 448
    assert float_levels(E5M2)[-1] == 57344
    assert float_levels(E8M0)[0] == 2.0**-127


def test_the_levels_of_the_normal_are_those_published() -> None:
    np.testing.assert_allclose(normal_levels(4), NF4, atol=2e-7)


def test_powers_of_two() -> None:
    assert power_levels(3) == (-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0)
    assert len(power_levels(4)) == 15
