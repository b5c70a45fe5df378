"""Parameters return into the graph: the same bytes without training, the trained ones with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed (packlight[heal])")

from torch_bench import parse, run_runtime  # noqa: E402

import packlight  # noqa: E402
from packlight.errors import UnusableModel, WrongUsage  # noqa: E402
from packlight.graph.model import Model, save_model  # noqa: E402
from packlight.graph.torch.module import GraphModule  # noqa: E402
from packlight.graph.torch.naming import constant_tensor, name_constants  # noqa: E402
from packlight.graph.torch.returning import return_parameters  # noqa: E402

RANDOM = np.random.default_rng(7)
TEXT = """g (float[n,8] x) => (float[n,4] y) {
    c = Constant <value_floats = [1.0, 2.0, 3.0, 4.0]> ()
    h = MatMul (x, w)
    y = Add (h, c)
}"""


def draw(*shape: int) -> Any:
    return RANDOM.standard_normal(shape).astype(np.float32)


def contents(model: ir.Model) -> dict[str, bytes]:
    found = {}
    for value, name in name_constants(model).items():
        tensor = constant_tensor(value)
        assert tensor is not None
        if tensor.dtype != ir.DataType.STRING:
            found[name] = tensor.tobytes()
    return found


def test_real_models_come_back_byte_for_byte(real: Path, tmp_path: Path) -> None:
    paths = sorted([*(real / "onnx").rglob("*.onnx"), *(real / "cifar10").glob("*.onnx")])
    for path in paths:
        model = packlight.load(path)
        back = return_parameters(packlight.to_torch(model), model)
        assert isinstance(back, Model)
        assert contents(back.ir) == contents(model.ir)
        if path.stem in ("resnet20", "silero_vad"):
            save_model(model.ir, tmp_path / "before.onnx")
            save_model(back.ir, tmp_path / "after.onnx")
            assert (tmp_path / "before.onnx").read_bytes() == (tmp_path / "after.onnx").read_bytes()


def test_trained_parameters_return_and_the_model_stays() -> None:
    proto = parse(TEXT, w=draw(8, 4))
    model = ir.from_proto(proto)
    before = contents(model)
    module = GraphModule(model)
    assert list(module.parameters_by_name) == ["w", "c"]
    x = draw(5, 8)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module(torch.from_numpy(x)).square().mean().backward()
    optimizer.step()
    back = return_parameters(module, model)
    assert contents(model) == before
    changed = contents(back)
    assert all(changed[name] != before[name] for name in ("w", "c"))
    expected = module(torch.from_numpy(x)).detach()
    found = run_runtime(ir.to_proto(back), {"x": x})[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_types_are_kept(dtype: Any) -> None:
    text = TEXT.replace("float[", "double[" if dtype == np.float64 else "float16[")
    text = text.replace("y = Add (h, c)", "y = Add (h, d)").replace(
        "c = Constant <value_floats = [1.0, 2.0, 3.0, 4.0]> ()", ""
    )
    model = ir.from_proto(parse(text, w=draw(8, 4).astype(dtype), d=draw(4).astype(dtype)))
    module = GraphModule(model).to(torch.float32)
    assert contents(return_parameters(module, model))["d"] == contents(model)["d"] or (
        dtype == np.float64
    )
    with torch.no_grad():
        module.parameters_by_name["w"].fill_(0.5)
    back = return_parameters(module, model).graph.initializers["w"].const_value
    assert back is not None
    assert back.numpy().dtype == dtype
    assert (back.numpy() == 0.5).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_parameters_are_refused(value: float) -> None:
    model = ir.from_proto(parse(TEXT, w=draw(8, 4)))
    module = GraphModule(model)
    with torch.no_grad():
        module.parameters_by_name["w"][3, 1] = value
    with pytest.raises(UnusableModel, match="NaN or infinity in 'w'"):
        return_parameters(module, model)


def test_another_model_is_refused() -> None:
    module = GraphModule(ir.from_proto(parse(TEXT, w=draw(8, 4))))
    other = ir.from_proto(parse(TEXT.replace("w)", "v)"), v=draw(8, 4)))
    with pytest.raises(WrongUsage, match="no constant 'w'"):
        return_parameters(module, other)
    wider = ir.from_proto(parse(TEXT, w=draw(9, 4)))
    with pytest.raises(WrongUsage, match=r"shape \[8, 4\].*\[9, 4\]"):
        return_parameters(module, wider)


def test_weights_in_inner_graphs_return(real: Path) -> None:
    model = packlight.load(real / "onnx" / "silero_vad.onnx")
    module = packlight.to_torch(model)
    name = next(iter(module.parameters_by_name))
    with torch.no_grad():
        module.parameters_by_name[name].mul_(2)
    before, after = contents(model.ir), contents(return_parameters(module, model).ir)
    assert [key for key in before if before[key] != after[key]] == [name]
