from __future__ import annotations

from itertools import product

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packlight.maths.formats import (
    FORMATS,
    Formatted,
    dequantize_format,
    quantize_to_format,
    stored_bits,
)
from packlight.maths.grids import block_counts, expand_blocks, split_blocks
from packlight.maths.rounding import output_error

FINER = ("fp8", "fp8-e5m2", "int8", "int7", "int6", "int5")


def problem(seed: int, outputs: int = 6, inputs: int = 40) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((inputs, inputs)) + 2 * rng.standard_normal((1, inputs))
    rows = np.maximum(rng.standard_normal((8 * inputs, inputs)) @ mix, 0)
    weight = (0.1 * rng.standard_t(4, (outputs, inputs))).astype(np.float32)
    return weight, rows.T @ rows / len(rows)


def absmax_error(weight: np.ndarray, name: str, importance: np.ndarray) -> float:
    """The weighted error of absmax scaling with scales stored in the plainest way."""
    form = FORMATS[name]
    levels = form.grid.steps_of(np.arange(form.grid.minimum, form.grid.maximum + 1))
    peak = np.abs(split_blocks(weight, form.block_shape)).max(axis=1)
    top = min(-levels[0], levels[-1])
    scale = peak.astype(np.float64) / top
    if name == "mxfp4":  # OCP microscaling formats, section 6.3
        scale = 2.0 ** (np.floor(np.log2(peak)) - 2)
    if name == "nvfp4":
        tensor = np.float32(peak.max() / (6 * 448))
        scale = (scale / tensor).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * tensor
    wide = np.broadcast_to(expand_blocks(scale, weight.shape, form.block_shape), weight.shape)
    off = np.abs(weight[..., None] - levels * wide[..., None]).min(axis=2)
    return float(np.sum(importance * off**2))


def weighted_error(weight: np.ndarray, formatted: Formatted, importance: np.ndarray) -> float:
    off = weight - dequantize_format(formatted).astype(np.float64)
    return float(np.sum(importance * off**2))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("weighted", [False, True])
def test_scales_found_are_never_worse_than_absmax(name: str, weighted: bool) -> None:
    weight, h = problem(1, inputs=70)
    importance = np.diag(h) if weighted else np.ones(70)
    found = quantize_to_format(weight, name, second_moments=importance if weighted else None)
    error = weighted_error(weight, found, importance)
    assert error <= absmax_error(weight, name, importance) * (1 + 1e-6)


@pytest.mark.parametrize("name", FORMATS)
def test_the_parts_have_the_shapes_and_types_promised(name: str) -> None:
    weight, h = problem(2)
    form = FORMATS[name]
    for found in (
        quantize_to_format(weight, name),
        quantize_to_format(weight, name, second_moments=h),
    ):
        assert found.codes.dtype == np.uint8
        assert found.codes.shape == weight.shape
        assert found.levels.dtype == found.scale.dtype == np.float32
        assert len(found.levels) <= 1 << form.bits
        assert found.codes.max() < len(found.levels)
        assert found.scale.shape == block_counts(weight.shape, form.block_shape)
        assert np.all(found.scale > 0)
        values = dequantize_format(found)
        assert values.dtype == np.float32
        expected = found.levels[found.codes] * expand_blocks(
            found.scale, weight.shape, form.block_shape
        )
        np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("name", FORMATS)
