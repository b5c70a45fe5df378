"""Random chains of operators: whatever is removed from them, the result is the masked model's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from coupling_oracle import build, check_partition, feeds_of, free, masked, session_of, weigh
from hypothesis import given, settings
from hypothesis import strategies as st

from packlight.graph.coupling.groups import find_groups
from packlight.graph.rewrite.prune import remove_channels


@dataclass
class Chain:
    """A graph that grows at its end: a tensor [n, channels, 4, 4] called `last`."""

    last: str = "x"
    channels: int = 3
    lines: list[str] = field(default_factory=list)
    weights: dict[str, Any] = field(default_factory=dict)

    def add(self, call: str, channels: int | None = None) -> str:
        """A node; '$' in the call is the end of the chain."""
        name = f"v{len(self.lines)}"
        self.lines.append(f"{name} = {call.replace('$', self.last)}")
        self.last = name
        self.channels = self.channels if channels is None else channels
        return name

    def weight(self, given: Any) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = given
        return name

    def ints(self, *numbers: int) -> str:
        return self.weight(np.array(numbers, dtype=np.int64))


def conv(chain: Chain, pick: int) -> None:
    out = 4 + 2 * (pick % 4)
    w, b = chain.weight((out, chain.channels, 3, 3)), chain.weight((out,))
    chain.add(f"Conv <pads = [1, 1, 1, 1]> ($, {w}, {b})", out)


def grouped(chain: Chain, pick: int) -> None:
    fits = [g for g in range(2, chain.channels + 1) if chain.channels % g == 0]
    groups = fits[pick % len(fits)] if fits else 1
    out = groups * (1 + pick % 3)
    w, b = chain.weight((out, chain.channels // groups, 1, 1)), chain.weight((out,))
    chain.add(f"Conv <group = {groups}> ($, {w}, {b})", out)


def activation(chain: Chain, pick: int) -> None:
    slope = chain.weight((chain.channels, 1, 1))
    chain.add(("Relu($)", "Sigmoid($)", f"PRelu($, {slope})", f"Add({slope}, $)")[pick % 4])


def normalized(chain: Chain, pick: int) -> None:
    scale, shift = chain.weight((chain.channels,)), chain.weight((chain.channels,))
    if pick % 2:
        chain.add(f"InstanceNormalization($, {scale}, {shift})")
    else:
        spread = chain.weight(np.linspace(0.5, 2, chain.channels).astype(np.float32))
        chain.add(f"BatchNormalization($, {scale}, {shift}, {shift}, {spread})")


def residual(chain: Chain, pick: int) -> None:
    before, channels = chain.last, chain.channels
    conv(chain, pick)
    activation(chain, 0)
    w = chain.weight((channels, chain.channels, 1, 1))
    chain.add(f"Conv($, {w})", channels)
    chain.add(f"{('Add', 'Mul', 'Max')[pick % 3]}({before}, $)")


def dense(chain: Chain, pick: int) -> None:
    before, channels = chain.last, chain.channels
    conv(chain, pick)
    parts = f"{before}, $" if pick % 2 else f"$, {before}, $"
    total = channels + chain.channels * (1 if pick % 2 else 2)
    chain.add(f"Concat <axis = 1> ({parts})", total)


def gated(chain: Chain, pick: int) -> None:
    before, channels = chain.last, chain.channels
    chain.add("GlobalAveragePool($)")
    w = chain.weight((channels, channels, 1, 1))
    chain.add(f"Conv($, {w})")
    chain.add("Sigmoid($)")
    chain.add(f"Mul($, {before})")


def swapped(chain: Chain, pick: int) -> None:
    first = 1 + pick % (chain.channels - 1)
    sizes = chain.ints(first, chain.channels - first)
    one, two = f"v{len(chain.lines)}a", f"v{len(chain.lines)}b"
    chain.lines.append(f"{one}, {two} = Split <axis = 1> ({chain.last}, {sizes})")
    chain.last = two
    activation(chain, 0)
    chain.add(f"Concat <axis = -3> ($, {one})")


def shuffled(chain: Chain, pick: int) -> None:
    parts = next((p for p in (2, 3, 5) if chain.channels % p == 0), 1)
    apart = chain.ints(0, parts, chain.channels // parts, 4, 4)
    chain.add(f"Reshape($, {apart})")
    chain.add("Transpose <perm = [0, 2, 1, 3, 4]> ($)")
    chain.add(f"Reshape($, {chain.ints(0, chain.channels, 4, 4)})")


def cut(chain: Chain, pick: int) -> None:
    low = pick % (chain.channels - 1)
    start, end, axis = chain.ints(low), chain.ints(chain.channels), chain.ints(1)
    chain.add(f"Slice($, {start}, {end}, {axis})", chain.channels - low)


def padded(chain: Chain, pick: int) -> None:
    amounts = chain.ints(0, pick % 3, 0, 0, 0, 1 + pick % 2, 0, 0)
    chain.add(f"Pad($, {amounts})", chain.channels + pick % 3 + 1 + pick % 2)


def picked(chain: Chain, pick: int) -> None:
    order = np.random.default_rng(pick).integers(0, chain.channels, chain.channels + 1)
    chain.add(f"Gather <axis = 1> ($, {chain.ints(*order.tolist())})", len(order))


def turned(chain: Chain, pick: int) -> None:
    # Channels last, a product over them, and back.
    out = 4 + pick % 3
    chain.add("Transpose <perm = [0, 2, 3, 1]> ($)")
    chain.add(f"MatMul($, {chain.weight((chain.channels, out))})", out)
    chain.add(f"Add($, {chain.weight((out,))})")
    chain.add("Transpose <perm = [0, 3, 1, 2]> ($)")


STEPS: tuple[Callable[[Chain, int], None], ...] = (
    conv, grouped, activation, normalized, residual, dense, gated, swapped, shuffled, cut, padded,
    picked, turned,
)  # fmt: skip


@settings(max_examples=60)
@given(
    steps=st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 11)), min_size=1, max_size=6),
    flat=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_pruned_chain_is_the_masked_one(
    steps: list[tuple[Callable[[Chain, int], None], int]], flat: bool, seed: int
):
    chain = Chain()
    conv(chain, seed)
    for step, pick in steps:
        step(chain, pick)
    if not flat:
        chain.add("GlobalAveragePool($)")
    chain.add("Flatten($)")
    width = chain.channels * (16 if flat else 1)
    chain.lines.append(f"y = Gemm({chain.last}, {chain.weight((width, 3))})")
    body = "\n".join(chain.lines)
    model = build(f"net (float[n, 3, 4, 4] x) => (float[n, 3] y) {{ {body} }}", **chain.weights)
    groups = find_groups(model)
    check_partition(groups)
    draw = np.random.default_rng(seed)
    removed = {
        group.name: draw.permutation(group.size)[: draw.integers(1, group.size)].tolist()
        for group in free(groups)
        if draw.random() < 0.7
    }
    pruned = remove_channels(model, removed)
    feeds = feeds_of(model, seed)
    wanted = session_of(masked(model, groups, removed)).run(None, feeds)[0]
    found = session_of(pruned).run(None, feeds)[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 * max(1, np.abs(wanted).max()))
    if removed:
        assert weigh(pruned) < weigh(model)
