"""What is found in transformer graphs: linear layers, attention, norms, tied embeddings."""

from __future__ import annotations

import pytest
from transformer_zoo import BUILDERS, LAYERS, VOCABULARY, samples

from packlight.graph.layers import find_layers, find_unquantizable
from packlight.graph.tokens import token_limits
from packlight.graph.walk import constant_of, walk_nodes
from packlight.plan.prepare import prepare_samples

# Per model: the linear layers, and MatMuls of two activations.
EXPECTED = {
    "bert": (3 + 6 * LAYERS + 2, 2 * LAYERS),
    "vit": (1 + 6 * LAYERS + 1, 2 * LAYERS),
    "whisper_encoder": (2 + 6 * LAYERS, 2 * LAYERS),
    "whisper_decoder": (1 + 10 * LAYERS + 1, 4 * LAYERS),
    "whisper_past": (2 + 10 * LAYERS + 1, 4 * LAYERS),
    "marian_encoder": (2 + 6 * LAYERS, 2 * LAYERS),
    "marian_decoder": (2 + 10 * LAYERS + 1, 4 * LAYERS),
    "gpt2": (2 + 4 * LAYERS + 1, 2 * LAYERS),
    "llama": (1 + 7 * LAYERS + 1, 2 * LAYERS),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_every_layer_is_found_and_attention_is_listed_with_its_reason(subject, name):
    graph = subject(name).graph
    layers, others = find_layers(graph), find_unquantizable(graph)
    assert (len(layers), len(others)) == EXPECTED[name]
    assert all("multiplies two activations" in other.reason for other in others)
    # The accounting: whatever multiplies matrices, or looks up floats, is one or the other.
    told = {layer.name for layer in layers} | {other.name for other in others}
    for _, node in walk_nodes(graph):
        if node.op_type in ("MatMul", "Gemm", "Conv"):
            assert node.name in told
        table = constant_of(node.inputs[0]) if node.op_type == "Gather" else None
        if table is not None and table.dtype.is_floating_point() and len(table.shape) == 2:
            assert node.name in told


@pytest.mark.parametrize("name", BUILDERS)
def test_no_step_of_simplifying_fails(subject, name):
    assert [step.name for step in subject(name).steps if not step.kept] == []


def test_both_exporters_give_the_same_layers(subject):
    old, new = subject("bert", dynamo=False).graph, subject("bert").graph
    assert len(find_unquantizable(old)) == len(find_unquantizable(new))
    shapes = [sorted(layer.weight_shape for layer in find_layers(graph)) for graph in (old, new)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", BUILDERS)
def test_made_up_samples_run_and_their_ids_are_in_the_vocabulary(subject, name):
    model = subject(name).model
    ids = {key for key in samples(name, 1) if key.endswith("input_ids")}
    limits = token_limits(model.ir)
    assert {key: limits.get(key) for key in ids} == dict.fromkeys(ids, VOCABULARY)
    prepared = prepare_samples(model, None)
    assert prepared.samples.generated
    drawn = prepared.samples.read(range(len(prepared.samples)))
    for key in ids:
        assert drawn[key].min() >= 0 and drawn[key].max() < VOCABULARY
        assert len(set(drawn[key].ravel().tolist())) > 50  # from all of it, not a corner
