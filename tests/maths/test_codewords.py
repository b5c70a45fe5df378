"""Rounding to a codebook, against all its words and signs tried one by one."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest

from packlight.maths.codewords import Codebook, SignedCodebook, nearest_words
from packlight.maths.superblock_layer import solve_super_blocks
from packlight.maths.superblocks import SuperBlockGrid, SuperBlocks, values_of


def book(width: int, even: bool, words: int = 12) -> Codebook:
    draw = np.random.default_rng(0)
    rows = draw.choice([1.0, 3.125, 5.375], (words, width)).astype(np.float32)
    return Codebook(np.unique(rows, axis=0), even)


def all_values(codebook: Codebook) -> Any:
    """Everything that eight inputs may be."""
    halves = product(codebook.words, repeat=8 // codebook.width)
    magnitudes = np.array([np.concatenate(one) for one in halves])
    signs = np.array(list(product([1.0, -1.0], repeat=8)))
    if codebook.even_signs:
        signs = signs[np.prod(signs, axis=1) > 0]
    return (magnitudes[:, None, :] * signs[None, :, :]).reshape(-1, 8)


def targets(count: int = 40) -> tuple[Any, Any]:
    draw = np.random.default_rng(1)
    x = (3 * draw.standard_normal((8, count))).astype(np.float32)
    return x, np.exp(draw.standard_normal((8, 1))).astype(np.float32)


@pytest.mark.parametrize("width", [4, 8])
def test_the_nearest_of_all_words_and_signs_is_found(width: int) -> None:
    codebook = book(width, even=False)
    x, weight = targets()
    found = nearest_words(x, weight, codebook)
    costs = ((x.T[:, None, :] - all_values(codebook)) ** 2 * weight[:, 0]).sum(axis=2)
    cost = ((x - found) ** 2 * weight).sum(axis=0)
    np.testing.assert_allclose(cost, costs.min(axis=1), rtol=1e-4)


@pytest.mark.parametrize("width", [4, 8])
def test_an_even_number_of_signs_costs_little_more_than_it_must(width: int) -> None:
    codebook = book(width, even=True)
    x, weight = targets(200)
    found = nearest_words(x, weight, codebook)
    values = all_values(codebook)
    costs = ((x.T[:, None, :] - values) ** 2 * weight[:, 0]).sum(axis=2)
    cost = ((x - found) ** 2 * weight).sum(axis=0)
    known = {tuple(one) for one in values}
    assert all(tuple(one) in known for one in found.T)
    assert (cost > costs.min(axis=1) * (1 - 1e-4)).all()
    assert cost.sum() < 1.03 * costs.min(axis=1).sum()


@pytest.mark.parametrize("width", [4, 8])
def test_words_under_a_whole_metric(width: int) -> None:
    codebook = book(width, even=True)
    x, _ = targets()
    mixing = np.random.default_rng(2).standard_normal((8, 8)).astype(np.float32)
    metric = mixing.T @ mixing + np.eye(8, dtype=np.float32)
    start = nearest_words(x, np.diag(metric)[:, None], codebook)
    found = codebook.improve(x, metric, start)

    def cost(levels: Any) -> Any:
        return np.einsum("in,ij,jn->n", x - levels, metric, x - levels)

    assert (np.sign(found) == np.sign(start)).all()
    assert (cost(found) <= cost(start) * (1 + 1e-5)).all() and (cost(found) < cost(start)).any()
    if width == 8:  # all words with these signs
        each = np.array(
            [cost(np.sign(start) * word[:, None]) for word in codebook.words.astype(np.float32)]
        )
        np.testing.assert_allclose(cost(found), each.min(axis=0), rtol=1e-4)


def solve_twice(grid: SuperBlockGrid) -> Iterator[tuple[SuperBlocks, float, float]]:
    """A layer by its inputs' second moments alone, then by all; the error, and what was said."""
    draw = np.random.default_rng(3)
    weight = draw.standard_normal((10, 64)).astype(np.float32)
    x = draw.standard_normal((200, 16)) @ draw.standard_normal((16, 64))
    moments = (x.T @ x / 200 + 0.1 * np.eye(64)).astype(np.float32)
    for second in (np.diag(np.diag(moments)), moments):
        blocks, info = solve_super_blocks(weight, second, grid)
        off = weight - values_of(blocks, grid)
        yield blocks, float((off @ moments * off).sum()), info.error


