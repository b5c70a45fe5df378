"""The architecture, held: who imports whom is read from the source, nothing is run.

Each check is a function from sources to complaints, so that it is itself tested on
sources that break the rule.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import packlight

SOURCE = Path(__file__).parents[1] / "src" / "packlight"

# A room may import rooms of lower floors only. Those on GROUND import nothing of the house.
FLOORS = {
    "maths": 0,
    "errors": 0,
    "progress": 0,
    "tensors": 0,
    "version": 0,
    "durable": 0,
    "nearest": 0,
    "scratch": 0,
    "choices": 0.5,  # what a recipe is made of
    "ranks": 0.5,
    "strict_json": 0.5,
    "recipe": 1,
    "targets": 1,
    "samples": 1,
    "runtime": 1,
    "graph": 2,
    "measure": 2,
    "llm": 2,
    "transport": 2,
    "plan": 3,
    "report": 3,
    "proof": 3.25,
    "devices": 3.25,
    "language": 3.5,
    "api": 4,
    "serve": 4.5,
    "cli": 5,
    "__init__": 6,
    "__main__": 6,
}

# Libraries that only some rooms may touch.
OWNERS = {
    "onnxruntime": {"runtime"},
    "onnx": {"graph", "llm/onnx"},
    "onnx_ir": {"graph", "devices"},
    "onnxscript": {"graph"},
    "onnxslim": {"graph"},
    "torch": {
        *("graph/torch", "llm", "devices/exported.py"),
        *("runtime/transformers_engine.py", "runtime/executorch.py"),
    },
    "transformers": {"llm", "runtime/transformers_engine.py"},
    "tokenizers": {"llm", "runtime/transformers_engine.py", "runtime/ort_text.py"},
    "openvino": {"runtime"},
    "ai_edge_litert": {"devices/litert", "runtime"},
    "flatbuffers": {"devices/litert"},
    "executorch": {"devices", "runtime"},
    "coremltools": {"devices"},
    "llama_cpp": {"runtime"},
    "starlette": {"serve"},
    "uvicorn": {"serve"},
    "gguf": {"llm/formats"},
    "joblib": {"plan"},
    "ray": {"plan"},
}

FORBIDDEN_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}

# joblib hands tasks to other processes; it must not read files, which is what it pickles for.
ALLOWED_MODULES = {"plan/workers.py": {"joblib"}}
FORBIDDEN_CALLS = {"eval", "exec", "__import__"}

PUBLIC = {
    "Anatomy",
    "Comparison",
    "Forecast",
    "PacklightError",
    "Result",
    "Verification",
    "__version__",
    "compare",
    "compress",
    "inspect",
    "load",
    "pack",
    "to_torch",
    "unpack",
    "verify",
}

LONGEST_FILE = 450

Sources = Mapping[str, str]  # path below src/packlight -> text


def read_sources() -> Sources:
    return {
        path.relative_to(SOURCE).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(SOURCE.rglob("*.py"))
    }


def room_of(path: str) -> str:
    return path.split("/")[0].removesuffix(".py")


def imports_of(path: str, text: str) -> Iterator[tuple[int, str]]:
    """Yields (line, dotted name) of everything a file imports, wherever in it that stands."""
    package = ["packlight", *path.split("/")[:-1]]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *filter(None, [node.module])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"
        elif isinstance(node, ast.Call) and name_of(node.func).endswith("import_module"):
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield node.lineno, argument.value


def name_of(node: ast.expr) -> str:
    """Returns the dotted name of what is called, as far as it is one."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def find_upward_imports(sources: Sources) -> list[str]:
    found = []
    for path, text in sources.items():
        room = room_of(path)
        if room not in FLOORS:
            found.append(f"{path}: the room {room} is on no floor")
            continue
        for line, name in imports_of(path, text):
            parts = name.split(".")
            if parts[0] != "packlight" or parts[1:2] == [room]:
                continue
            other = parts[1] if len(parts) > 1 and parts[1] in FLOORS else "__init__"
            if FLOORS[other] >= FLOORS[room]:
                found.append(
                    f"{path}:{line}: {room} (floor {FLOORS[room]}) imports"
                    f" {name} (floor {FLOORS[other]})"
                )
    return found


def find_borrowed_libraries(sources: Sources) -> list[str]:
    return [
        f"{path}:{line}: {name} belongs to {', '.join(sorted(OWNERS[name.split('.')[0]]))}"
        for path, text in sources.items()
        for line, name in imports_of(path, text)
        if not lives_in(path, OWNERS.get(name.split(".")[0], {room_of(path)}))
    ]


def lives_in(path: str, places: set[str]) -> bool:
    """Tells whether a file is in these rooms, or in these folders of rooms, or one of these."""
    inside = any(path.startswith(f"{place}/") for place in places)
    return inside or path in places or room_of(path) in places


