"""Modules and exported programs come in as ONNX; hostile .pt2 files run nothing."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed (packlight[heal])")

import packlight  # noqa: E402
from packlight.errors import UnusableModel, UnusableOutput, WrongUsage  # noqa: E402
from packlight.graph.torch.archive import load_program  # noqa: E402
from packlight.graph.torch.come_in import from_torch  # noqa: E402
from packlight.graph.torch.enter import is_torch_module  # noqa: E402
from packlight.graph.torch.module import to_torch  # noqa: E402
from packlight.runtime import Process  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(4)
        self.drop = torch.nn.Dropout(0.5)
        self.head = torch.nn.Linear(4, 5)

    def forward(self, x: Any) -> Any:
        return self.head(self.drop(torch.relu(self.norm(self.conv(x))).mean((2, 3))))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("saved") / "net.pt2"
    batch = torch.export.Dim("batch")
    x = torch.randn(2, 3, 8, 8)
    program = torch.export.export(Net().eval(), (x,), dynamic_shapes=({0: batch},))
    torch.export.save(program, path)
    return path


def test_a_module_becomes_a_file_for_any_batch(tmp_path: Path, process: Process) -> None:
    net = Net().train()
    net.drop.eval()
    x = torch.randn(1, 3, 8, 8)
    model = from_torch(net, x, tmp_path / "net.onnx", process=process)
    assert model.inputs[0].shape == ("batch", 3, 8, 8)
    assert [value.shape for value in model.outputs] == [("batch", 5)]
    assert net.training and net.conv.training and not net.drop.training
    assert Path(__file__).name.encode() not in (tmp_path / "net.onnx").read_bytes()
    back = to_torch(tmp_path / "net.onnx")
    more = torch.randn(7, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(back(more), net.eval()(more), rtol=1e-4, atol=1e-5)


def test_several_inputs_and_outputs(tmp_path: Path, process: Process) -> None:
    class Two(torch.nn.Module):
        def forward(self, x: Any, y: Any) -> Any:
            return {"sum": x + y, "both": [x * 2, y.sum(1)]}

    given = (torch.randn(3, 8), np.ones((3, 8), np.float32))
    model = from_torch(Two(), given, tmp_path / "two.onnx", process=process)
    assert [spec.shape for spec in model.inputs] == [("batch", 8), ("batch", 8)]
    assert len(model.outputs) == 3


def test_a_module_that_holds_its_batch_keeps_it(tmp_path: Path, process: Process) -> None:
    class Fixed(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x + torch.arange(3.0).reshape(3, 1)

    model = from_torch(Fixed(), torch.randn(3, 8), tmp_path / "fixed.onnx", process=process)
    assert model.inputs[0].shape == (3, 8)


def test_a_file_that_computes_something_else_is_refused(tmp_path: Path, process: Process) -> None:
    class Random(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x + torch.randn_like(x)

    with pytest.raises(UnusableModel, match="differs by"):
        from_torch(Random(), torch.randn(2, 8), tmp_path / "random.onnx", process=process)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UnusableOutput, match="cannot be written"):
        from_torch(Net(), torch.randn(1, 3, 8, 8), tmp_path / "no" / "net.onnx", process=process)


def test_what_cannot_be_exported_is_said(tmp_path: Path, process: Process) -> None:
    class Branches(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x.numpy().tolist()

    with pytest.raises(UnusableModel, match="exporter cannot"):
        from_torch(Branches(), torch.randn(2, 8), tmp_path / "no.onnx", process=process)


def test_examples_must_be_tensors(tmp_path: Path) -> None:
    for wrong in ("photo.png", {"x": torch.zeros(2)}, (1, 2)):
        with pytest.raises(WrongUsage, match="example inputs"):
            from_torch(Net(), wrong, tmp_path / "net.onnx")


def test_an_exported_program_becomes_a_file(saved: Path, tmp_path: Path, process: Process) -> None:
    x = torch.randn(1, 3, 8, 8)
    model = from_torch(saved, x, tmp_path / "net.onnx", process=process)
    assert model.inputs[0].shape == ("batch", 3, 8, 8)
    again = from_torch(load_program(saved), x, tmp_path / "again.onnx", process=process)
    assert [node.op_type for node in again.ir.graph] == [node.op_type for node in model.ir.graph]


def test_modules_are_told_from_other_things(saved: Path) -> None:
    assert is_torch_module(Net())
    assert is_torch_module(load_program(saved))
    assert not is_torch_module("net.pt2")
    assert not is_torch_module(np.zeros(2))


class Harmful:
    """Unpickling it writes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


def rewrite(saved: Path, path: Path, change: Callable[[str, bytes], bytes]) -> Path:
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename, change(entry.filename, old.read(entry)))
    return path


