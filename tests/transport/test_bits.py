from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from packlight.errors import UnusablePack
from packlight.transport.bits import LEAST, ONE, BitReader, BitWriter, lanes_for
from packlight.transport.logistic import EDGE, squash_table, stretch_table


def decisions(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    ones = np.clip((rng.random(count) ** 4 * ONE).astype(np.int64), LEAST, ONE - LEAST)
    return ones, (rng.random(count) < ones / ONE).astype(np.int64)


@pytest.mark.parametrize("lanes", [1, 2, 64, 512])
@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 2000])
def test_what_is_written_is_read(lanes: int, count: int) -> None:
    ones, bits = decisions(count, count)
    cuts = [0, count // 3, count // 3, count]
    parts = [slice(a, b) for a, b in pairwise(cuts)]
    writer = BitWriter()
    for part in parts:
        writer.code(ones[part], bits[part])
    coded = writer.finish(lanes)
    reader = BitReader(coded, lanes)
    for part in parts:
        np.testing.assert_array_equal(reader.code(ones[part], 0 * bits[part]), bits[part])
    reader.finish()


def test_it_takes_as_many_bits_as_the_probabilities_say() -> None:
    ones, bits = decisions(1, 20000)
    ideal = -float(np.sum(np.log2(np.where(bits == 1, ones, ONE - ones) / ONE)))
    writer = BitWriter()
    writer.code(ones, bits)
    assert writer.bits == pytest.approx(ideal)
    assert ideal <= 8 * len(writer.finish()) < ideal * 1.001 + 48
    assert 8 * len(writer.finish(64)) < ideal * 1.001 + 64 * 48


def test_these_bytes() -> None:
    writer = BitWriter()
    writer.code(np.array([40000, 100, 65000, 32768]), np.array([1, 0, 0, 1]))
    assert writer.finish().hex() == GOLDEN


GOLDEN = "4caff401"


@pytest.mark.parametrize("lanes", [1, 64])
def test_a_short_or_changed_stream_is_noticed(lanes: int) -> None:
    ones, bits = decisions(2, 3000)
    writer = BitWriter()
    writer.code(ones, bits)
    coded = writer.finish(lanes)

    def read(content: bytes) -> None:
        reader = BitReader(content, lanes)
        reader.code(ones, bits)
        reader.finish()

    for broken in (coded[:-2], coded[: 4 * lanes], coded[:3], coded + b"\0\0"):
        with pytest.raises(UnusablePack):
            read(broken)
    with pytest.raises(UnusablePack):
        BitReader(coded, 1 << 20)


def test_lanes_cost_little() -> None:
    assert lanes_for(0) == lanes_for(1e6) == 1
    for bits in (2e6, 1e7, 1e9):
        assert lanes_for(bits) >= 64 and 32 * lanes_for(bits) < 0.003 * bits


def test_the_tables_are_the_logistic_function_and_its_inverse() -> None:
    s = np.arange(-EDGE, EDGE + 1) / 256
    exact = np.clip(65536 / (1 + np.exp(-s)), LEAST, ONE - LEAST)
    assert np.max(abs(squash_table() - exact)) <= 1
    p = (np.arange(4096) + 0.5) / 4096
    assert np.max(abs(stretch_table() / 256 - np.log(p / (1 - p)))[20:-20]) < 0.01
    # Golden: another table is another format.
    assert (int(squash_table().sum()), int(abs(stretch_table()).sum())) == SUMS


SUMS = (167739392, 1454626)