def find_code_from_data(sources: Sources) -> list[str]:
    """Finds what could run or build objects from a hostile file."""
    found = []
    for path, text in sources.items():
        found += [
            f"{path}:{line}: imports {name}"
            for line, name in imports_of(path, text)
            if name.split(".")[0] in FORBIDDEN_MODULES - ALLOWED_MODULES.get(path, set())
        ]
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.Call):
                continue
            called = name_of(node.func)
            if called.removeprefix("builtins.") in FORBIDDEN_CALLS:
                found.append(f"{path}:{node.lineno}: calls {called}")
            if called in {"joblib.load", "joblib.dump"}:
                found.append(f"{path}:{node.lineno}: calls {called}, which pickles")
            if called in {"yaml.load", "yaml.unsafe_load", "yaml.full_load"}:
                found.append(f"{path}:{node.lineno}: calls {called}, not yaml.safe_load")
            for keyword in node.keywords:
                if keyword.arg == "allow_pickle" and not (
                    isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                ):
                    found.append(f"{path}:{node.lineno}: allow_pickle is not False")
    return found


def find_long_files(sources: Sources) -> list[str]:
    return [
        f"{path}: {lines} lines, at most {LONGEST_FILE}"
        for path, text in sources.items()
        if (lines := len(text.splitlines())) > LONGEST_FILE
    ]


def show(complaints: list[str]) -> str:
    return "\n" + "\n".join(complaints)


def test_rooms_import_downwards_only():
    complaints = find_upward_imports(read_sources())
    assert not complaints, show(complaints)


def test_libraries_stay_in_the_rooms_that_own_them():
    complaints = find_borrowed_libraries(read_sources())
    assert not complaints, show(complaints)


def test_nothing_is_unpickled_or_evaluated():
    complaints = find_code_from_data(read_sources())
    assert not complaints, show(complaints)


def test_files_stay_short():
    complaints = find_long_files(read_sources())
    assert not complaints, show(complaints)


def test_the_public_names_are_these():
    assert set(packlight.__all__) == PUBLIC
    assert len(packlight.__all__) == len(PUBLIC)
    assert all(hasattr(packlight, name) for name in packlight.__all__)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("maths/grids.py", "from packlight.errors import WrongUsage"),
        ("graph/model.py", "import packlight.plan.solve"),
        ("graph/rewrite/quantize.py", "from ...measure import evidence"),
        ("samples/open.py", "from packlight import runtime"),
        ("samples/open.py", "def late():\n    from packlight.runtime import Process"),
        ("runtime/process.py", "import packlight"),
        ("report/html.py", "import importlib\nimportlib.import_module('packlight.api')"),
        ("attic/old.py", ""),
    ],
)
def test_an_upward_import_is_found(path: str, text: str):
    assert find_upward_imports({path: text})


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("maths/rounding.py", "from .grids import quantize"),
        ("graph/rewrite/quantize.py", "from ...maths import grids\nfrom ..model import Model"),
        ("measure/latency.py", "from packlight.runtime import Process"),
        ("cli.py", "from packlight.api import compress"),
        ("__init__.py", "from packlight.api import compress"),
    ],
)
def test_a_downward_import_is_allowed(path: str, text: str):
    assert find_upward_imports({path: text}) == []


@pytest.mark.parametrize(
    ("path", "text", "allowed"),
    [
        ("graph/model.py", "import onnx_ir as ir", True),
        ("runtime/worker.py", "def start():\n    import onnxruntime", True),
        ("measure/latency.py", "import onnxruntime", False),
        ("runtime/worker.py", "from onnx import numpy_helper", False),
        ("maths/grids.py", "import torch.nn as nn", False),
        ("graph/model.py", "import onnxruntime.quantization", False),
        ("graph/model.py", "import torch", False),
        ("graph/torch/module.py", "import torch", True),
    ],
)
def test_a_borrowed_library_is_found(path: str, text: str, allowed: bool):
    assert (find_borrowed_libraries({path: text}) == []) is allowed


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from joblib import load",
        "eval('1 + 1')",
        "import builtins\nbuiltins.exec('')",
        "import numpy as np\nnp.load('a.npy', allow_pickle=True)",
        "import yaml\nyaml.load(text, Loader=yaml.Loader)",
    ],
)
def test_code_from_data_is_found(text: str):
    assert find_code_from_data({"samples/open.py": text})


def test_joblib_is_for_workers_alone_and_never_for_files():
    text = "def run():\n    import joblib\n    return joblib.Parallel(n_jobs=2)"
    assert find_code_from_data({"plan/workers.py": text}) == []
    assert find_code_from_data({"plan/search.py": text})
    assert find_code_from_data({"plan/workers.py": "import joblib\njoblib.load('a.pkl')"})


def test_ordinary_calls_are_not_code_from_data():
    text = "import re\nre.compile('a')\nmodel.eval()\nnp.load('a.npy', allow_pickle=False)"
    assert find_code_from_data({"samples/open.py": text}) == []


def test_a_long_file_is_found():
    assert find_long_files({"plan/search.py": "\n" * (LONGEST_FILE + 1)})
    assert find_long_files({"plan/search.py": "\n" * LONGEST_FILE}) == []
