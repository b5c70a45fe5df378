from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import replace
from typing import Any

import pytest
from report_pages import Page

from packlight.errors import WrongUsage
from packlight.measure.evidence import Pair, Skipped
from packlight.measure.language import Divergence
from packlight.measure.language_evidence import (
    BlockEvidence,
    Continuation,
    LanguageBudget,
    LanguageEvidence,
    LanguageTrial,
    Speed,
    SpeedEvidence,
    TensorEvidence,
)
from packlight.report.language import language_table, write_language_html
from packlight.report.language_json import (
    json_to_language_evidence,
    language_evidence_to_json,
    write_language_json,
)
from packlight.report.language_wording import (
    how_to_run_language,
    list_language_figures,
    state_language_verdict,
)

HOSTILE = "</script><img src=x onerror=alert(1)>\x1b[31m\u202egpj.exe\u2066\x00 & \"q\" 'a' [red]"


@pytest.fixture
def evidence() -> LanguageEvidence:
    """A run as it could have been."""
    return LanguageEvidence(
        verdict="met",
        reason="the budget is kept",
        model="novels-llama",
        architecture="llama",
        parameters=5_770_496,
        target="llama.cpp",
        budget=LanguageBudget(bits=4.5, max_drop=0.08),
        size_bytes=Pair(11_680_832, 3_245_904),
        bits_per_weight=4.5,
        divergence=Divergence(
            tokens=10_200,
            windows=40,
            mean_kl=0.0081,
            mean_kl_interval_95=(0.0079, 0.0084),
            p99_kl=0.0507,
            top_agreement=0.9337,
            top_agreement_interval_95=(0.9282, 0.9391),
            perplexity_original=85.09,
            perplexity_compressed=85.74,
            perplexity_ratio=1.0076,
            perplexity_ratio_interval_95=(1.0021, 1.0101),
        ),
        speed=SpeedEvidence(
            runtime="llama.cpp (llama-cpp-python 0.3.36) CPU",
            threads=2,
            prompt_tokens=128,
            generated_tokens=32,
            prompt=Speed(4000.0, 3000.0, 0.75, (0.7, 0.8)),
            generation=Speed(1000.0, 1500.0, 1.5, (1.4, 1.6)),
        ),
        peak_memory_bytes=Pair(90_000_000, 80_000_000),
        tensors=(
            TensorEvidence("token_embd.weight", "Q6_K", 6.5625, 1_048_576, 1e-4, ""),
            TensorEvidence("blk.0.ffn_down.weight", "Q4_K", 4.5, 196_608, 0.0064, "most lost"),
            TensorEvidence("output_norm.weight", "F32", 32.0, 256, None, "norms stay"),
        ),
        not_compressed=(Skipped("output_norm.weight", "norms stay"),),
        continuations=(
            Continuation("It was", " a dark\nnight", " a dark\nnight"),
            Continuation("He said", " no", " yes"),
        ),
        trials=(LanguageTrial("Q4_K everywhere", 3_300_000, 0.009, 0.93, note="plain"),),
        removed=(BlockEvidence(3, 0.08, 0.4), BlockEvidence(1)),
        blocks=6,
        notes=("a note",),
        text="10,240 tokens of notes.txt, held back",
        environment={"packlight": "0.2.0"},
        seconds=61.0,
    )


def everywhere(value: Any, text: str) -> Any:
    """The evidence with `text` in every string that it holds, but for the verdict."""
    if isinstance(value, str):
        return text
    if isinstance(value, tuple):
        return tuple(everywhere(one, text) for one in value)
    if isinstance(value, dict):
        return {text: text}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return type(value)(
            **{k: v if k == "verdict" else everywhere(v, text) for k, v in fields.items()}
        )
    return value


def bare(evidence: LanguageEvidence) -> LanguageEvidence:
    """The evidence of a run without text, runtime or choices."""
    return replace(
        evidence,
        divergence=None,
        speed=None,
        peak_memory_bytes=None,
        tensors=(),
        not_compressed=(),
        continuations=(),
        trials=(),
        notes=(),
        text="",
        environment={},
    )


def test_the_page_tells_the_figures(evidence: LanguageEvidence) -> None:
    text = write_language_html(evidence, how_to_run="llama-cli -m <model>\n")
    page = Page(text)
    for words in (
        "3.6 times smaller and 1.5 times faster at writing",
        "its first choice was the original's 93.4 % of the time",
        "within the loss of 8 % that you allow, with 95 % certainty",
        "0.00790 to 0.00840",
        "85.74",
        "llama-cli -m <model>",
        "1 of 2 texts are the same to the end",
        "Q4_K everywhere",
        "10,240 tokens of notes.txt, held back",
    ):
        assert words in page.text.replace("\xa0", " "), words
    assert " a dark\nnight" in page.text, "texts keep their lines"
    assert page.tags["script"] == page.tags["img"] == page.tags["link"] == 0


