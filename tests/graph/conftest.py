"""Fixtures for tests that build small models, compress them and run them."""

from __future__ import annotations

import layer_kinds
import pytest
from graph_bench import bench, process

__all__ = ["bench", "process"]


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Random weights that several files draw are those of a test, whatever ran before it."""
    layer_kinds.RANDOM.bit_generator.state = _START


_START = layer_kinds.RANDOM.bit_generator.state
