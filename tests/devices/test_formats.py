"""Every format: written in a child process, run in its own runtime, held to onnxruntime."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from packlight.devices.table import FORMATS
from packlight.errors import RuntimeRefused
from packlight.runtime import Process, convert_file
from packlight.targets import TARGETS

SHARE = 0.02
"""Of the outputs' range: kernels round sums to 8 bits each in its own way."""

HOSTILE = "../<b>\"'& $(x)\n.\u202e名"


def needs(target: str) -> None:
    missing = FORMATS[target].missing
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed (pip install packlight[{target}])")


def write(target: str, path: Path, out: Path, shapes: dict[str, Any]) -> Path:
    needs(target)
    out.mkdir(exist_ok=True)
    made = out / FORMATS[target].files[0]
    convert_file(FORMATS[target].module, path, made, shapes)
    return made


MEASURED = [name for name, form in FORMATS.items() if form.engine is not None]


@pytest.mark.parametrize("network", ["conv", "mlp"])
@pytest.mark.parametrize("target", MEASURED)
def test_int8_layers_stay_int8_and_give_what_onnxruntime_gives(
    target: str, network: str, networks: dict[str, Any], runtimes: Process, tmp_path: Path
) -> None:
    found = networks[network]
    rows = found.x[:16]
    made = write(target, found.path, tmp_path / "out", {"x": rows[:1].shape})
    session = runtimes.load(made, engine=FORMATS[target].engine)
    reference, original = runtimes.load(found.path), runtimes.load(found.original)
    assert [spec.name for spec in session.inputs] == ["x"]
    assert [spec.name for spec in session.outputs] == ["y"]
    wanted, floats, got = (
        np.concatenate([one.run({"x": row[None]})["y"] for row in rows])
        for one in (reference, original, session)
    )
    size = np.ptp(floats)
    assert np.abs(got - wanted).max() <= SHARE * size
    # The rounding is really there: the file does not compute the original.
    assert np.abs(got - floats).max() > 1e-4 * size


@pytest.mark.parametrize("target", list(FORMATS))
def test_the_same_graph_gives_the_same_bytes(
    target: str, networks: dict[str, Any], tmp_path: Path
) -> None:
    found = networks["mlp"]
    once, again = (
        write(target, found.path, tmp_path / name, {"x": [1, 24]}) for name in ("a", "b")
    )
    for path in once.parent.iterdir():
        assert path.read_bytes() == (again.parent / path.name).read_bytes(), path.name


def test_a_core_ml_package_holds_int8_weights(networks: dict[str, Any], tmp_path: Path) -> None:
    made = write("coreml", networks["mlp"].path, tmp_path / "out", {"x": [1, 24]})
    with zipfile.ZipFile(made) as archive:
        names = archive.namelist()
        assert all(name.startswith("model.mlpackage/") and ".." not in name for name in names)
        archive.extractall(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it imports
        import coremltools

    spec = coremltools.proto.Model_pb2.Model()
    spec.ParseFromString(next((tmp_path / "model.mlpackage").rglob("*.mlmodel")).read_bytes())
    assert [one.name for one in spec.description.input] == ["x"]
    assert [one.name for one in spec.description.output] == ["y"]
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    kinds = [operation.type for operation in block.operations]
    assert kinds.count("constexpr_affine_dequantize") == 3
    assert kinds.count("quantize") >= 3


@pytest.mark.parametrize("target", list(FORMATS))
def test_what_cannot_be_written_is_named(
    target: str, write_model: Callable[..., Path], tmp_path: Path
) -> None:
    path = tmp_path / "odd.onnx"
    head = '<ir_version: 8, opset_import: ["" : 17, "somewhere" : 1]>\n'
    text = "g (float[1, 4] x) => (float[1, 4] y) { h = Neg (x) y = somewhere.Foo (h) }"
    onnx.save(onnx.parser.parse_model(head + text), path)
    with pytest.raises(RuntimeRefused, match="Foo"):
        write(target, path, tmp_path / "out", {"x": [1, 4]})


@pytest.mark.parametrize("target", list(FORMATS))
def test_hostile_names_are_only_names(target: str, runtimes: Process, tmp_path: Path) -> None:
    weight = onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32), f"{HOSTILE}w")
    node = onnx.helper.make_node(
        "MatMul", [f"{HOSTILE}x", f"{HOSTILE}w"], [f"{HOSTILE}y"], name=HOSTILE
    )
    values = [
        onnx.helper.make_tensor_value_info(f"{HOSTILE}{name}", onnx.TensorProto.FLOAT, [1, 4])
        for name in "xy"
    ]
    graph = onnx.helper.make_graph([node], HOSTILE, values[:1], values[1:], [weight])
    opset = [onnx.helper.make_opsetid("", 17)]
    path = tmp_path / "hostile.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    made = write(target, path, tmp_path / "out", {f"{HOSTILE}x": [1, 4]})
    assert {one.name for one in made.parent.iterdir()} <= set(FORMATS[target].files)
    engine = FORMATS[target].engine
    if engine is not None:
        feeds = {f"{HOSTILE}x": np.arange(4, dtype=np.float32)[None]}
        found = runtimes.load(made, engine=engine).run(feeds)
        np.testing.assert_allclose(found[f"{HOSTILE}y"], [[0, 1, 2, 3]])


@pytest.mark.parametrize("target", MEASURED)
def test_a_broken_file_is_refused(target: str, runtimes: Process, tmp_path: Path) -> None:
    needs(target)
    path = tmp_path / FORMATS[target].files[0]
    path.write_bytes(b"hello world" * 40)
    with pytest.raises(RuntimeRefused, match=path.name), Process() as process:
        process.load(path, engine=FORMATS[target].engine)


def test_every_format_belongs_to_a_target() -> None:
    assert {one.name for one in TARGETS if one.own_file} == set(FORMATS)
    for name, form in FORMATS.items():
        assert form.extra == name
        assert form.needs and form.title and form.files
        assert (form.engine is None) == bool(form.elsewhere)


def test_names_for_core_ml_are_plain_and_stay_apart() -> None:
    needs("coreml")
    from packlight.devices.coreml import plain_names

    assert plain_names(["a.b", "a/b", "1x", "", "a.b", "名"]) == {
        "a.b": "a_b",
        "a/b": "a_b_",
        "1x": "_1x",
        "": "_",
        "名": "__",
    }
