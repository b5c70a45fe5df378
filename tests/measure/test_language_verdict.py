from __future__ import annotations

from dataclasses import replace

import pytest

from packlight.measure.evidence import Pair, Verdict
from packlight.measure.language import Divergence
from packlight.measure.language_evidence import LanguageBudget, Speed, SpeedEvidence
from packlight.measure.language_verdict import judge_language

FAR = Divergence(
    tokens=10_200,
    windows=40,
    mean_kl=0.008,
    mean_kl_interval_95=(0.0078, 0.0083),
    p99_kl=0.05,
    top_agreement=0.934,
    top_agreement_interval_95=(0.928, 0.939),
    perplexity_original=85.09,
    perplexity_compressed=85.5,
    perplexity_ratio=1.0048,
    perplexity_ratio_interval_95=(1.002, 1.007),
)
FASTER = Speed(100.0, 150.0, 1.5, (1.4, 1.6))
SPEED = SpeedEvidence("llama.cpp", 2, 128, 32, FASTER, FASTER)


def judge(
    budget: LanguageBudget,
    *,
    size: int = 300,
    far: Divergence | None = FAR,
    writing: Speed = FASTER,
    bits: float = 4.5,
) -> tuple[Verdict, str]:
    return judge_language(
        budget,
        size_bytes=Pair(1000, size),
        bits_per_weight=bits,
        divergence=far,
        speed=replace(SPEED, generation=writing),
    )


@pytest.mark.parametrize(
    ("budget", "verdict", "words"),
    [
        (LanguageBudget(bits=4.5), "met", "no limit was set for the agreement"),
        (LanguageBudget(bits=4.46), "met", "no limit"),
        (LanguageBudget(bits=4.4), "best-effort", "4.5 bits of 4.4 allowed"),
        (LanguageBudget(max_size_bytes=300), "met", "0.934"),
        (LanguageBudget(max_size_bytes=299), "best-effort", "300 bytes of 299 allowed"),
        (LanguageBudget(max_drop=0.08), "met", "proven at 95 %"),
        (LanguageBudget(max_drop=0.07), "met", "10200 tokens do not prove it"),
        (LanguageBudget(max_drop=0.06), "best-effort", "another one 0.066 of the time"),
    ],
)
def test_the_budget_decides(budget: LanguageBudget, verdict: str, words: str) -> None:
    found, reason = judge(budget)
    assert found == verdict
    assert words in reason


def test_a_file_that_is_not_smaller_is_not_worth_it() -> None:
    found, reason = judge(LanguageBudget(), size=1000)
    assert found == "not-worth-it"
    assert "not smaller (1000 bytes, the original has 1000)" in reason


@pytest.mark.parametrize(
    ("speed", "verdict"),
    [
        (Speed(100.0, 80.0, 0.8, (0.7, 0.9)), "not-worth-it"),
        (Speed(100.0, 80.0, 0.8, (0.7, 1.1)), "met"),
        (Speed(100.0, 99.0, 0.99, (0.985, 0.995)), "met"),
    ],
)
def test_a_file_that_is_slower_is_not_worth_it(speed: Speed, verdict: str) -> None:
    assert judge(LanguageBudget(), writing=speed)[0] == verdict


def test_what_was_not_measured_is_not_met() -> None:
    found, reason = judge(LanguageBudget(bits=5), far=None)
    assert found == "best-effort"
    assert reason.startswith("how far its predictions changed could not be measured")
