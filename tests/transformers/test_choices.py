"""Every way to compress, on every kind of transformer: it runs, is close, and is smaller."""

from __future__ import annotations

import onnx
import pytest
from onnx import numpy_helper
from transformer_zoo import BUILDERS

from packlight.graph.apply import possible_choices
from packlight.graph.layers import find_layers
from packlight.plan.trials import Workbench
from packlight.recipe import Recipe
from packlight.targets import find_target

# The signal-to-noise ratio in dB that each way must leave, and the share of the float bytes of
# the simplified file that it may take, the tables that it cannot hold included.
FLOORS = {
    "int8": (10.0, 0.65),
    "int8-dynamic": (10.0, 0.65),
    "weights-int8": (25.0, 0.5),
    "weights-int4-blocks": (8.0, 0.5),
    "float16": (50.0, 0.65),
}


@pytest.fixture(scope="module", params=BUILDERS)
def bench(subject, request):
    one = subject(request.param)
    with Workbench(one.model, one.graph, one.samples, one.split, find_target("laptop")) as bench:
        names = [x.name for x in find_layers(one.graph) if possible_choices(x, ["int8"])]
        bench.calibrate(names)
        yield bench


def test_each_choice_runs_and_is_close_to_float(bench):
    layers = find_layers(bench.simplified)
    plain = bench.evaluate(Recipe(), "simplified")
    assert plain.noise_db > 100 and plain.size_bytes < bench.model.size_bytes
    found = {}
    for choice, (least, share) in FLOORS.items():
        chosen = tuple((x.name, choice) for x in layers if possible_choices(x, [choice]))
        tried = bench.evaluate(Recipe(layers=chosen), choice)
        assert not tried.failure, (choice, tried.failure)
        assert not [note for note in tried.notes.values() if "left as it is" in note]
        found[choice] = (round(tried.noise_db, 1), round(tried.size_bytes / plain.size_bytes, 2))
        assert tried.noise_db > least, found
        assert tried.size_bytes < share * plain.size_bytes, found


def test_attention_norms_and_activations_stay_float_in_static_models(bench):
    layers = find_layers(bench.simplified)
    static = tuple((x.name, "int8") for x in layers if possible_choices(x, ["int8"]))
    graph = onnx.load(bench.make(Recipe(layers=static), "int8").path).graph
    made = {name: node for node in graph.node for name in node.output}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    products = 0
    for node in graph.node:
        decoded = [
            name for name in node.input if name in made and made[name].op_type == "DequantizeLinear"
        ]
        if node.op_type in ("Softmax", "LayerNormalization", "Erf", "Tanh", "Pow"):
            assert not decoded, node.op_type
        if node.op_type == "MatMul" and decoded:
            # The second operand is a weight's int8 codes, never an activation's.
            codes = weights[made[node.input[1]].input[0]]
            assert numpy_helper.to_array(codes).dtype.name == "int8"
            products += 1
    assert products == sum(layer.kind == "MatMul" for layer in layers)


def test_a_table_that_is_tied_to_the_head_is_stored_once(bench):
    layers = find_layers(bench.simplified)
    names = {spec.name for spec in bench.model.inputs}
    if not (names & {"input_ids", "decoder_input_ids"} and bench.model.outputs[0].name == "logits"):
        pytest.skip("it has no head over its vocabulary")
    tables = [x for x in layers if x.kind == "Gather"]
    heads = [x for x in layers if x.kind == "MatMul" and x.weight_shape[1] == 211]
    if not heads or "llama" in str(bench.model.source):
        pytest.skip("its head is a matrix of its own")
    assert tables
    graph = onnx.load(bench.make(Recipe(), "simplified").path).graph
    assert sum(sorted(tensor.dims) == [64, 211] for tensor in graph.initializer) == 1
