from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packlight.maths.channels import ChannelOrder, order_channels, select_channels
from packlight.maths.moments import refit_kept
from packlight.maths.readers import ChannelReader
from packlight.maths.rounding import output_error


def reader(
    seed: int, channels: int = 5, taps: int = 2, outputs: int = 4, fixed: int = 0
) -> ChannelReader:
    """A layer with correlated inputs; `taps` columns a channel, scattered, and some of none."""
    rng = np.random.default_rng(seed)
    inputs = channels * taps + fixed
    mix = rng.standard_normal((inputs, inputs)) + 1.5 * rng.standard_normal((1, inputs))
    rows = np.maximum(rng.standard_normal((20 * inputs, inputs)) @ mix, 0)
    places = rng.permutation(inputs)[: channels * taps].reshape(channels, taps)
    weight = rng.standard_normal((outputs, inputs))
    columns = tuple(tuple(int(i) for i in own) for own in places)
    return ChannelReader(weight, rows.T @ rows / len(rows), columns)


def damped(h: np.ndarray, damping: float = 0.01) -> np.ndarray:
    alive = np.diag(h)[np.diag(h) > 0]
    return h + damping * alive.mean() * np.eye(len(h))


def loss_without(one: ChannelReader, gone: set[int]) -> float:
    """By least squares on rows whose second moments are the damped ones."""
    root = np.linalg.cholesky(damped(one.second_moments)).T
    dropped = {column for c in gone for column in one.columns[c]}
    left = [i for i in range(one.weight.shape[1]) if i not in dropped]
    target = root @ one.weight.T
    found = np.linalg.lstsq(root[:, left], target, rcond=None)[0]
    return float(np.sum((target - root[:, left] @ found) ** 2))


def losses_without(readers: list[ChannelReader], gone: set[int]) -> float:
    return sum(loss_without(one, gone) for one in readers)


CASES = {
    "one tap": [reader(0, channels=9, taps=1, outputs=3)],
    "more outputs than inputs": [reader(1, channels=9, taps=1, outputs=30)],
    "three taps and others": [reader(2, channels=6, taps=3, fixed=4)],
    "two readers": [reader(3, channels=6, taps=2), reader(4, channels=6, taps=1, fixed=5)],
}


@pytest.mark.parametrize("readers", CASES.values(), ids=CASES)
def test_the_order_is_that_of_trying_each_by_least_squares(readers: list[ChannelReader]) -> None:
    order = order_channels(readers)
    count = len(readers[0].columns)
    gone: set[int] = set()
    assert order.losses[0] == 0 and sorted(order.removed) == list(range(count))
    for number, channel in enumerate(order.removed):
        tried = {c: losses_without(readers, gone | {c}) for c in set(range(count)) - gone}
        assert channel == min(tried, key=lambda c: tried[c])
        gone.add(channel)
        assert order.losses[number + 1] == pytest.approx(tried[channel], rel=1e-8)
        assert order.loss(count - len(gone)) == order.losses[number + 1]
        assert order.kept(count - len(gone)) == tuple(sorted(set(range(count)) - gone))
    if not any(len(one.columns) * len(one.columns[0]) < one.weight.shape[1] for one in readers):
        everything = sum(
            np.trace(one.weight @ damped(one.second_moments) @ one.weight.T) for one in readers
        )
        assert order.losses[-1] == pytest.approx(everything)


def test_many_channels_wait_for_one_product_and_give_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    readers = [reader(5, channels=24, taps=3), reader(6, channels=24, taps=1, outputs=40)]
    whole = order_channels(readers)
    monkeypatch.setattr("packlight.maths.channels._PENDING", 7)
    often = order_channels(readers)
    assert often.removed == whole.removed
    np.testing.assert_allclose(often.losses, whole.losses, rtol=1e-8)
    assert whole.loss(10) == pytest.approx(losses_without(readers, set(whole.removed[:14])))


@pytest.mark.parametrize("readers", CASES.values(), ids=CASES)
def test_no_single_exchange_is_left_that_gains(readers: list[ChannelReader]) -> None:
    count = len(readers[0].columns)
    for keep in range(1, count):
        greedy = select_channels(readers, keep)
        found = select_channels(readers, keep, exchanges=100)
        gone = set(range(count)) - set(found.kept)
        assert len(found.kept) == keep and found.loss <= greedy.loss
        assert found.loss == pytest.approx(losses_without(readers, gone), rel=1e-6)
        for a in found.kept:
            for b in gone:
                assert losses_without(readers, gone - {b} | {a}) > found.loss * (1 - 1e-6)
        best = min(
            losses_without(readers, set(range(count)) - set(kept))
            for kept in combinations(range(count), keep)
        )
        assert found.loss <= 1.25 * best


def test_exchanges_mend_what_removal_one_at_a_time_got_wrong() -> None:
    improved = 0
    for seed in range(20):
        readers = [reader(100 + seed, channels=16, taps=1, outputs=3)]
        greedy = select_channels(readers, 5)
        assert greedy.exchanges == 0
        better = select_channels(readers, 5, exchanges=50)
        one = select_channels(readers, 5, exchanges=1)
        assert better.loss <= one.loss <= greedy.loss
        assert (better.exchanges == 0) == (better.kept == greedy.kept)
        improved += better.loss < 0.999 * greedy.loss
    assert improved >= 4