def signed_book(two_sided: bool) -> SignedCodebook:
    draw = np.random.default_rng(0)
    words = np.unique(draw.integers(-1, 2, (40, 8)), axis=0).astype(np.float32)
    return SignedCodebook(words + np.float32(0.125), 0.125 - words if two_sided else None)


@pytest.mark.parametrize("two_sided", [False, True])
def test_words_with_signs_of_their_own(two_sided: bool) -> None:
    """The best of all for the side of each target's step, under a diagonal and a whole metric."""
    codebook = signed_book(two_sided)
    x, weight = targets(60)
    below = np.arange(60) % 3 == 0
    mixing = np.random.default_rng(2).standard_normal((8, 8)).astype(np.float32)
    metric = mixing.T @ mixing + np.eye(8, dtype=np.float32)
    near = nearest_words(x, weight, codebook, below)
    found = codebook.improve(x, metric, near, below)
    for levels, matrix in ((near, np.diag(weight[:, 0])), (found, metric)):
        for place in range(60):
            side = codebook.below if two_sided and below[place] else codebook.words
            off = x[:, place] - side
            costs = np.einsum("wi,ij,wj->w", off, matrix, off)
            assert (levels[:, place] == side[np.argmin(costs)]).all()
    if two_sided:
        for here in (below, ~below):  # all of one side
            one = nearest_words(x[:, here], weight, codebook, below[here])
            np.testing.assert_array_equal(one, near[:, here])


@pytest.mark.parametrize("two_sided", [False, True])
def test_a_layer_of_signed_words_gains_by_second_moments(two_sided: bool) -> None:
    codebook = signed_book(two_sided)
    limits = (-15, 15) if two_sided else (1, 15)
    grid = SuperBlockGrid(16, 2, (-0.875, 0.125, 1.125), limits, None, codebook)
    assert grid.upright is two_sided
    (_, first, _), (_, second, said) = solved = [*solve_twice(grid)]
    assert said == pytest.approx(second, rel=1e-3)
    for blocks, *_ in solved:
        assert (blocks.sub_scales % 2 != 0).all()
        levels = (np.array(grid.levels)[blocks.codes]).reshape(-1, 8)
        steps = np.repeat(blocks.sub_scales.ravel(), 2)
        assert not two_sided or (blocks.scales > 0).all()
        for side, here in ((codebook.words, steps > 0), (codebook.below, steps < 0)):
            if here.any():
                assert {tuple(one) for one in levels[here]} <= {tuple(one) for one in side}
    assert two_sided == (steps < 0).any()
    assert second < 0.6 * first


def test_a_layer_keeps_to_the_codebook_and_gains_by_second_moments() -> None:
    codebook = book(8, even=True, words=60)
    levels = (-5.375, -3.125, -1.0, 1.0, 3.125, 5.375)
    grid = SuperBlockGrid(16, 2, levels, (1, 31), None, codebook)
    (_, first, _), (_, second, said) = solved = [*solve_twice(grid)]
    assert said == pytest.approx(second, rel=1e-3)
    for blocks, *_ in solved:
        assert (blocks.sub_scales % 2 == 1).all()
        magnitudes = np.abs(np.array(levels)[blocks.codes]).reshape(-1, 8)
        assert {tuple(one) for one in magnitudes} <= {tuple(one) for one in codebook.words}
        assert ((blocks.codes.reshape(-1, 8) < 3).sum(axis=1) % 2 == 0).all()
    assert second < 0.5 * first


def test_pytorch_gives_the_same_words() -> None:
    torch = pytest.importorskip("torch")
    x, weight = targets()
    for width in (4, 8):
        ours = book(width, even=True)
        theirs = Codebook(torch.from_numpy(ours.words), True)
        found = nearest_words(torch.from_numpy(x), torch.from_numpy(weight), theirs)
        np.testing.assert_array_equal(found.numpy(), nearest_words(x, weight, ours))
        metric = np.eye(8, dtype=np.float32) + 0.3
        better = theirs.improve(torch.from_numpy(x), torch.from_numpy(metric), found)
        np.testing.assert_array_equal(better.numpy(), ours.improve(x, metric, found.numpy()))
