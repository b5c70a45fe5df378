"""The targets: complete, distinct, and found by name."""

from __future__ import annotations

import pytest

from packlight.errors import WrongUsage
from packlight.targets import TARGETS, find_target

DYNAMIC = {"MatMul", "Gemm", "LSTM"}  # what graph/rewrite/dynamic.py can do
STATIC = {"Conv", "Gemm", "MatMul"}
BLOCKS = {"MatMul", "Gemm", "Gather"}


def test_every_target_is_found_by_its_name() -> None:
    assert len({target.name for target in TARGETS}) == len(TARGETS) >= 1
    for target in TARGETS:
        assert find_target(target.name) is target


def test_targets_promise_only_what_can_be_written() -> None:
    for target in TARGETS:
        assert target.static <= STATIC
        assert target.dynamic <= DYNAMIC
        assert target.blocks <= BLOCKS
        assert target.accuracy_level in range(5)
        assert target.title and target.runtime and target.fast
        assert target.activation_bits <= {4, 8, 16} and target.block_bits <= {2, 4, 8}
        assert bool(target.blocks) == bool(target.block_bits), target.name
        assert target.measured_here or target.note


def test_only_what_runs_on_this_machine_is_measured() -> None:
    measured = {target.name: target.measured for target in TARGETS}
    assert measured == {
        "laptop": "onnxruntime",
        "openvino": "openvino",
        "browser": "browser",
        "android": "predicted",
        "raspberry-pi": "predicted",
        "litert": "predicted",
        "executorch": "predicted",
        "coreml": "predicted",
        "nvidia": "predicted",
        "microcontroller": "predicted",
    }
    for target in TARGETS:
        assert target.measured_here is (target.measured != "predicted")
        assert target.measured_here or "not of the device" in target.note


def test_x86_keeps_the_pair_limit() -> None:
    assert find_target("laptop").pair_limit
    assert find_target("browser").pair_limit  # WASM adds pairs as x86 does


@pytest.mark.parametrize(("word", "near"), [("lptop", "laptop"), ("rasberry-pi", "raspberry-pi")])
def test_a_word_that_is_no_target_gets_the_nearest(word: str, near: str) -> None:
    with pytest.raises(WrongUsage, match=f"did you mean '{near}'"):
        find_target(word)


def test_a_word_like_no_target_gets_all_of_them() -> None:
    with pytest.raises(WrongUsage, match="laptop, openvino, browser"):
        find_target("zzz")