def test_hostile_text_is_harmless_everywhere(evidence: LanguageEvidence) -> None:
    text = write_language_html(everywhere(evidence, HOSTILE), how_to_run=HOSTILE)
    page = Page(text)
    assert page.tags["script"] == page.tags["img"] == 0
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert not {"br", "img", "link", "input", "hr"} & set(page.tags)
    for forbidden in ("\x1b", "\u202e", "\u2066", "\x00"):
        assert forbidden not in text
        assert forbidden not in language_table(everywhere(evidence, HOSTILE))
        assert forbidden not in how_to_run_language("llama.cpp", HOSTILE)
    assert "[red]" in language_table(everywhere(evidence, HOSTILE), width=1000)


def test_what_was_not_measured_is_said_and_left_out(evidence: LanguageEvidence) -> None:
    text = write_language_html(bare(evidence), how_to_run="")
    page = Page(text)
    assert "could not be measured" in page.text
    assert 'id="answers"' not in text
    assert "its speed was not measured" in page.text
    assert "could not be measured" in language_table(bare(evidence)).replace("\n", " ")


def test_the_table_for_a_terminal(evidence: LanguageEvidence) -> None:
    lines = language_table(evidence).split("\n")
    rows = {line[:31].strip(): line for line in lines if line}
    assert "3.6× smaller" in rows["Size"]
    assert "1.40× to 1.60×" in rows["Writing, tokens a second"]
    assert "1.3× slower" in rows["Reading, tokens a second"]
    assert "1.25× to 1.43×" in rows["Reading, tokens a second"]
    assert (
        "6.09 % to 7.18 %" in rows["Same first choice"]
        or "6.1 % to 7.2 %" in (rows["Same first choice"])
    )
    assert lines[0].startswith("Budget met. Your model is 3.6 times smaller")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"verdict": "not-worth-it"}, "Keep your original model: the best version found is"),
        ({"budget": LanguageBudget(max_drop=0.07)}, "probably within the loss of 7 %"),
        ({"budget": LanguageBudget(max_drop=0.01)}, "more is lost than the 1 % you allow"),
        ({"budget": LanguageBudget()}, "93.4 % of the time."),
        ({"divergence": None}, "how far its predictions changed is not known"),
    ],
)
def test_the_verdict_in_words(
    evidence: LanguageEvidence, change: dict[str, Any], words: str
) -> None:
    assert words in state_language_verdict(replace(evidence, **change))


def test_a_loss_beyond_the_limit_is_an_alarm(evidence: LanguageEvidence) -> None:
    def tone(limit: float) -> str:
        changed = replace(evidence, budget=LanguageBudget(max_drop=limit))
        return {row.name: row.tone for row in list_language_figures(changed)}["Same first choice"]

    assert tone(0.05) == "worse"
    assert tone(0.08) == "same"


def test_the_json_keeps_the_keys_of_all_reports(evidence: LanguageEvidence) -> None:
    found = language_evidence_to_json(evidence)
    assert found["schema"] == 1
    assert found["metric"]["drop"] == pytest.approx(0.0663)
    assert found["metric"]["drop_interval_95"] == pytest.approx([0.0609, 0.0718])
    assert found["metric"]["proven"] is True
    assert found["latency_ms"]["compressed"] == pytest.approx(1 / 1.5)
    assert found["latency_ms"]["ratio_interval_95"] == pytest.approx([1 / 1.6, 1 / 1.4])
    assert found["budget"]["bits"] == 4.5
    assert found["layers"][1]["choice"] == "Q4_K"
    assert found["layers"][1]["error_db"] == pytest.approx(-10 * math.log10(0.0064))
    assert found["layers"][2]["error_db"] is None


def test_the_json_holds_all_evidence(evidence: LanguageEvidence) -> None:
    assert evidence.divergence is not None
    alone = replace(
        evidence.divergence,
        mean_kl_interval_95=(0.0, math.inf),
        perplexity_ratio_interval_95=(0.0, math.inf),
        perplexity_compressed=math.inf,
    )
    for one in (evidence, bare(evidence), replace(evidence, divergence=alone)):
        assert json_to_language_evidence(json.loads(write_language_json(one))) == one


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 2}, "not a language model's report of schema 1"),
        ({"kind": "graph"}, "kind 'graph'"),
        ({"language": {}}, "not a whole packlight report"),
        ({"layers": [{"name": "x"}]}, "not a whole packlight report"),
        ({"metric": None, "budget": None}, "not a whole packlight report"),
    ],
)
def test_a_broken_report_is_refused(
    evidence: LanguageEvidence, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(WrongUsage, match=words):
        json_to_language_evidence({**language_evidence_to_json(evidence), **change})


def test_how_to_run_it_on_each_target() -> None:
    assert "llama-cli -m model.gguf" in how_to_run_language("llama.cpp", "model.gguf")
    assert "ollama run" in how_to_run_language("ollama", "model.gguf")
    assert "vllm serve" in how_to_run_language("vllm", "")
