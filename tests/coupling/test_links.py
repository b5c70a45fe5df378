"""Positions that go together, products of axes, and how shapes are laid side by side."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packlight.graph.coupling.layout import align
from packlight.graph.coupling.links import Links


def same(links: Links, *axes: np.ndarray) -> bool:
    label = links.solve().label
    return all((label[axis] == label[axes[0]]).all() for axis in axes)


def test_what_goes_together_is_one_channel():
    links = Links()
    a, b, c = links.new(3), links.new(3), links.new(2)
    links.together(a, b)
    links.together(a[1:], c)
    channels = links.solve()
    assert len(set(channels.label.tolist())) == 3
    assert channels.label[c[0]] == channels.label[b[1]]


def test_the_first_reason_is_told():
    links = Links()
    a, b = links.new(2), links.new(2)
    links.together(a, b)
    links.stay([a[:1]], "first")
    links.stay([b], "second")
    channels = links.solve()
    assert [channels.reasons[channels.reason[channels.label[p]]] for p in a] == ["first", "second"]


def test_the_longer_factor_carries_the_channels():
    links = Links()
    whole, few, many = links.new(12), links.new(2), links.new(6)
    links.product(whole, [few, many], "why")
    channels = links.solve()
    assert same(links, whole[:6], whole[6:], many)
    assert channels.reason[channels.label[few]].tolist() == [0, 0]
    assert channels.reasons == ("why",)


@pytest.mark.parametrize(("mode", "carrier"), [("whole", 0), ("inside", 1)])
def test_heads_carry_the_channels_or_their_insides_do(mode, carrier: int):
    links = Links()
    whole, factors = links.new(12), [links.new(3), links.new(4)]
    links.heads(factors[0])
    links.product(whole, factors, "why")
    channels = links.solve(mode)
    free = channels.reason[channels.label[factors[carrier]]]
    stuck = channels.reason[channels.label[factors[1 - carrier]]]
    assert (free < 0).all()
    assert (stuck >= 0).all()
    table = channels.label[whole].reshape(3, 4)
    assert (
        table == channels.label[factors[carrier]].reshape((-1, 1) if carrier == 0 else -1)
    ).all()


def test_a_factor_that_stays_leaves_the_channels_to_the_other():
    links = Links()
    whole, space, channel = links.new(12), links.new(4), links.new(3)
    links.stay([space], "space")
    links.product(whole, [channel, space], "why")
    channels = links.solve()
    assert (channels.reason[channels.label[channel]] < 0).all()
    assert same(links, whole.reshape(3, 4)[:, 2], channel)


def test_one_choice_decides_the_next():
    # A shuffle: 2 x 6 becomes 6 x 2. The 6 carry the channels in both, or nothing can go.
    links = Links()
    before, after, two, six = links.new(12), links.new(12), links.new(2), links.new(6)
    links.product(before, [two, six], "why")
    links.product(after, [six, two], "why")
    assert same(links, six, before[:6], before[6:], after[::2], after[1::2])


def test_a_product_that_stays_keeps_its_factors():
    links = Links()
    whole, a, b = links.new(6), links.new(2), links.new(3)
    links.stay([whole], "why not")
    links.product(whole, [a, b], "why")
    channels = links.solve()
    assert (channels.reason >= 0)[channels.label].all()
    assert {channels.reasons[r] for r in channels.reason[channels.label]} == {"why not"}


def test_sizes_that_are_not_known_say_nothing():
    links = Links()
    a = links.new(3)
    links.together(a, None)
    links.stay([None], "why")
    assert (links.solve().reason < 0).all()


@pytest.mark.parametrize(
    ("before", "after", "blocks", "left"),
    [
        ((2, 3, 4), (6, 4), [([2], [1]), ([0, 1], [0])], ([], [])),
        (("n", "t", 64), ("n", "t", 4, 16), [([2], [2, 3]), ([1], [1]), ([0], [0])], ([], [])),
        (("n", 64, "h", "w"), ("n", 64, None), [([0], [0]), ([1], [1])], ([2, 3], [2])),
        (("n", 8, 1, 1), ("n", 8), [([1, 2, 3], [1]), ([0], [0])], ([], [])),
        (("n", "t", 8), (None, 8), [([2], [1])], ([0, 1], [0])),
        ((4, "t", 8), ("t", 4, 8), [([2], [2])], ([0, 1], [0, 1])),
        ((4, 6), (3, 8), [([0, 1], [0, 1])], ([], [])),
    ],
)
def test_shapes_are_aligned(before, after, blocks, left):
    assert align(before, after) == (blocks, left)


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=5),
    st.lists(st.integers(0, 4), min_size=0, max_size=4),
)
def test_aligned_blocks_hold_the_same_elements(sizes: list[int], cuts: list[int]):
    # Join neighbours of the first shape: every block must then describe the same elements.
    after, start = [], 0
    for cut in [*sorted({min(cut, len(sizes)) for cut in cuts}), len(sizes)]:
        if cut > start:
            after.append(math.prod(sizes[start:cut]))
            start = cut
    blocks, (left, right) = align(sizes, after)
    assert math.prod(sizes[i] for i in left) == math.prod(after[i] for i in right) == 1
    for ours, theirs in blocks:
        assert math.prod(sizes[i] for i in ours) == math.prod(after[i] for i in theirs)
        assert math.prod(sizes[: ours[0]]) == math.prod(after[: theirs[0]])