def test_the_loss_is_that_of_the_refitted_weight() -> None:
    one = reader(7, channels=8, taps=2, fixed=3)
    found = select_channels([one], 5)
    dropped = {column for c in range(8) if c not in found.kept for column in one.columns[c]}
    left = [i for i in range(one.weight.shape[1]) if i not in dropped]
    whole = damped(one.second_moments)
    refit = np.zeros_like(one.weight)
    refit[:, left] = refit_kept(one.weight, whole, whole, left, damping=0)
    assert output_error(one.weight, refit, whole) == pytest.approx(found.loss, rel=1e-6)


def test_locked_channels_stay_and_costs_count() -> None:
    readers = CASES["two readers"]
    free = order_channels(readers)
    first = free.removed[0]
    order = order_channels(readers, locked=[first])
    assert first not in order.removed and len(order.removed) == 5
    found = select_channels(readers, 2, locked=[first], exchanges=20)
    assert first in found.kept
    # A channel that costs a million times as much goes first whatever it does.
    last = free.removed[-1]
    costs = [1e6 if c == last else 1.0 for c in range(6)]
    assert order_channels(readers, costs=costs).removed[0] == last
    priced = select_channels(readers, 3, costs=costs, exchanges=20)
    assert last not in priced.kept


def test_unread_unfed_and_uneven_channels() -> None:
    one = reader(8, channels=5, taps=2)
    columns = list(one.columns)
    columns[2] = ()
    columns[3] = columns[3][:1]
    odd = ChannelReader(one.weight, one.second_moments, tuple(columns))
    order = order_channels([odd])
    assert order.removed[0] == 2 and order.losses[1] == 0
    assert order.losses[2] == pytest.approx(loss_without(odd, {2, order.removed[1]}))
    h = np.array(one.second_moments)
    silent = list(one.columns[4])
    h[silent, :] = h[:, silent] = 0
    order = order_channels([ChannelReader(one.weight, h, one.columns)])
    assert order.removed[0] == 4 and order.losses[1] == pytest.approx(0, abs=1e-12)
    assert select_channels([ChannelReader(one.weight, h, one.columns)], 2, exchanges=9).loss > 0


@given(st.integers(0, 10**6), st.integers(2, 8), st.integers(1, 3), st.integers(1, 6))
def test_losses_rise_and_exchanges_never_hurt(
    seed: int, channels: int, taps: int, outputs: int
) -> None:
    readers = [reader(seed, channels, taps, outputs)]
    order = order_channels(readers)
    assert np.all(np.diff(order.losses) >= 0)
    keep = channels // 2
    if keep:
        found = select_channels(readers, keep, exchanges=20, order=order)
        assert found.loss <= order.loss(keep) * (1 + 1e-9)


def test_golden() -> None:
    # Input 1 is twice input 0 and a little; input 2 stands alone and weighs 9 at the output.
    h = np.array([[1.0, 2.0, 0.0], [2.0, 5.0, 0.0], [0.0, 0.0, 9.0]])
    one = ChannelReader(np.array([[1.0, 1.0, 1.0]]), h, ((0,), (1,), (2,)))
    order = order_channels([one], damping=0)
    # Without 0: 1 - 4/5; then without 1: (1 1) H (1 1)^T = 10 in all; then 9 more.
    assert order.removed == (0, 2, 1)
    np.testing.assert_allclose(order.losses, [0, 0.2, 9.2, 19.0], atol=1e-12)


def test_what_does_not_fit_is_refused() -> None:
    one, other = reader(9), reader(10, channels=4)
    with pytest.raises(ValueError, match="there is none"):
        order_channels([])
    with pytest.raises(ValueError, match=r"same channels, not \[4, 5\]"):
        order_channels([one, other])
    with pytest.raises(ValueError, match="one channel at most"):
        order_channels([ChannelReader(one.weight, one.second_moments, ((0,), (0,)))])
    with pytest.raises(ValueError, match="do not fit 10 inputs"):
        order_channels([ChannelReader(one.weight, np.eye(3), one.columns)])
    with pytest.raises(ValueError, match="5 numbers above 0"):
        order_channels([one], costs=[1, 2, 3, 4, 0])
    with pytest.raises(ValueError, match="0 to 5 channels can be kept, not 6"):
        select_channels([one], 6)
    with pytest.raises(ValueError, match="3 to 5 channels can be kept, not 2"):
        order_channels([one], down_to=3).kept(2)
    assert ChannelOrder((), (0.0,), 3).kept(3) == (0, 1, 2)


def test_pytorch_gives_the_same() -> None:
    torch = pytest.importorskip("torch")
    readers = CASES["two readers"]
    like = [
        ChannelReader(torch.asarray(one.weight), torch.asarray(one.second_moments), one.columns)
        for one in readers
    ]
    order, found = order_channels(readers), order_channels(like)
    assert found.removed == order.removed
    np.testing.assert_allclose(found.losses, order.losses)
    assert (
        select_channels(like, 2, exchanges=9).kept == select_channels(readers, 2, exchanges=9).kept
    )