def test_codes_are_the_nearest_without_second_moments(name: str) -> None:
    weight, _ = problem(3, outputs=3)
    found = quantize_to_format(weight, name)
    wide = np.broadcast_to(
        expand_blocks(found.scale, weight.shape, found.block_shape), weight.shape
    )
    distances = np.abs(
        weight[..., None].astype(float) - found.levels.astype(float) * wide[..., None].astype(float)
    )
    taken = np.take_along_axis(distances, found.codes[..., None].astype(int), axis=2)[..., 0]
    np.testing.assert_allclose(taken, distances.min(axis=2), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("seed", [0, 1])
def test_compensation_beats_rounding_to_nearest(name: str, seed: int) -> None:
    weight, h = problem(seed, outputs=8, inputs=48)
    plain = quantize_to_format(weight, name, second_moments=np.diag(h).copy())
    found = quantize_to_format(weight, name, second_moments=h)
    errors = [output_error(weight, dequantize_format(f), h) for f in (plain, found)]
    assert errors[1] < 0.6 * errors[0]
    assert plain.info is None
    assert found.info is not None
    again = quantize_to_format(weight, name, second_moments=h, sweeps=4)
    assert output_error(weight, dequantize_format(again), h) <= errors[1] * (1 + 1e-6)


@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(FORMATS)))
@settings(max_examples=40, deadline=None)
def test_no_row_is_worse_off_by_compensation(seed: int, name: str) -> None:
    weight, h = problem(seed, outputs=3, inputs=18)
    weight[0] = 0
    h[4, :] = h[:, 4] = 0
    plain = quantize_to_format(weight, name, second_moments=np.diag(h).copy())
    found = quantize_to_format(weight, name, second_moments=h)
    for row, a, b in zip(weight, dequantize_format(plain), dequantize_format(found), strict=True):
        before, after = (output_error(row[None], x[None], h) for x in (a, b))
        assert after <= before * (1 + 1e-5) + 1e-12


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_in_a_format_already_stays(name: str) -> None:
    found = quantize_to_format(problem(4)[0], name)
    values = dequantize_format(found)
    again = dequantize_format(quantize_to_format(values, name))
    # Not bit for bit where the largest level of a block is not in use.
    assert np.sum((again - values) ** 2) <= 2e-4 * np.sum(values**2)


def test_block_scales_are_what_the_format_stores() -> None:
    weight = np.random.default_rng(5).standard_normal((8, 64)).astype(np.float32)
    weight[:, :16] *= 1e-4
    h = np.diag(np.arange(1.0, 65.0))
    for second in (None, h):
        scale = quantize_to_format(weight, "mxfp4", second_moments=second).scale
        stored = scale.astype(ml_dtypes.float8_e8m0fnu).astype(np.float32)
        np.testing.assert_array_equal(stored, scale)
        found = quantize_to_format(weight, "nvfp4", second_moments=second)
        stored = (found.scale / found.tensor_scale).astype(ml_dtypes.float8_e4m3fn)
        np.testing.assert_array_equal(
            stored.astype(np.float32) * np.float32(found.tensor_scale), found.scale
        )
        assert stored.astype(float).max() <= 448


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("fp8", ml_dtypes.float8_e4m3fn),
        ("fp8-e5m2", ml_dtypes.float8_e5m2),
        ("fp4", ml_dtypes.float4_e2m1fn),
    ],
)
def test_levels_survive_the_cast_to_the_type(name: str, dtype: type) -> None:
    levels = quantize_to_format(problem(0)[0], name).levels
    np.testing.assert_array_equal(levels.astype(dtype).astype(np.float32), levels)


def test_golden_numbers() -> None:
    weight = np.array([[0.1, -0.2, 0.9, 1.1], [-3.0, 3.0, 3.0, 0.5]], np.float32)
    ternary = quantize_to_format(weight, "ternary")
    np.testing.assert_array_equal(ternary.codes, [[1, 1, 2, 2], [0, 2, 2, 1]])
    np.testing.assert_allclose(ternary.scale, [[1.0], [3.0]], rtol=1e-6)
    binary = quantize_to_format(weight, "binary")
    np.testing.assert_array_equal(binary.codes, [[1, 0, 1, 1], [0, 1, 1, 1]])
    np.testing.assert_allclose(binary.scale, [[0.575], [2.375]], rtol=1e-6)
    weighted = quantize_to_format(weight, "binary", second_moments=np.array([1.0, 0, 0, 1.0]))
    np.testing.assert_allclose(weighted.scale, [[0.6], [1.75]], rtol=1e-6)
    # 6, 4, ... are levels with the scale 1 (mxfp4), 1.0 stands for itself.
    exact = np.array([[6.0, -4.0, 3.0, 0.5, -1.5, 0.0, 1.0, 2.0]], np.float32)
    for name, size in product(("fp4", "mxfp4", "nvfp4"), (1.0, 0.25)):
        found = quantize_to_format(exact * np.float32(size), name)
        np.testing.assert_allclose(dequantize_format(found), exact * size, rtol=1e-6)
        assert found.scale.ravel()[0] == pytest.approx(size, rel=1e-6)
        np.testing.assert_array_equal(found.codes, [[14, 1, 12, 8, 4, 7, 9, 11]])


