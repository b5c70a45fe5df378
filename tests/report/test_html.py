from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from report_pages import Page

from packlight.measure.evidence import Evidence, Skipped, Trial
from packlight.report.html import write_html

HOSTILE = "</script><img src=x onerror=alert(1)>\x1b[31m\u202egpj.exe\u2066\x00 & \"q\" 'a'"
SNIPPET = 'import onnxruntime\nprint("<ready>")\n'


def everywhere(evidence: Evidence, text: str) -> Evidence:
    """The evidence with `text` in every string that it holds."""
    assert evidence.metric is not None
    assert evidence.latency_ms is not None
    return replace(
        evidence,
        reason=text,
        model=text,
        target=text,
        metric=replace(evidence.metric, name=text),
        latency_ms=replace(evidence.latency_ms, runtime=text),
        layers=tuple(
            replace(layer, name=text, op=text, choice=text, reason=text)
            for layer in evidence.layers
        ),
        not_compressed=(Skipped(text, text),),
        trials=tuple(replace(trial, label=text, note=text) for trial in evidence.trials),
        notes=(text,),
        inputs=(text,),
        samples=text,
        environment={text: text},
    )


def test_the_page_is_whole_and_opens_offline(evidence: Evidence) -> None:
    text = write_html(evidence, how_to_run=SNIPPET)
    page = Page(text)
    assert page.tags["script"] == page.tags["link"] == page.tags["img"] == 0
    assert page.tags["iframe"] == page.tags["object"] == page.tags["form"] == 0
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in {"href", "src", "xlink:href", "action"}:
            assert value is not None
            assert value.startswith("#")
    style = text.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in text
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = [value for _, name, value in page.attributes if name == "href"]
    assert {str(t)[1:] for t in targets} <= set(ids)
    labels = [value for _, name, value in page.attributes if name == "aria-labelledby"]
    assert {key for value in labels for key in str(value).split()} <= set(ids)


def test_hostile_names_stay_text(evidence: Evidence) -> None:
    plain = Page(write_html(everywhere(evidence, "name"), how_to_run="name"))
    text = write_html(everywhere(evidence, HOSTILE), how_to_run=HOSTILE)
    page = Page(text)
    # Not one element more; labels in a plot (text, line) find a place or not by their length.
    drawn = {"text", "line"}
    assert {t: n for t, n in page.tags.items() if t not in drawn} == {
        t: n for t, n in plain.tags.items() if t not in drawn
    }
    assert [(t, n) for t, n, _ in page.attributes if t not in drawn] == [
        (t, n) for t, n, _ in plain.attributes if t not in drawn
    ]
    for character in "\x1b\u202e\u2066\x00":
        assert character not in text
    assert "\\u202egpj.exe" in page.text
    text.encode("utf-8")


def test_the_verdict_comes_first(evidence: Evidence) -> None:
    text = Page(write_html(evidence, how_to_run=SNIPPET)).text
    assert text.index("Budget met") < text.index("3.3") < text.index("Latency, 1 thread")


def test_that_accuracy_is_unknown_is_the_first_line(evidence: Evidence) -> None:
    blind = replace(evidence, metric=None, verdict="best-effort")
    main = write_html(blind, how_to_run=SNIPPET).split("<main>")[1]
    first = Page(main.split("</p>")[0] + "</p></div>").text.strip()
    assert first.startswith("Accuracy could not be measured")


@pytest.mark.parametrize("verdict", ["met", "best-effort", "not-worth-it"])
def test_every_verdict_has_its_badge(make_evidence: Callable[..., Evidence], verdict: str) -> None:
    assert f'class="badge {verdict}"' in write_html(
        make_evidence(verdict=verdict), how_to_run=SNIPPET
    )


def test_all_that_is_known_of_a_layer_is_on_the_page(evidence: Evidence) -> None:
    text = Page(write_html(evidence, how_to_run=SNIPPET)).text
    for layer in evidence.layers:
        assert layer.name in text
    for skipped in evidence.not_compressed:
        assert skipped.name in text
        assert skipped.reason in text.replace("\xa0", " ")
    for trial in evidence.trials:
        assert trial.label in text
    assert "resnet20.onnx" in text
    assert 'print("<ready>")' in text


def test_bare_evidence_leaves_parts_out(make_evidence: Callable[..., Evidence]) -> None:
    bare = make_evidence(
        metric=None,
        latency_ms=None,
        latency_all_threads_ms=None,
        peak_memory_bytes=None,
        layers=(),
        not_compressed=(),
        trials=(),
        notes=(),
        inputs=(),
        samples="",
        environment={},
    )
    page = Page(write_html(bare, how_to_run=""))
    assert page.tags["section"] == 1
    assert "How this was measured" in page.text


def test_a_large_model_makes_a_page_of_bearable_size(evidence: Evidence) -> None:
    layer = evidence.layers[0]
    many = tuple(dataclasses.replace(layer, name=f"{'block' * 400}.{i}") for i in range(5000))
    text = write_html(replace(evidence, layers=many), how_to_run=SNIPPET)
    assert len(text) < 4_000_000
    assert "4,988 smaller layers together" in text


def test_the_same_evidence_makes_the_same_page(evidence: Evidence) -> None:
    assert write_html(evidence, how_to_run="x") == write_html(evidence, how_to_run="x")


def test_trials_without_figures_are_still_listed(evidence: Evidence) -> None:
    text = write_html(replace(evidence, trials=(Trial("only", 5),)), how_to_run="x")
    assert "only" in text
    assert re.search("<details open>", text)