def in_program(change: Callable[[Any], None]) -> Callable[[str, bytes], bytes]:
    def run(name: str, content: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return content
        program = json.loads(content)
        change(program)
        return json.dumps(program).encode()

    return run


def test_pickled_sample_inputs_are_not_read(saved: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    buffer = io.BytesIO()
    torch.save((Harmful(mark),), buffer)

    def change(name: str, content: bytes) -> bytes:
        return buffer.getvalue() if "sample_inputs" in name else content

    program = load_program(rewrite(saved, tmp_path / "net.pt2", change))
    assert not mark.exists()
    assert program.module()(torch.randn(3, 3, 8, 8)).shape == (3, 5)


def test_pickled_weights_are_refused(saved: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    buffer = io.BytesIO()
    torch.save(Harmful(mark), buffer)

    def change(name: str, content: bytes) -> bytes:
        if name.endswith("model_weights_config.json"):
            config = json.loads(content)
            config["config"]["head.bias"]["use_pickle"] = True
            return json.dumps(config).encode()
        return buffer.getvalue() if name.endswith("weights/weight_0") else content

    with pytest.raises(UnusableModel, match="pickled object"):
        load_program(rewrite(saved, tmp_path / "net.pt2", change))
    assert not mark.exists()


def test_sizes_that_are_python_are_refused(saved: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    text = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    content = saved.read_bytes()

    def change(name: str, member: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return member
        symbol = json.loads(member)["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0]
        old = json.dumps(symbol["as_expr"]["expr_str"]).encode()
        assert old in member
        return member.replace(old, json.dumps(text).encode())

    with pytest.raises(UnusableModel, match="has a size"):
        load_program(rewrite(saved, tmp_path / "net.pt2", change))
    assert not mark.exists()
    assert saved.read_bytes() == content


@pytest.mark.parametrize(
    "target", ["torch.os.system", "torch.ops.aten.conv2d.default.__class__", "_operator.call"]
)
def test_other_functions_than_operators_are_refused(
    saved: Path, tmp_path: Path, target: str
) -> None:
    def change(program: Any) -> None:
        program["graph_module"]["graph"]["nodes"][0]["target"] = target

    with pytest.raises(UnusableModel, match="no operator"):
        load_program(rewrite(saved, tmp_path / "net.pt2", in_program(change)))


def test_guards_and_metadata_are_left_out(saved: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"

    def change(program: Any) -> None:
        program["guards_code"] = [f"__import__('pathlib').Path({str(mark)!r}).touch() is None"]

    program = load_program(rewrite(saved, tmp_path / "net.pt2", in_program(change)))
    assert not program._guards_code
    program.module()(torch.randn(2, 3, 8, 8))
    assert not mark.exists()


def test_other_containers_and_members_are_refused(saved: Path, tmp_path: Path) -> None:
    def change(program: Any) -> None:
        signature = program["graph_module"]["module_call_graph"][0]["signature"]
        signature["in_spec"] = signature["in_spec"].replace("builtins.tuple", "collections.odd")

    with pytest.raises(UnusableModel, match=r"collections\.odd"):
        load_program(rewrite(saved, tmp_path / "tree.pt2", in_program(change)))
    extra = rewrite(saved, tmp_path / "compiled.pt2", lambda name, content: content)
    with zipfile.ZipFile(extra, "a") as archive:
        archive.writestr("net/data/aotinductor/model/a.so", b"")
    with pytest.raises(UnusableModel, match="aotinductor"):
        load_program(extra)


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    for content in (b"", b"PK\x03\x04", bytes(200)):
        path.write_bytes(content)
        with pytest.raises(UnusableModel, match=r"net\.pt2"):
            load_program(path)
    with pytest.raises(UnusableModel, match="cannot be read"):
        load_program(tmp_path / "absent.pt2")


def test_a_module_and_a_program_are_compressed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, example = Net().eval(), torch.zeros(2, 3, 8, 8)
    data = np.random.default_rng(0).standard_normal((60, 3, 8, 8)).astype(np.float32)
    found = packlight.compress(net, example_inputs=example, data=data, max_drop=0.5)
    assert isinstance(found, packlight.Result)
    assert found.evidence.model == "net.onnx"
    folder = found.save(tmp_path / "out")
    with torch.no_grad():
        want = net(torch.from_numpy(data)).numpy()
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    (got,) = session.run(None, {session.get_inputs()[0].name: data})
    assert np.square(got - want).sum() < 0.01 * np.square(want).sum()
    program = tmp_path / "own.pt2"
    torch.export.save(torch.export.export(net, (example,)), program)
    forecast = packlight.compress(program, dry_run=True)
    assert isinstance(forecast, packlight.Forecast) and forecast.model.endswith("own.onnx")


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(WrongUsage, match="needs example_inputs"):
        packlight.compress(Net())
    with pytest.raises(WrongUsage, match=r"not a dict"):
        packlight.compress({})
