"""Fixtures for tests that build small models, compress them and run them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import layer_kinds
import pytest
from graph_bench import Bench

from packlight.runtime import Process


@pytest.fixture(scope="session")
def process() -> Iterator[Process]:
    with Process() as one:
        yield one


@pytest.fixture
def bench(tmp_path: Path, process: Process) -> Bench:
    return Bench(tmp_path, process)


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Random weights that several files draw are those of a test, whatever ran before it."""
    layer_kinds.RANDOM.bit_generator.state = _START


_START = layer_kinds.RANDOM.bit_generator.state