def test_bits_that_are_stored() -> None:
    assert stored_bits("nf4", (10, 128)) == 10 * 128 * 4 + 20 * 32
    assert stored_bits("mxfp4", (10, 40)) == 10 * 40 * 4 + 20 * 8
    assert stored_bits("nvfp4", (10, 32)) == 10 * 32 * 4 + 20 * 8 + 32
    assert stored_bits("binary", (10, 32)) == 320 + 320


@pytest.mark.parametrize("name", FORMATS)
def test_zeros_tiny_and_huge_weights(name: str) -> None:
    h = np.eye(5)
    for second in (None, h):
        zeros = dequantize_format(
            quantize_to_format(np.zeros((2, 5), np.float32), name, second_moments=second)
        )
        assert np.abs(zeros).max() < 1e-19
        for size in (1e-30, 1e37):
            weight = np.full((2, 5), size, np.float32)
            found = dequantize_format(quantize_to_format(weight, name, second_moments=second))
            np.testing.assert_allclose(found, weight, rtol=0.2)


@pytest.mark.parametrize("block_shape", [(-1, -1), (1, 7), (3, 5), (1, -1), (2, -1)])
@pytest.mark.parametrize("name", ["int3", "nf4", "nvfp4", "ternary"])
def test_any_block_shape_will_do(name: str, block_shape: tuple[int, int]) -> None:
    weight, h = problem(6, outputs=7, inputs=30)
    plain, found = (
        quantize_to_format(weight, name, second_moments=second, block_shape=block_shape)
        for second in (np.diag(h).copy(), h)
    )
    assert found.scale.shape == block_counts(weight.shape, block_shape)
    errors = [output_error(weight, dequantize_format(f), h) for f in (plain, found)]
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("name", FORMATS)
def test_pytorch_gives_the_same(name: str) -> None:
    torch = pytest.importorskip("torch")
    weight, h = problem(7)
    for second in (None, np.diag(h).copy(), h):
        expected = quantize_to_format(weight, name, second_moments=second)
        found = quantize_to_format(
            torch.asarray(weight),
            name,
            second_moments=None if second is None else torch.asarray(second),
        )
        assert found.codes.dtype == torch.uint8
        np.testing.assert_allclose(found.scale.numpy(), expected.scale, rtol=1e-5)
        same = np.mean(found.codes.numpy() == expected.codes)
        assert same > 0.99
        np.testing.assert_allclose(
            weighted_error(weight, expected, np.ones(40)),
            np.sum((weight - dequantize_format(found).numpy().astype(float)) ** 2),
            rtol=0.02,
        )


def test_many_rows_are_done_in_parts_alike() -> None:
    weight = np.random.default_rng(8).standard_normal((300, 500)).astype(np.float32)
    whole = quantize_to_format(weight, "int4")
    part = quantize_to_format(weight[270:], "int4")
    np.testing.assert_array_equal(whole.codes[270:], part.codes)
    np.testing.assert_array_equal(whole.scale[270:], part.scale)


def test_bad_input_is_one_sentence() -> None:
    weight, h = problem(0)
    with pytest.raises(ValueError, match="no number format named 'nf5': did you mean nf4"):
        quantize_to_format(weight, "nf5")
    with pytest.raises(ValueError, match="do not fit 40 inputs"):
        quantize_to_format(weight, "nf4", second_moments=h[:9, :9])
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantize_to_format(weight * np.float32(np.inf), "nf4")
    with pytest.raises(ValueError, match=r"a matrix \[out, in\]"):
        quantize_to_format(weight[0], "nf4")
