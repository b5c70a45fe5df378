from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import parser

from packlight.errors import RuntimeRefused, WrongUsage
from packlight.measure import latency
from packlight.measure.latency import measure_latency, rank_latencies
from packlight.runtime import Process, has_engine
from packlight.runtime.browser import BrowserRun

FEEDS = {"x": np.ones(4, np.float32)}


def _save(path: Path, kind: str = "float", name: str = "x") -> Path:
    text = f'<ir_version: 10, opset_import: ["": 21]> g ({kind}[N] {name}) => ({kind}[N] y) '
    onnx.save(parser.parse_model(text + f"{{ y = Neg ({name}) }}"), path)
    return path


def _pretend(monkeypatch: pytest.MonkeyPatch, table: NDArray[np.float64]) -> None:
    """Let the child report these milliseconds, [files, rounds]."""

    def time(self: Process, sessions: list[Any], *_: Any, **__: Any) -> NDArray[np.float64]:
        assert len(sessions) == len(table)
        return table

    monkeypatch.setattr(Process, "time", time)


def test_a_slower_file_is_seen_as_slower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    original = np.repeat([1.0, 5.0], 50) * generator.normal(1, 0.02, 100)
    _pretend(monkeypatch, np.stack([original, original * 1.5 * generator.normal(1, 0.02, 100)]))
    a, b = _save(tmp_path / "a.onnx"), _save(tmp_path / "b.onnx")
    found = measure_latency(a, b, FEEDS, threads=1)
    assert found.original == pytest.approx(np.median(original))
    assert found.ratio == pytest.approx(1.5, rel=0.02)
    low, high = found.ratio_interval_95
    assert 1.4 < low < found.ratio < high < 1.6
    assert (found.threads, found.runtime.split()[0]) == (1, "onnxruntime")


def test_a_ratio_is_of_pairs_and_not_of_medians(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pretend(monkeypatch, np.array([[1, 1, 1, 1, 10, 10, 10.0], [2, 2, 2, 1, 30, 30, 30]]))
    a, b = _save(tmp_path / "a.onnx"), _save(tmp_path / "b.onnx")
    found = measure_latency(a, b, FEEDS, threads=1)
    assert (found.original, found.compressed, found.ratio) == (1, 2, 2)


def test_two_files_with_other_inputs_are_really_run(tmp_path: Path) -> None:
    a, b = _save(tmp_path / "a.onnx"), _save(tmp_path / "b.onnx", "float16", "z")
    half = {"z": np.ones(4, np.float16)}
    found = measure_latency(a, b, FEEDS, half, threads=2, rounds=12, seconds=2)
    assert found.original > 0 and found.compressed > 0
    assert found.ratio_interval_95[0] <= found.ratio <= found.ratio_interval_95[1]
    with pytest.raises(RuntimeRefused, match=r"b\.onnx takes z"):
        measure_latency(a, b, FEEDS, threads=1, rounds=12)


def test_candidates_are_ranked_against_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [_save(tmp_path / f"{name}.onnx") for name in "abc"]
    assert [rank.path for rank in rank_latencies(paths, FEEDS, rounds=6)] == paths
    _pretend(monkeypatch, np.array([[2.0], [1.0], [0.0]]) * np.ones((3, 30)))
    ranked = rank_latencies(paths, FEEDS)
    assert [rank.ms for rank in ranked] == pytest.approx([2, 1, 0], abs=1e-5)
    assert [rank.ratio for rank in ranked] == pytest.approx([1, 0.5, 0], abs=1e-5)
    assert ranked[0].ratio_interval_95 == (1, 1)


def test_too_few_rounds_for_an_interval_are_refused(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.onnx")
    with pytest.raises(WrongUsage, match="at least 6 rounds"):
        measure_latency(path, path, FEEDS, threads=1, rounds=5)
    with pytest.raises(WrongUsage, match="at least one file"):
        rank_latencies([], FEEDS)


@pytest.mark.skipif(not has_engine("openvino"), reason="openvino is not installed")
def test_openvino_is_timed_in_openvino(tmp_path: Path) -> None:
    a, b = _save(tmp_path / "a.onnx"), _save(tmp_path / "b.onnx")
    found = measure_latency(a, b, FEEDS, threads=1, rounds=12, seconds=2, engine="openvino")
    assert found.runtime.split()[0] == "openvino"
    assert found.original > 0 and found.compressed > 0
    assert len(rank_latencies([a, b], FEEDS, rounds=6, engine="openvino")) == 2


def test_a_browser_is_timed_in_a_browser_on_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def run(paths: list[Path], feeds: Any, **options: Any) -> BrowserRun:
        asked.append((paths, feeds, options["rounds"], options["seconds"]))
        return BrowserRun(np.array([[4.0] * 6, [1.0] * 6]), (), "the browser")

    monkeypatch.setattr(latency, "run_in_browser", run)
    a, b = tmp_path / "a.onnx", tmp_path / "b.onnx"
    found = measure_latency(a, b, FEEDS, threads=1, rounds=7, seconds=2, engine="browser")
    assert (found.runtime, found.original, found.ratio) == ("the browser", 4, 0.25)
    assert asked == [([a, b], FEEDS, 7, 2)]
    assert rank_latencies([a, b], FEEDS, engine="browser")[1].ratio_interval_95 == (0.25, 0.25)
    with pytest.raises(WrongUsage, match="one thread"):
        measure_latency(a, b, FEEDS, threads=2, engine="browser")
