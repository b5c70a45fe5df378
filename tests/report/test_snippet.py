from __future__ import annotations

import ast
from collections.abc import Callable

import pytest

from packlight.measure.evidence import Evidence
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
