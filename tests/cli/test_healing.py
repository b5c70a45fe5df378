"""Training that was interrupted goes on when the same command is given again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("torch")

from packlight.cli import app
from packlight.graph.layers import find_layers
from packlight.graph.model import load_model
from packlight.graph.torch import distill
from packlight.recipe import Recipe, write_recipe


def test_a_killed_run_goes_on_and_cleans_up(
    tmp_path: Path, write_mlp: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    net = write_mlp(tmp_path / "net.onnx", hidden=64)
    rows = np.random.default_rng(3).standard_normal((600, 16)).astype(np.float32)
    np.savez(tmp_path / "s.npz", x=rows)
    layers = find_layers(load_model(net).ir)
    recipe = Recipe(layers=tuple((layer.name, "int2") for layer in layers), tune_steps=60)
    (tmp_path / "r.yaml").write_text(write_recipe(recipe))
    step = distill._Training.step
    first: list[int] = []

    def interrupted(self: Any, number: int, share: float) -> float:
        if number == 33:
            raise KeyboardInterrupt
        return step(self, number, share)

    def noting(self: Any, number: int, share: float) -> float:
        first.append(number)
        return step(self, number, share)

    argv = ["compress", "net.onnx", "--data", "s.npz", "--recipe", "r.yaml", "--max-drop", "50%"]
    monkeypatch.setattr(distill._Training, "step", interrupted)
    assert CliRunner().invoke(app, argv).exit_code == 130
    assert (tmp_path / "net.packed.healing" / "tuned.npz").is_file()
    assert not (tmp_path / "net.packed").exists()
    monkeypatch.setattr(distill._Training, "step", noting)
    done = CliRunner().invoke(app, argv)
    assert done.exit_code in (0, 3, 4), done.output
    assert first[0] == 30  # the last look before
    assert not (tmp_path / "net.packed.healing").exists()
    report = json.loads((tmp_path / "net.packed" / "report.json").read_text())
    assert any("went on from step 30" in note for note in report["tuning"]["notes"])
    assert report["tuning"]["loss_after"] < report["tuning"]["loss_before"]
    # From the beginning it comes to the same.
    monkeypatch.setattr(distill._Training, "step", step)
    assert CliRunner().invoke(app, [*argv, "--out", "whole"]).exit_code == done.exit_code
    packed, whole = (tmp_path / name / "model.onnx" for name in ("net.packed", "whole"))
    assert packed.read_bytes() == whole.read_bytes()
