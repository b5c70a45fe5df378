"""The graph as a module: it computes what the runtime computes, and can be trained."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed (packlight[heal])")

from torch_bench import build, check_like_runtime, parse, run_runtime  # noqa: E402

import packlight  # noqa: E402
from packlight.errors import MissingExtra, UnsupportedOperator, UnusableModel, WrongUsage  # noqa: E402
from packlight.graph.torch import enter  # noqa: E402
from packlight.graph.torch.module import GraphModule  # noqa: E402
from packlight.samples import feeds_of, generate_samples  # noqa: E402

RANDOM = np.random.default_rng(5)

# Differences to the runtime as a part of the largest value; sums of very different numbers
# (decoded boxes, a state over many steps) leave more.
TOLERANCES = {"yolox_nano": 2e-4, "yolox_nano_ext": 2e-4, "silero_vad": 2e-4}
TOLERANCES["silero_vad_op18_ifless"] = 2e-4


def draw(*shape: int) -> Any:
    return RANDOM.standard_normal(shape).astype(np.float32)


def test_all_real_models_give_what_the_runtime_gives(real: Path) -> None:
    paths = sorted([*(real / "onnx").rglob("*.onnx"), *(real / "cifar10").glob("*.onnx")])
    assert len(paths) >= 20
    for path in paths:
        model = packlight.load(path)
        module = packlight.to_torch(model)
        samples = generate_samples(model.inputs, count=1, seed=3)
        feeds = next(iter(feeds_of(samples, (0,), model.inputs, batch=1)))
        with torch.no_grad():
            found = module.run({name: torch.tensor(array) for name, array in feeds.items()})
        expected = run_file(path, dict(feeds))
        tolerance = TOLERANCES.get(path.stem, 1e-5)
        for spec, one in zip(model.outputs, expected, strict=True):
            array = found[spec.name].numpy()
            assert array.dtype == one.dtype
            assert array.shape == one.shape
            largest = np.abs(one).max(initial=0)
            np.testing.assert_allclose(
                array, one, rtol=tolerance, atol=tolerance * largest + 1e-7, err_msg=path.stem
            )


def run_file(path: Path, feeds: dict[str, Any]) -> list[Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return list(onnxruntime.InferenceSession(path, options).run(None, feeds))


def test_resnet20_trains(real: Path) -> None:
    module = packlight.to_torch(real / "cifar10" / "resnet20.onnx")
    x = torch.from_numpy(draw(8, 3, 32, 32))
    labels = torch.arange(8)
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-4)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(module(x), labels)
        loss.backward()
        assert all(one.grad is not None for one in module.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_weights_are_parameters_and_other_constants_buffers() -> None:
    text = """g (float[n,3,8,8] x) => (float[n,k] y) {
        c = Conv <pads = [1,1,1,1]> (x, w, b)
        s = Mul (c, scale)
        h = Mul (s, factor)
        r = Relu (h)
        i = Slice (r, starts, ends, axes)
        f = Flatten (i)
        y = MatMul (f, m)
    }"""
    weights: dict[str, Any] = {"w": draw(4, 3, 3, 3), "b": draw(4), "scale": draw(4, 1, 1)}
    weights |= {"factor": np.float32(0.5), "m": draw(256, 8)}
    weights |= {name: np.array([n]) for name, n in (("starts", 0), ("ends", 99), ("axes", 1))}
    proto = parse(text, **weights)
    rename(proto, "w", "first/conv.weight")
    module = GraphModule(ir.from_proto(proto))
    assert list(module.parameters_by_name) == ["first/conv.weight", "b", "scale", "m"]
    assert [name for name, _ in module.named_buffers()] == ["factor"]
    assert sum(one.numel() for one in module.parameters()) == 108 + 4 + 4 + 2048
    x = draw(2, 3, 8, 8)
    expected = run_runtime(proto, {"x": x})[0]
    np.testing.assert_allclose(module(torch.from_numpy(x)).detach(), expected, rtol=1e-4, atol=1e-4)


def rename(proto: onnx.ModelProto, old: str, new: str) -> None:
    for node in proto.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
    for one in proto.graph.initializer:
        one.name = new if one.name == old else one.name


def test_masks_and_scalars_are_no_weights() -> None:
    text = "g (float[n,4] x) => (float[n,4] y) { a = Add (x, mask) y = Mul (a, two) }"
    mask = np.array([0, -np.inf, 0, 0], np.float32)
    module, _ = build(text, mask=mask, two=np.float32(2))
    assert module.parameters_by_name == {}
    assert len(list(module.buffers())) == 2


def test_a_weight_may_be_reshaped_on_its_way() -> None:
    text = """g (float[n,8] x) => (float[n,4] y) {
        t = Transpose (w) u = Identity (t) y = MatMul (x, u) }"""
    module, _ = build(text, w=draw(4, 8))
    assert list(module.parameters_by_name) == ["w"]


def test_shape_arithmetic_stays_on_the_cpu_and_sizes_are_free() -> None:
    text = """g (float[n,c,h,w] x) => (float[n,k] y) {
        shape = Shape (x)
        n = Gather (shape, zero)
        rows = Unsqueeze (n, zero1)
        both = Concat <axis = 0> (rows, minus)
        y = Reshape (x, both)
    }"""
    constants = {"zero": np.array(0), "zero1": np.array([0]), "minus": np.array([-1])}
    module, _ = build(text, **constants)
    assert list(module.buffers()) == []
    for shape in ((2, 3, 4, 5), (1, 1, 7, 2)):
        assert module(torch.zeros(shape)).shape == (shape[0], np.prod(shape[1:]))
    meta = module(torch.zeros(2, 3, 4, 5, device="meta"))  # nothing of it can be read
    assert meta.shape == (2, 60)


def test_graphs_inside_nodes_read_what_lies_around_them() -> None:
    text = """g (float[n,4] x, bool c) => (float[n,4] y, float[k] s) {
        h = Relu (x)
        y = If (c) <
            then_branch = yes () => (float[n,4] a) { a = MatMul (h, w) },
            else_branch = no () => (float[n,4] b) { z = Neg (x) b = Add (z, h) }
        >
        t = ReduceSum <keepdims = 0> (h)
        last, s = Loop (five, , t) <
            body = step (int64 i, bool go, float was) => (bool on, float now, float seen) {
                on = Identity (go)
                m = ReduceMax <keepdims = 0> (x)
                now = Add (was, m)
                seen = Identity (now)
            }
        >
    }"""
    for condition in (True, False):
        feeds = {"x": draw(3, 4), "c": np.array(condition)}
        module = check_like_runtime(text, feeds, w=draw(4, 4), five=np.array(5))
    assert list(module.parameters_by_name) == ["w"]


def test_functions_of_the_model_run_with_their_attributes() -> None:
    text = """<ir_version: 10, opset_import: ["" : 17, "own" : 1]>
    g (float[n,4] x) => (float[n,4] y) {
        a = own.scaled <by = 3.0> (x)
        y = own.scaled (a)
    }
    <domain: "own", opset_import: ["" : 17]>
    scaled <by: float = 2.0> (v) => (r) {
        f = Constant <value_float: float = @by> ()
        r = Mul (v, f)
    }"""
    module = GraphModule(ir.from_proto(onnx.parser.parse_model(text)))
    x = torch.randn(2, 4)
    torch.testing.assert_close(module(x), 6 * x)


def test_functions_may_leave_inputs_out() -> None:
    text = """<ir_version: 10, opset_import: ["" : 17, "own" : 1]>
    g (float[n,4] x) => (float[n,4] y) { y = own.clipped (x, , ) }
    <domain: "own", opset_import: ["" : 17]>
    clipped (v, low, high) => (r) {
        two = Constant <value_floats: floats = [2.0, 2.0, 2.0, 2.0]> ()
        c = Clip (v, low, high)
        r = Mul (c, two)
    }"""
    module = GraphModule(ir.from_proto(onnx.parser.parse_model(text)))
    x = torch.randn(2, 4)
    torch.testing.assert_close(module(x), 2 * x)
    assert module.parameters_by_name == {}  # a function serves many callers


def test_functions_without_end_are_refused() -> None:
    head = '<ir_version: 10, opset_import: ["" : 17, "own" : 1]>'
    graph = "g (float[n] x) => (float[n] y) { y = own.f0 (x) }"
    own = '<domain: "own", opset_import: ["" : 17, "own" : 1]>'
    loop = f"{head} {graph} {own} f0 (v) => (r) {{ r = own.f0 (v) }}"
    with pytest.raises(UnusableModel, match="call themselves"):
        GraphModule(ir.from_proto(onnx.parser.parse_model(loop)))
    doubling = "".join(
        f"{own} f{i} (v) => (r) {{ h = own.f{i + 1} (v) r = own.f{i + 1} (h) }}" for i in range(40)
    )
    last = f"{own} f40 (v) => (r) {{ r = Neg (v) }}"
    model = ir.from_proto(onnx.parser.parse_model(f"{head} {graph} {doubling} {last}"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("packlight.graph.torch.build.MOST_NODES", 5000)
        with pytest.raises(UnusableModel, match="more than 5000 nodes"):
            GraphModule(model)


def test_an_older_operator_set_means_older_operators() -> None:
    x = draw(2, 3, 4)
    text = "g (float[2,3,4] x) => (float[2,3,4] y) { y = Softmax (x) }"
    old, _ = build(text, opset=11)
    new, _ = build(text, opset=13)
    given = torch.from_numpy(x)
    torch.testing.assert_close(old(given), torch.softmax(given.flatten(1), -1).reshape(2, 3, 4))
    torch.testing.assert_close(new(given), torch.softmax(given, -1))


def test_values_can_be_looked_at_replaced_and_weights_exchanged() -> None:
    text = "g (float[n,4] x) => (float[n,3] y) { h = Relu (x) y = MatMul (h, w) }"
    module, _ = build(text, w=draw(4, 3))
    x, other = torch.randn(5, 4), torch.randn(4, 3)
    found = module.run({"x": x}, wanted=["h"], weights={"w": other})
    torch.testing.assert_close(found["h"], x.relu())
    torch.testing.assert_close(found["y"], x.relu() @ other)
    found = module.run({"x": x}, through={"h": lambda h: 2 * h, "x": torch.neg}, wanted=["h"])
    torch.testing.assert_close(found["h"], 2 * (-x).relu())
    torch.testing.assert_close(found["y"], 2 * (-x).relu() @ module.parameters_by_name["w"])
    with pytest.raises(WrongUsage, match="no tensor 'v'"):
        module.run({"x": x}, wanted=["v"])
    with pytest.raises(WrongUsage, match="input 'x'"):
        module.run({})
    with pytest.raises(WrongUsage, match="takes 1 inputs"):
        module(x, x)


def test_values_end_with_their_last_use() -> None:
    count = 60
    chain = "\n".join(f"h{i + 1} = Sigmoid (h{i})" for i in range(count))
    module, _ = build(
        f"g (float[n] x) => (float[n] y) {{ h0 = Neg (x) {chain} y = Neg (h{count}) }}"
    )
    alive: list[int] = []
    seen: list[Any] = []

    def look(value: Any) -> Any:
        import weakref

        seen.append(weakref.ref(value))
        alive.append(sum(one() is not None for one in seen))
        return value

    with torch.no_grad():
        module.run({"x": torch.ones(3)}, through={f"h{i}": look for i in range(1, count)})
    assert max(alive) <= 2


def test_copies_have_weights_of_their_own() -> None:
    module, _ = build("g (float[n,4] x) => (float[n,3] y) { y = MatMul (x, w) }", w=draw(4, 3))
    twin = copy.deepcopy(module)
    with torch.no_grad():
        twin.parameters_by_name["w"].zero_()
    x = torch.randn(2, 4)
    assert not twin(x).any()
    assert module(x).any()
    twin.load_state_dict(module.state_dict())
    torch.testing.assert_close(twin(x), module(x))


def test_inner_graphs_may_use_a_name_twice() -> None:
    text = """g (float[n,4] x, bool c) => (float[n,4] y) {
        y = If (c) <
            then_branch = yes () => (float[n,4] a) <float[4,4] w> { a = MatMul (x, w) },
            else_branch = no () => (float[n,4] b) <float[4,4] w> { b = MatMul (x, w) }
        >
    }"""
    proto = parse(text)
    first, second = draw(4, 4), draw(4, 4)
    for attribute, array in zip(proto.graph.node[0].attribute, (first, second), strict=True):
        del attribute.g.initializer[:]
        attribute.g.initializer.append(onnx.numpy_helper.from_array(array, "w"))
    module = GraphModule(ir.from_proto(proto))
    assert sorted(module.parameters_by_name) == ["w", "w_2"]
    x = draw(2, 4)
    for condition in (True, False):
        found = module(torch.from_numpy(x), torch.tensor(condition)).detach()
        expected = run_runtime(proto, {"x": x, "c": np.array(condition)})[0]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_an_unknown_operator_is_named() -> None:
    text = "g (float[n] x) => (float[n] y) { h = Relu (x) [odd] y = com.microsoft.Weird (h) }"
    proto = parse(text.replace("[odd] ", ""))
    proto.graph.node[1].name = "odd"
    with pytest.raises(UnsupportedOperator, match=r"'odd' \(com.microsoft.Weird\)"):
        packlight.to_torch(ir.from_proto(proto))
    assert issubclass(UnsupportedOperator, packlight.PacklightError)


def test_an_unknown_attribute_is_named() -> None:
    proto = parse("g (float[n] x) => (float[n] y) { y = Relu (x) }")
    proto.graph.node[0].attribute.append(onnx.helper.make_attribute("odd", 1))
    with pytest.raises(UnsupportedOperator, match="'odd'"):
        GraphModule(ir.from_proto(proto))


def test_a_failing_node_is_named() -> None:
    module, _ = build("g (float[n,4] x) => (float[n,3] y) { y = MatMul (x, w) }", w=draw(5, 3))
    with pytest.raises(RuntimeError) as raised:
        module(torch.zeros(2, 4))
    assert any("(MatMul)" in note for note in raised.value.__notes__)


def test_an_incomplete_graph_is_refused() -> None:
    proto = parse("g (float[n] x) => (float[n] y) { y = Add (x, nothing) }")
    with pytest.raises(UnusableModel, match="'nothing'"):
        GraphModule(ir.from_proto(proto))


def test_inputs_that_an_operators_body_does_not_take_are_refused() -> None:
    text = "g (q, k, v) => (y) { y = Attention (q, k, v) }"
    module, _ = build(text, opset=24)
    with pytest.raises(UnusableModel, match="Attention"):
        module(*[torch.zeros(2)] * 3)


def test_without_pytorch_everything_else_works(monkeypatch: pytest.MonkeyPatch) -> None:
    program = """
import pkgutil, sys
sys.modules["torch"] = None
import packlight
blocks = ("blocks", "blocks_states", "calibrate", "calibrate_curvature", "compress_blocks")
blocks += ("smooth",)
files = ("exported", "executorch", "coreml", "litert.")
inside_of = ("packlight.graph.torch.", *(f"packlight.llm.{one}" for one in blocks))
inside_of += tuple(f"packlight.devices.{one}" for one in files)
engines = ("openvino", "litert", "executorch")
apart = ("packlight.llm.blocks_wiring", "packlight.llm.calibrate_outputs")
for found in pkgutil.walk_packages(packlight.__path__, "packlight."):
    inside = found.name.startswith(inside_of) and found.name not in apart
    if not inside and not found.name.endswith(("__main__", "worker", *engines)):
        __import__(found.name)
try:
    packlight.to_torch("model.onnx")
except packlight.PacklightError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert 'pip install "packlight[heal]"' in done.stdout
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtra, match="heal"):
        enter.check_torch()
