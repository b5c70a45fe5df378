"""The bytes of each scheme: decoded by us, and by compressed-tensors itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from packlight.errors import WrongUsage
from packlight.llm.schemes.layouts import (
    Coded,
    decode_parts,
    encode_e4m3,
    encode_parts,
    from_half,
    list_parts,
    pack_integers,
    to_half,
    unpack_integers,
    values_of,
)
from packlight.llm.schemes.solve import global_scale_of
from packlight.llm.schemes.table import SCHEMES, Scheme, find_scheme

CODED = [one.name for one in SCHEMES.values() if one.format]
TORCH_TYPES = {"I32": "int32", "I64": "int64", "U8": "uint8", "I8": "int8", "F32": "float32",
               "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn"}  # fmt: skip


def draw(scheme: Scheme, half: str, seed: int = 0) -> Coded:
    """A weight [6, 256] of codes of every kind."""
    random = np.random.default_rng(seed)
    grid = scheme.grid
    assert grid is not None
    codes = random.integers(grid.minimum, grid.maximum + 1, (6, 256)).astype(grid.dtype_name)
    group = scheme.group_of(256) or 256
    scale = np.exp(random.normal(-3, 1, (6, 256 // group))).astype(np.float32)
    if "nvfp4" in scheme.format:
        whole = global_scale_of(float(6 * scale.max()))
        bytes_ = np.maximum(encode_e4m3(scale * np.float32(whole)), 1)
        levels = decode_e4m3(bytes_)
        return Coded(codes, (levels / np.float32(whole)).astype(np.float32), whole)
    return Coded(codes, from_half(to_half(scale, half), half))


def decode_e4m3(bytes_: NDArray[np.uint8]) -> NDArray[np.float64]:
    """As the format's definition says, byte by byte."""
    sign = np.where(bytes_ & 128, -1.0, 1.0)
    exponent, mantissa = (bytes_ >> 3) & 15, (bytes_ & 7) / 8
    small = exponent == 0
    found: NDArray[np.float64] = sign * np.ldexp(
        mantissa + np.where(small, 0, 1), np.where(small, 1, exponent).astype(int) - 7
    )
    return found


@pytest.mark.parametrize("half", ["F16", "BF16"])
@pytest.mark.parametrize("name", CODED)
def test_what_is_written_is_read_back(name: str, half: str) -> None:
    scheme = SCHEMES[name]
    coded = draw(scheme, half)
    parts = encode_parts(scheme, coded, half)
    shapes = list_parts(scheme, (6, 256), half)
    assert parts.keys() == shapes.keys()
    np.testing.assert_array_equal(decode_parts(scheme, parts, half), values_of(scheme, coded))


@pytest.mark.parametrize("half", ["F16", "BF16"])
@pytest.mark.parametrize("name", CODED)
def test_compressed_tensors_reads_the_same_weights(name: str, half: str) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    from packlight.llm.schemes.config import _plain, _weights

    scheme = SCHEMES[name]
    coded = draw(scheme, half)
    shapes = list_parts(scheme, (6, 256), half)
    tensors = {}
    for ending, data in encode_parts(scheme, coded, half).items():
        dtype, shape = shapes[ending]
        flat = torch.from_numpy(np.ascontiguousarray(data).reshape(-1).copy())
        tensors[ending] = flat.view(getattr(torch, TORCH_TYPES[dtype])).reshape(shape)
    theirs = QuantizationScheme(
        targets=["Linear"],
        weights=_weights(scheme, scheme.group_of(256) or 0),
        input_activations=_plain(scheme.activations),
    )
    compressor = BaseCompressor.get_value_from_registry(scheme.format)
    assert set(compressor.compression_param_names(theirs)) == set(shapes)
    if "nvfp4" not in scheme.format:  # where scales are wide, products of theirs are exact too
        tensors["weight_scale"] = tensors["weight_scale"].float()
    found = compressor.decompress(tensors, theirs)["weight"].float().numpy()
    ours = values_of(scheme, coded)
    if "nvfp4" in scheme.format:  # they decompress to 16 bits
        ours = torch.from_numpy(ours).bfloat16().float().numpy()
    np.testing.assert_array_equal(found, ours)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("count", [1, 7, 8, 64, 77])
def test_packed_integers_are_theirs(bits: int, count: int) -> None:
    random = np.random.default_rng(count)
    codes = random.integers(-(1 << (bits - 1)), 1 << (bits - 1), (3, count)).astype(np.int8)
    words = pack_integers(codes, bits)
    np.testing.assert_array_equal(unpack_integers(words, bits, count), codes)
    torch = pytest.importorskip("torch")
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    theirs = helpers.pack_to_int32(torch.from_numpy(codes), bits).numpy()
    np.testing.assert_array_equal(words, theirs)


def test_golden_words() -> None:
    codes = np.array([[-8, -7, 0, 7, 1, 2, 3, -1]], np.int8)
    assert pack_integers(codes, 4).view("<u4")[0, 0] == 0x7BA9_F810
    assert pack_integers(codes[:, :4], 8).view("<u4")[0, 0] == 0x8780_7978


def test_small_floats_are_rounded_to_the_nearest() -> None:
    values = np.concatenate([decode_e4m3(np.arange(127, dtype=np.uint8)), [500.0, 1e-9]])
    values = np.concatenate([values, -values, values[:-2] * 1.01]).astype(np.float32)
    found = decode_e4m3(encode_e4m3(values))
    levels = decode_e4m3(np.arange(127, dtype=np.uint8))
    levels = np.concatenate([-levels[::-1], levels])
    nearest = levels[np.abs(values[:, None] - levels).argmin(axis=1)]
    np.testing.assert_array_equal(found, nearest)


def test_parts_know_their_types() -> None:
    assert list_parts(SCHEMES["w4a16"], (64, 96), "BF16") == {
        "weight_packed": ("I32", (64, 12)),
        "weight_scale": ("BF16", (64, 3)),
        "weight_shape": ("I64", (2,)),
    }
    assert list_parts(SCHEMES["2:4"], (64, 96), "F16") == {"weight": ("F16", (64, 96))}


def test_a_misspelt_scheme_is_told_from() -> None:
    assert find_scheme("W4A16").name == "w4a16"
    with pytest.raises(WrongUsage, match=r"did you mean 'w4a16'"):
        find_scheme("w4a6")
    unknown: Any = "marlin"
    with pytest.raises(WrongUsage, match="use one of w4a16, w4a16-g32, w8a16"):
        find_scheme(unknown)
