"""Fixtures for tests that train small models and run them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from graph_bench import Bench

from packlight.runtime import Process


@pytest.fixture(scope="module")
def process() -> Iterator[Process]:
    with Process() as one:
        yield one


@pytest.fixture
def bench(tmp_path: Path, process: Process) -> Bench:
    return Bench(tmp_path, process)
