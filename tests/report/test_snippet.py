from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import replace

import pytest

from packlight.measure.evidence import DeviceFile, Evidence
from packlight.report.snippet import how_to_run
from packlight.tensors import TensorSpec


@pytest.mark.parametrize(
    "name", ["image", "input:0", "a 'quoted' name", "x\nimport os\n", 'y"""', "z: q"]
)
def test_the_snippet_feeds_every_input_by_its_name(
    make_evidence: Callable[..., Evidence], name: str
) -> None:
    inputs = (str(TensorSpec(name, "float32", ("n", 3))), "mask: bool[1]")
    code = ast.parse(how_to_run(make_evidence(inputs=inputs)))
    (imported, session, run) = code.body
    assert ast.unparse(imported) == "import onnxruntime"
    assert "model.onnx" in ast.unparse(session)
    (feeds,) = (node for node in ast.walk(run) if isinstance(node, ast.Dict))
    assert [key.value for key in feeds.keys if isinstance(key, ast.Constant)] == [name, "mask"]


@pytest.mark.parametrize("target", ["openvino", "litert", "executorch", "coreml"])
def test_a_file_of_the_targets_own_is_run_too(
    make_evidence: Callable[..., Evidence], target: str
) -> None:
    inputs = (str(TensorSpec("x\nimport os\n", "float32", ("n", 3))),)
    device = DeviceFile("A format", ("model.own",), 10)
    found = make_evidence(inputs=inputs, target=target, device_file=device)
    code = ast.parse(how_to_run(found))
    modules = {
        node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in code.body
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert len(modules) > 1 and "os" not in modules
    without = replace(found, device_file=replace(device, files=()))
    assert len(ast.parse(how_to_run(without)).body) == 3
