"""Heads, channels of heads and neurons of exported transformers are found, and go exactly."""

from __future__ import annotations

import numpy as np
import pytest
from coupling_oracle import check_partition, draw_channels, free, masked, session_of, weigh
from transformer_zoo import BUILDERS, HEADS, HIDDEN, INNER, LAYERS

from packlight.graph.coupling.groups import find_groups
from packlight.graph.rewrite.branches import find_branches, remove_part
from packlight.graph.rewrite.prune import remove_channels
from packlight.samples import feeds_of

# What attends twice in a layer: to what it wrote itself, and to what the encoder gave.
TWICE = ("marian_decoder", "whisper_decoder")


def whole_heads(name: str) -> int:
    if name == "whisper_past":
        return LAYERS  # the cache of the other attention is an input and output of the model
    return LAYERS * (2 if name in TWICE else 1)


@pytest.mark.parametrize("heads", ["whole", "inside"])
@pytest.mark.parametrize("name", BUILDERS)
def test_a_pruned_transformer_is_the_masked_one(subject, name: str, heads):
    one = subject(name)
    groups = find_groups(one.graph, heads=heads)
    check_partition(groups)
    removed = draw_channels(groups)
    pruned = remove_channels(one.graph, removed, heads=heads)
    feeds = next(iter(feeds_of(one.samples, (0, 1), one.model.inputs)))
    expected = session_of(masked(one.graph, groups, removed)).run(None, feeds)
    found = session_of(pruned).run(None, feeds)
    for wanted, got in zip(expected, found, strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-5 * np.abs(wanted).max())
    assert weigh(pruned) < weigh(one.graph)


@pytest.mark.parametrize("name", BUILDERS)
def test_heads_and_neurons_are_groups_of_their_own(subject, name: str):
    one = subject(name)
    sizes = [group.size for group in free(find_groups(one.graph))]
    shared = HEADS // 2 if name == "llama" else HEADS
    assert sizes.count(shared) == whole_heads(name)
    assert sizes.count(INNER) == LAYERS
    inside = [group.size for group in free(find_groups(one.graph, heads="inside"))]
    if name == "llama":
        # Rotary positions turn channels in pairs, by one table for all heads of all layers.
        assert inside.count(HIDDEN // HEADS // 2) == 1
        assert inside.count(HIDDEN // HEADS) == LAYERS
    else:
        assert inside.count(HIDDEN // HEADS) == 2 * whole_heads(name)


@pytest.mark.parametrize("name", ["bert", "llama", "whisper_decoder"])
def test_blocks_can_be_left_out(subject, name: str):
    one = subject(name)
    branches = find_branches(one.graph)
    assert len(branches) == LAYERS * (3 if name in TWICE else 2)
    pruned = remove_part(one.graph, [branch.name for branch in branches[:2]])
    feeds = next(iter(feeds_of(one.samples, (0, 1), one.model.inputs)))
    before = session_of(one.graph).run(None, feeds)
    after = session_of(pruned).run(None, feeds)
    assert [array.shape for array in before] == [array.shape for array in after]
    assert weigh(pruned) < weigh(one.graph)
