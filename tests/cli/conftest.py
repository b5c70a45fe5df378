"""A stand-in for `packlight.api`: the command line is tested without compressing anything."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import RenderableType

from packlight.graph.anatomy import Anatomy, LayerAnatomy, OperatorAnatomy
from packlight.graph.layers import Unquantizable
from packlight.graph.spare import Redundancy
from packlight.measure.evidence import Budget, Evidence, LatencyEvidence, MetricEvidence, Pair
from packlight.report import evidence_to_json
from packlight.report.table import show_evidence
from packlight.tensors import TensorSpec

STATUS = {"met": 0, "best-effort": 3, "not-worth-it": 4}


def build_evidence(**changes: Any) -> Evidence:
    fields: dict[str, Any] = {
        "verdict": "met",
        "reason": "It is within the budget.",
        "model": "net.onnx",
        "target": "laptop",
        "budget": Budget(max_drop=0.01),
        "size_bytes": Pair(1000, 400),
        "metric": MetricEvidence(
            "top-1 agreement", 2000, 1.0, 0.994, 0.006, (0.003, 0.009), proven=True
        ),
        "latency_ms": LatencyEvidence("ort", 1, 0.4, 0.2, 0.5, (0.49, 0.51)),
        "latency_all_threads_ms": None,
        "peak_memory_bytes": None,
        "layers": (),
        "not_compressed": (),
    }
    return Evidence(**{**fields, **changes})


def build_anatomy(**changes: Any) -> Anatomy:
    layers = tuple(
        LayerAnatomy(
            f"conv{i}", "Conv", (), (8, 4, 3, 3), 250 + i, 1000 + i, 2_000_000 * i, i / 100
        )
        for i in range(30)
    )
    fields: dict[str, Any] = {
        "path": "net.onnx",
        "size_bytes": 1_094_689,
        "inputs": (TensorSpec("x", "float32", ("batch", 3, 32, 32)),),
        "outputs": (TensorSpec("y", "float32", (None, 10)),),
        "opsets": (("", 17),),
        "producer": "pytorch 2.1",
        "nodes": 61,
        "parameters": 272_474,
        "parameter_bytes": 1_089_896,
        "layer_bytes": 1_000_000,
        "macs": 40_551_040,
        "layers": layers,
        "operators": (OperatorAnatomy("Relu", 19, None), OperatorAnatomy("Conv", 30, 4.35)),
        "not_layers": (Unquantizable("m", "MatMul", (), "both inputs are computed"),),
        "redundancies": (Redundancy("dead nodes", ("a", "b", "c", "d", "e"), "Unread.", 2048),),
    }
    return Anatomy(**{**fields, **changes})


@dataclass(frozen=True)
class FakeResult:
    evidence: Evidence
    saved: list[tuple[Path, bool]]
    exit_status: int
    model: Path = Path("scratch/model.onnx")

    @property
    def verdict(self) -> str:
        return self.evidence.verdict

    def to_json(self) -> dict[str, object]:
        return evidence_to_json(self.evidence)

    def __rich__(self) -> RenderableType:
        return show_evidence(self.evidence)

    def save(self, out: Path, force: bool = False) -> Path:
        self.saved.append((out, force))
        return out


@dataclass(frozen=True)
class FakeForecast:
    lines: tuple[str, ...] = ("would quantize 21 layers", "about 330 KB")

    def to_json(self) -> dict[str, object]:
        return {"layers": 21}


@dataclass(frozen=True)
class FakeComparison:
    def evidence_json(self) -> dict[str, object]:
        return {"ratio": float("nan")}

    def __str__(self) -> str:
        return "A and B side by side"


@dataclass(frozen=True)
class FakeTarget:
    name: str = "laptop"
    title: str = "Laptop [x86]"
    runtime: str = "onnxruntime CPU"
    fast: tuple[str, ...] = ("int8", "float32")
    avoid: tuple[str, ...] = ("float16",)
    measured: str = "onnxruntime"
    note: str = ""


@dataclass
class FakeApi:
    """Remembers its calls; raises `fails` where it is set."""

    evidence: Evidence = field(default_factory=build_evidence)
    fails: BaseException | None = None
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    saved: list[tuple[Path, bool]] = field(default_factory=list)
    verification: Any = None

    def _call(self, name: str, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        self.calls.append((name, args, options))
        progress = options.pop("progress", None)
        if progress is not None:
            progress.stage("calibrate", 2)
            progress.step("conv1")
        if self.fails is not None:
            raise self.fails

    def is_language_model(self, model: Path) -> bool:
        return model.suffix == ".gguf"

    def compress(self, *args: Any, **options: Any) -> Any:
        self._call("compress", args, options)
        if options["dry_run"]:
            return FakeForecast()
        return FakeResult(self.evidence, self.saved, STATUS[self.evidence.verdict])

    def compare(self, *args: Any, **options: Any) -> Any:
        self._call("compare", args, options)
        return FakeComparison()

    def inspect(self, *args: Any, **options: Any) -> Any:
        self._call("inspect", args, options)
        return build_anatomy()

    def targets(self) -> tuple[FakeTarget, ...]:
        self._call("targets", (), {})
        return (FakeTarget(), FakeTarget(name="phone", measured="predicted", note="slow start"))

    def verify(self, *args: Any, **options: Any) -> Any:
        self._call("verify", args, options)
        return self.verification


@pytest.fixture
def make_anatomy() -> Callable[..., Anatomy]:
    """Builds an anatomy of 30 layers with some fields changed."""
    return build_anatomy


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeApi:
    """The stand-in, in the place of `packlight.api`; the current directory is an empty one."""
    fake = FakeApi()
    module = ModuleType("packlight.api")
    for name in ("compress", "compare", "inspect", "is_language_model", "targets", "verify"):
        setattr(module, name, getattr(fake, name))
    monkeypatch.setitem(sys.modules, "packlight.api", module)
    monkeypatch.chdir(tmp_path)
    return fake
