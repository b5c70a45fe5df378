"""Rounding of decoders: against another way to compute it, and gone on with after a kill."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folder_bench import write_llama

from packlight.llm.checkpoint import Checkpoint, open_checkpoint
from packlight.llm.compress import Compressed, uniform_types
from packlight.llm.onnx import run as onnx_run
from packlight.llm.onnx.compress import compress_decoder
from packlight.llm.onnx.formats import FORMATS, ONNX, decode, quantize
from packlight.llm.onnx.run import OnnxRun
from packlight.llm.text import Windows


def problem(outputs: int = 6, inputs: int = 64) -> tuple[Any, Any]:
    """A weight and second moments of correlated inputs of different size, one of them dead."""
    draw = np.random.default_rng(0)
    weight = draw.standard_normal((outputs, inputs)).astype(np.float32)
    x = draw.standard_normal((3 * inputs, inputs // 2)) @ draw.standard_normal(
        (inputs // 2, inputs)
    )
    x = (x + 0.3 * draw.standard_normal(x.shape)) * np.exp(draw.standard_normal(inputs))
    x[:, 7] = 0
    return weight, x.T @ x / len(x)


def gptq(weight: Any, moments: Any, scale: Any, zero: Any, bits: int, damping: float) -> Any:
    """Frantar et al. 2022, algorithm 1, one weight at a time, with the inverse itself."""
    h = moments.copy()
    dead = np.flatnonzero(np.diag(h) == 0)
    mean = np.diag(h)[np.diag(h) > 0].mean()
    h[dead, dead] = mean
    h += damping * mean * np.eye(len(h))
    order = np.argsort(-np.diag(moments), kind="stable")
    inverse = np.linalg.inv(h[np.ix_(order, order)])
    upper = np.linalg.cholesky(inverse).T
    out = np.empty(weight.shape)
    for row in range(len(weight)):
        w = weight[row, order].astype(np.float64)
        for place, i in enumerate(order):
            block = i // (weight.shape[1] // scale.shape[1])
            step, middle = float(scale[row, block]), float(zero[row, block])
            code = min(max(round(w[place] / step) + middle, 0), 2**bits - 1)
            out[row, i] = (code - middle) * step
            off = (w[place] - out[row, i]) / upper[place, place]
            w[place + 1 :] -= off * upper[place, place + 1 :]
    return out


def scales_of(name: str, data: Any) -> tuple[Any, Any]:
    """Scales and zero points of rows of bytes: codes first, then scales, then zero points."""
    one = FORMATS[name]
    blocks = 64 // one.block
    begin = 64 * one.bits // 8
    scale = np.ascontiguousarray(data[:, begin : begin + 2 * blocks]).view(np.float16)
    zero = data[:, begin + 2 * blocks :]
    if one.bits == 4:
        zero = np.stack([zero & 15, zero >> 4], axis=-1).reshape(len(zero), -1)[:, :blocks]
    return scale.astype(np.float64), zero.astype(np.float64)


@pytest.mark.parametrize("name", ["int4-32", "int4-64", "int8-32"])
def test_codes_are_those_of_gptq_on_the_scales_of_the_file(name: str) -> None:
    weight, moments = problem()
    data = quantize(name, weight, moments, damping=0.01, quick=True)
    expected = gptq(weight, moments, *scales_of(name, data), FORMATS[name].bits, 0.01)
    np.testing.assert_allclose(decode(name, data), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["int4-32", "int8-32"])
def test_descent_and_scales_go_on_from_there(name: str) -> None:
    weight, moments = problem(outputs=24)

    def error(**options: Any) -> float:
        off = weight - decode(name, quantize(name, weight, **options))
        return float((off @ moments * off).sum())

    diagonal = error(second_moments=np.diag(moments))
    quick = error(second_moments=moments, quick=True)
    whole = error(second_moments=moments)
    assert whole < 0.9 * quick < 0.6 * diagonal


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(write_llama(tmp_path_factory.mktemp("llama")))


class KilledError(Exception):
    pass


def stop_after(monkeypatch: pytest.MonkeyPatch, method: str, steps: int) -> Callable[[], None]:
    """The process dies while the tensor after so many is rounded."""
    real, count = getattr(OnnxRun, method), [0]

    def dying(*args: Any, **named: Any) -> Any:
        count[0] += 1
        if count[0] > steps:
            raise KilledError
        return real(*args, **named)

    monkeypatch.setattr(OnnxRun, method, dying)
    return lambda: monkeypatch.setattr(OnnxRun, method, real)


@pytest.mark.parametrize(("text", "steps"), [(False, 0), (False, 7), (True, 1), (True, 9)])
def test_a_killed_run_goes_on_to_the_same_bytes(
    tmp_path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, text: bool, steps: int
) -> None:
    windows = None
    if text:
        pytest.importorskip("torch", reason="blocks are computed with PyTorch")
        draw = np.random.default_rng(0).integers(0, 300, (12, 16)).astype(np.int32)
        windows = Windows("drawn", draw[:8], draw[8:10], draw[10:], draw.size)
    monkeypatch.setattr(onnx_run, "PARTS", 2)
    types = uniform_types(checkpoint, "int4-32", ONNX)
    method = "take" if text else "_write_pieces"

    def make(folder: str) -> Compressed:
        (tmp_path / folder).mkdir(exist_ok=True)
        return compress_decoder(
            checkpoint, tmp_path / folder / "model.onnx", types, windows=windows
        )

    whole = make("a")
    alive = stop_after(monkeypatch, method, steps)
    with pytest.raises(KilledError):
        make("b")
    assert not (tmp_path / "b" / "model.onnx").exists()
    alive()
    stop_after(monkeypatch, method, len(types) - steps)  # what is finished is not rounded again
    resumed = make("b")
    assert [row.error for row in resumed.rows] == [row.error for row in whole.rows]
    files = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert {"model.onnx", "model.onnx.data"} <= files.keys()
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}


def test_weights_of_another_run_are_not_taken_over(
    tmp_path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = tmp_path / "a" / "model.onnx", tmp_path / "b" / "model.onnx"
    for one in (path, other):
        one.parent.mkdir()
    alive = stop_after(monkeypatch, "_write_pieces", 5)
    with pytest.raises(KilledError):
        compress_decoder(checkpoint, path, uniform_types(checkpoint, "int8-32", ONNX))
    alive()
    for one in (path, other):
        compress_decoder(checkpoint, one, uniform_types(checkpoint, "int4-32", ONNX))
    data = path.with_name("model.onnx.data").read_bytes()
    assert data == other.with_name("model.onnx.data").read_bytes()
