from __future__ import annotations

import re
from dataclasses import replace

import pytest

from packlight.measure.evidence import Budget, LatencyEvidence, MetricEvidence, Pair
from packlight.plan.judge import Figures, environment, judge
from packlight.runtime import runtime_name

METRIC = MetricEvidence("top-1 agreement", 500, 1.0, 0.998, 0.002, (0.0, 0.008), proven=True)
FASTER = LatencyEvidence("onnxruntime", 1, 10.0, 5.0, 0.5, (0.49, 0.51))
SMALLER = Pair(1000, 400)


def figures(**changes: object) -> Figures:
    good = Figures(METRIC, FASTER, None, None, SMALLER, ())
    return replace(good, **changes)  # type: ignore[arg-type]


def latency(ratio: float, low: float, high: float) -> LatencyEvidence:
    return LatencyEvidence("onnxruntime", 1, 10.0, 10.0 * ratio, ratio, (low, high))


LOST = replace(METRIC, compressed=0.9, drop=0.1, drop_interval_95=(0.07, 0.13), proven=False)
UNPROVEN = replace(METRIC, drop_interval_95=(-0.001, 0.02), proven=False, samples_needed=1800)
HOPELESS = replace(UNPROVEN, samples_needed=None)
ONE_PERCENT = Budget(max_drop=0.01)


@pytest.mark.parametrize(
    ("changes", "budget", "generated", "verdict", "words"),
    [
        ({}, ONE_PERCENT, False, "met", "proven at 95 %"),
        ({}, Budget(0.01, 400, 5.0), False, "met", "proven at 95 %"),
        ({"metric": UNPROVEN}, ONE_PERCENT, False, "met", "500 samples do not prove it.*1800"),
        ({"metric": HOPELESS}, ONE_PERCENT, False, "met", "do not prove it$"),
        # A slowdown that is not shown, or is within what two runs of one file differ by.
        ({"latency": latency(1.10, 0.98, 1.2)}, ONE_PERCENT, False, "met", "proven"),
        ({"latency": latency(1.01, 1.005, 1.015)}, ONE_PERCENT, False, "met", "proven"),
        # Not worth it: whatever else is said, a file that is slower or not smaller is no success.
        ({"size": Pair(1000, 1000)}, ONE_PERCENT, False, "not-worth-it", "not smaller"),
        ({"size": Pair(1000, 1001)}, ONE_PERCENT, False, "not-worth-it", "1001.*1000"),
        (
            {"latency": latency(1.10, 1.08, 1.12)},
            ONE_PERCENT,
            False,
            "not-worth-it",
            "slower: 1.10",
        ),
        ({"size": Pair(1000, 1001), "metric": LOST}, ONE_PERCENT, False, "not-worth-it", "not sm"),
        ({"size": Pair(1000, 1001)}, Budget(), True, "not-worth-it", "not smaller"),
        ({"latency": latency(2, 1.9, 2.1), "metric": None}, Budget(), True, "not-worth-it", "slow"),
        # Best effort: a budget that is not kept, and every one that is not is named.
        ({"metric": LOST}, ONE_PERCENT, False, "best-effort", "drops by 0.1 .*0.01 are allowed"),
        ({}, Budget(max_size_bytes=399), False, "best-effort", "400 bytes of 399"),
        ({}, Budget(max_latency_ms=4.9), False, "best-effort", "5 ms of 4.9"),
        (
            {"metric": LOST},
            Budget(0.01, 399, 4.9),
            False,
            "best-effort",
            "size is.*; latency is.*; top-1 agreement drops",
        ),
        # Without real samples nothing can be met.
        ({}, ONE_PERCENT, True, "best-effort", "^accuracy could not be measured"),
        ({}, Budget(), True, "best-effort", "^accuracy could not be measured"),
        ({"metric": None}, Budget(), False, "best-effort", "^accuracy could not be measured"),
        ({}, Budget(max_size_bytes=399), True, "best-effort", "^accuracy.*; size is"),
    ],
)
def test_the_verdict(
    changes: dict[str, object], budget: Budget, generated: bool, verdict: str, words: str
) -> None:
    found, reason = judge(figures(**changes), budget, generated=generated)
    assert found == verdict
    assert re.search(words, reason), reason


def test_a_budget_of_size_alone_does_not_claim_a_proof_of_accuracy() -> None:
    unproven = replace(METRIC, proven=False)
    verdict, reason = judge(figures(metric=unproven), Budget(max_size_bytes=400), generated=False)
    assert verdict == "met"
    assert "proven" not in reason


def test_a_metric_that_is_not_a_number_is_not_within_the_budget() -> None:
    broken = replace(METRIC, compressed=float("nan"), drop=float("nan"), proven=False)
    verdict, _ = judge(figures(metric=broken), ONE_PERCENT, generated=False)
    assert verdict == "best-effort"


def test_the_environment_names_versions_and_the_processor() -> None:
    found = environment(runtime_name("onnxruntime"))
    assert {"packlight", "runtime", "python", "numpy", "system", "processor"} <= found.keys()
    assert all(isinstance(value, str) and value for value in found.values())
    assert "VNNI" in found["processor"]
