"""Fixtures that several rooms' tests share."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import settings
from numpy.typing import NDArray
from onnx import numpy_helper

from packlight.measure.evidence import LatencyEvidence
from packlight.measure.latency import RankedLatency
from packlight.plan import answer, judge, ranks, table, trials

# Some tests ask onnxruntime itself, which would report to its maker; packlight's own processes
# must see to that themselves, and are tested without this.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

# Whoever runs the tests in the background hands down an ignored SIGINT, which tests and the
# processes they start would never see.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("packlight", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("packlight")

REAL = Path(os.environ.get("PACKLIGHT_REAL", Path(__file__).parents[2] / "shared" / "real"))
DEMO = Path(__file__).parents[1] / "examples" / "digits"


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder of real models and data for acceptance; skips where it is absent."""
    if not REAL.is_dir():
        pytest.skip(f"the real models for acceptance are not here ({REAL.name}/ is absent)")
    return REAL


@pytest.fixture(scope="session")
def demo() -> Path:
    """The folder of the demo model: digits.onnx and digits.npz."""
    return DEMO


@pytest.fixture(scope="session")
def write_model() -> Callable[..., Path]:
    """Writes a model from ONNX text: `write_model(path, "net (...) => (...) { ... }", w=array)`."""

    def write(path: Path, text: str, *, opset: int = 17, **weights: NDArray[Any]) -> Path:
        head = f'<ir_version: 8, opset_import: ["" : {opset}]>\n'
        proto = onnx.parser.parse_model(head + text)
        for name, array in weights.items():
            proto.graph.initializer.append(numpy_helper.from_array(array, name))
        onnx.save(proto, path)
        return path

    return write


@pytest.fixture(scope="session")
def write_mlp(write_model: Callable[..., Path]) -> Callable[..., Path]:
    """Writes a classifier of 16 numbers, layers h, g and y, 289 KB; rows: "n" or a fixed batch."""

    def write(path: Path, *, rows: str = "n", hidden: int = 256, seed: int = 0) -> Path:
        draw = np.random.default_rng(seed).standard_normal
        text = f"""net (float[{rows}, 16] x) => (float[{rows}, 4] y) {{
            h = Gemm(x, w1, b1)
            r = Relu(h)
            g = Gemm(r, w2, b2)
            s = Relu(g)
            y = MatMul(s, w3)
        }}"""
        weights = {"w1": draw((16, hidden)), "b1": draw(hidden)}
        weights |= {"w2": draw((hidden, hidden)) / hidden**0.5, "b2": draw(hidden)}
        weights["w3"] = draw((hidden, 4))
        arrays = {name: array.astype(np.float32) for name, array in weights.items()}
        return write_model(path, text, **arrays)

    return write


@pytest.fixture(scope="session")
def rows() -> NDArray[np.float32]:
    """200 samples for `write_mlp`."""
    return np.random.default_rng(1).standard_normal((200, 16)).astype(np.float32)


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latency as a function of the file's size, so that no clock decides what is chosen."""

    def rank(paths: list[Path], feeds: object, **options: object) -> tuple[RankedLatency, ...]:
        first = paths[0].stat().st_size
        ratios = [path.stat().st_size / first for path in paths]
        return tuple(
            RankedLatency(path, ratio, ratio, (ratio, ratio))
            for path, ratio in zip(paths, ratios, strict=True)
        )

    def measure(original: Path, compressed: Path, feeds: object, **options: Any) -> LatencyEvidence:
        _, found = rank([original, compressed], feeds)
        return LatencyEvidence(
            "steady", options["threads"], 1.0, found.ms, found.ratio, found.ratio_interval_95
        )

    # Nor how many samples are looked at, or how many layers alone.
    monkeypatch.setattr(trials, "SEARCH_SECONDS", 1e6)
    monkeypatch.setattr(table, "SECONDS", 1e6)
    monkeypatch.setattr(trials, "rank_latencies", rank)
    monkeypatch.setattr(ranks, "rank_latencies", rank)
    monkeypatch.setattr(answer, "rank_latencies", rank)
    monkeypatch.setattr(judge, "measure_latency", measure)
