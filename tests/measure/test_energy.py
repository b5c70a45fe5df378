"""Energy by the processor's counters, which stand in a folder here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from packlight.measure import energy
from packlight.measure.energy import measure_energy, read_counters, used_between


def put(folder: Path, zone: str, name: str, used: int, most: int = 1_000_000) -> None:
    (folder / zone).mkdir(parents=True, exist_ok=True)
    for part, value in (("name", name), ("energy_uj", used), ("max_energy_range_uj", most)):
        (folder / zone / part).write_text(f"{value}\n")


def test_packages_are_read_and_their_parts_are_not(tmp_path: Path) -> None:
    assert read_counters(tmp_path / "absent") is None
    put(tmp_path, "intel-rapl:0", "package-0", 5)
    put(tmp_path, "intel-rapl:0:0", "core", 3)
    put(tmp_path, "intel-rapl:1", "psys", 7)
    assert read_counters(tmp_path) == {"intel-rapl:0": (5, 1_000_000)}
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("?")
    assert read_counters(tmp_path) is None


def test_a_counter_that_began_again_is_counted_on() -> None:
    before = {"a": (900_000, 1_000_000), "b": (100, 1_000_000)}
    after = {"a": (400_000, 1_000_000), "b": (500_100, 1_000_000)}
    assert used_between(before, after) == pytest.approx(0.5 + 0.5)


def test_energy_is_power_times_latency(
    monkeypatch: pytest.MonkeyPatch, write_mlp: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_mlp(tmp_path / "net.onnx", hidden=16)
    feeds = {"x": np.zeros((1, 16), np.float32)}
    assert measure_energy(path, feeds, engine="onnxruntime", folder=tmp_path / "absent") is None
    readings = iter([{"a": (0, 10**9)}, {"a": (0, 10**9)}, {"a": (30_000_000, 10**9)}])
    clock = iter([10.0, 12.0])
    monkeypatch.setattr(energy, "read_counters", lambda folder: next(readings))
    monkeypatch.setattr(energy.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(
        energy.Process, "time", lambda self, sessions, feeds, **_: np.array([[1.0, 2.0, 3.0]])
    )
    monkeypatch.setattr(energy.Process, "load", lambda self, path, **_: object())
    found = measure_energy(path, feeds, engine="onnxruntime")
    assert found == pytest.approx(30 / 2 * 2.0)  # 15 W for 2 ms: 30 mJ
