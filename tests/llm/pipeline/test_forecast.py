from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from folder_bench import write_llama, write_tall_llama

from packlight.language.ask import read_ask
from packlight.language.forecast import forecast_language
from packlight.language.targets import LANGUAGE_TARGETS
from packlight.llm.checkpoint import Checkpoint, open_checkpoint
from packlight.llm.compress import compress_checkpoint, uniform_types
from packlight.llm.compress_forecast import (
    forecast_compression,
    forecast_workers,
    rounded_names,
)
from packlight.llm.text import Windows


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(write_llama(tmp_path_factory.mktemp("llama")))


@pytest.mark.parametrize("kinds", [("Q8_0",), ("Q4_0", "Q5_1", "F16")])
def test_the_size_is_the_file_s_to_the_byte(
    tmp_path: Path, checkpoint: Checkpoint, kinds: tuple[str, ...]
):
    names = rounded_names(checkpoint)
    types = {name: kinds[i % len(kinds)] for i, name in enumerate(names)}
    said = forecast_compression(checkpoint, types)
    done = compress_checkpoint(checkpoint, tmp_path / "m.gguf", types)
    assert said.size_bytes == done.size_bytes
    assert (said.rounded, said.kept) == (len(done.rows), len(done.kept))


def test_codebooks_take_longer_than_types_of_about_their_size(tmp_path: Path):
    wide = open_checkpoint(write_tall_llama(tmp_path, 1, 256, 256))
    for tokens in (0, 1000):
        words, plain = (
            forecast_compression(wide, uniform_types(wide, kind), tokens=tokens)
            for kind in ("IQ2_S", "Q2_K")
        )
        assert 1.5 * plain.seconds < words.seconds and words.size_bytes < plain.size_bytes


def test_gradients_cost_memory_that_states_do_not(checkpoint: Checkpoint):
    types = uniform_types(checkpoint, "Q4_0")
    with_them, without = (
        forecast_compression(checkpoint, types, tokens=100, gradients=gradients)
        for gradients in (True, False)
    )
    assert with_them.memory_bytes > without.memory_bytes
    assert with_them.size_bytes == without.size_bytes


def test_a_worker_takes_what_a_batch_and_its_second_moments_take(tmp_path: Path):
    small, wide = (
        open_checkpoint(write_tall_llama(tmp_path / str(width), 1, 256, width))
        for width in (256, 2560)
    )
    few, many = (forecast_workers(one, tokens=10_000) for one in (small, wide))
    assert few.scratch_bytes == 2 * 8 * 256**2 and many.scratch_bytes == 2 * 8 * 2560**2
    assert many.memory_bytes - few.memory_bytes > 28 * (2560**2 - 256**2)
    assert few.shared_bytes > 2 * 10_000 * 256 * 4
    assert forecast_workers(wide, tokens=20_000).memory_bytes == many.memory_bytes
    alone = forecast_workers(wide)
    assert 0 < alone.memory_bytes < many.memory_bytes and not alone.scratch_bytes


@pytest.mark.parametrize("text", [False, True])
def test_workers_are_counted(checkpoint: Checkpoint, text: bool):
    tokens = np.zeros((20, 64), np.int32)
    windows = Windows("t", tokens[:16], tokens[16:18], tokens[18:], tokens.size) if text else None
    ask = read_ask(target="llama.cpp", original_bytes=checkpoint.size_bytes)
    one, three, cluster = (
        forecast_language(LANGUAGE_TARGETS["llama.cpp"], checkpoint, ask, windows, workers)
        for workers in (1, 3, "ray://host:10001")
    )
    each = forecast_workers(checkpoint, tokens=16 * 64 if text else 0)
    assert three.memory_bytes == one.memory_bytes + 3 * each.memory_bytes
    assert three.scratch_bytes == cluster.scratch_bytes + 3 * each.scratch_bytes
    assert cluster.memory_bytes == one.memory_bytes
    assert (cluster.scratch_bytes > one.scratch_bytes) == text
    said = f"takes about {each.memory_bytes / 1e6:,.0f} MB of memory"
    assert all(said in " ".join(found.notes) for found in (three, cluster))
    assert said not in " ".join(one.notes)


def test_text_costs_memory_time_and_beyond_a_limit_the_disk(checkpoint: Checkpoint):
    types = uniform_types(checkpoint, "Q4_0")
    alone = forecast_compression(checkpoint, types)
    alike = {"tokens": 10_000, "gradients": False}
    read = forecast_compression(checkpoint, types, **alike)
    followed = forecast_compression(checkpoint, types, followed=True, **alike)
    spilled = forecast_compression(checkpoint, types, states_bytes=1_000_000, **alike)
    assert alone.memory_bytes < read.memory_bytes < followed.memory_bytes
    assert alone.seconds < read.seconds < followed.seconds
    assert read.scratch_bytes == 0
    assert spilled.scratch_bytes == 10_000 * 64 * 4 * 2 - 1_000_000
    assert spilled.memory_bytes < read.memory_bytes
