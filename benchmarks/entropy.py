"""Compares coders of quantized weights: bytes and seconds.

    python benchmarks/entropy.py [../shared/real/cifar10/resnet20.onnx]

Codes are drawn from a Laplace distribution at several rates, alone and with rows and columns that
are nearly dead, as in pruned layers; and taken from a real model, its largest layers rounded to
few bits. "ideal" is the order-0 code length without the cost of its table. constriction and
zstandard are left out where they are not installed.
"""

from __future__ import annotations

import importlib
import lzma
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from packlight.maths.entropy import ideal_bits
from packlight.maths.grids import IntegerGrid, scale_and_zero_point
from packlight.maths.rounding import round_to_nearest
from packlight.transport.codes import Layout
from packlight.transport.segments import Form, decode_segment, encode_segment
from packlight.transport.tables import encode_bytes

Codes = np.ndarray[Any, np.dtype[np.int8]]


def main() -> None:
    coders = dict(find_coders())
    print("| codes | bits each | ideal | " + " | ".join(coders) + " | ours | seconds | reading |")
    print("|---" * (len(coders) + 6) + "|")
    for name, codes in find_codes(Path(sys.argv[1]) if len(sys.argv) > 1 else None):
        flat = codes.reshape(len(codes), -1)
        form = Form("i", 8, Layout(*flat.shape, int(np.prod(codes.shape[2:]))))
        begin = time.perf_counter()
        coded = encode_segment(flat.tobytes(), form)
        middle = time.perf_counter()
        if decode_segment(coded, form) != flat.tobytes():
            raise SystemExit(f"{name} does not come back")
        end = time.perf_counter()
        bits = ideal_bits(codes)
        sizes = [f"{coder(codes):,}" for coder in coders.values()]
        row = [name, f"{bits / codes.size:.2f}", f"{bits / 8:,.0f}", *sizes, f"{len(coded):,}"]
        print("| " + " | ".join([*row, f"{middle - begin:.2f}", f"{end - middle:.2f}"]) + " |")


def find_coders() -> Iterator[tuple[str, Callable[[Codes], int]]]:
    yield "byte table", lambda codes: len(encode_bytes(codes.tobytes()))
    constriction = _find("constriction")
    if constriction is not None:

        def code_with_constriction(codes: Codes) -> int:
            values, index, counts = np.unique(codes, return_inverse=True, return_counts=True)
            if len(values) == 1:
                return 3
            shares = counts.astype(np.float64) / counts.sum()
            model = constriction.stream.model.Categorical(shares, perfect=False)
            coder = constriction.stream.stack.AnsCoder()
            coder.encode_reverse(index.ravel().astype(np.int32), model)
            # The table: a byte for the value and two for its share.
            return int(coder.get_compressed().nbytes) + 3 * len(values)

        yield "constriction", code_with_constriction
    zstandard = _find("zstandard")
    if zstandard is not None:
        yield "zstd -19", lambda c: len(zstandard.ZstdCompressor(level=19).compress(c.tobytes()))
    yield "xz -9e", lambda c: len(lzma.compress(c.tobytes(), preset=9 | lzma.PRESET_EXTREME))


def find_codes(model: Path | None) -> Iterator[tuple[str, Codes]]:
    for spread in (0.2, 0.4, 0.8, 1.6, 6.0):
        random = np.random.default_rng(0)
        codes = np.round(random.laplace(0, spread, (256, 576))).clip(-127, 127)
        yield f"Laplace {spread}", codes.astype(np.int8)
    for spread in (0.5, 1.0):
        random = np.random.default_rng(1)
        size = random.gamma(0.5, spread, (300, 1)) * random.gamma(0.5, 2, (1, 784))
        yield f"uneven {spread}", np.round(random.laplace(0, size)).clip(-127, 127).astype(np.int8)
    if model is None:
        return
    tensors = [numpy_helper.to_array(one) for one in onnx.load(model).graph.initializer]
    for weight in sorted((one for one in tensors if one.ndim > 1), key=lambda w: -w.size)[:2]:
        flat = weight.reshape(len(weight), -1)
        for bits in (2, 3, 4, 8):
            grid = IntegerGrid(bits, signed=True, symmetric=True)
            low, high = flat.min(axis=1, keepdims=True), flat.max(axis=1, keepdims=True)
            scale, zero = scale_and_zero_point(low, high, grid)
            codes = round_to_nearest(flat, scale, zero, grid).astype(np.int8)
            yield f"{model.stem} {weight.shape} int{bits}", codes.reshape(weight.shape)


def _find(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


if __name__ == "__main__":
    main()
