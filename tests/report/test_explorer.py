from __future__ import annotations

import re
from dataclasses import replace

import pytest

from packlight.measure.evidence import Evidence, Trial
from packlight.report.explorer import write_plots
from packlight.report.html import write_html
from packlight.report.sections import write_trials


def tags(html: str, pattern: str) -> list[str]:
    return re.findall(pattern, html)


def test_every_view_has_its_button_and_the_first_is_shown(evidence: Evidence) -> None:
    html = write_plots(evidence)
    shown = tags(html, r'name="view" id="show-([a-z-]+)"( checked)?>')
    assert shown == [("size-quality", " checked"), ("time-quality", ""), ("size-time", "")]
    assert tags(html, r'<label for="show-([a-z-]+)">') == [name for name, _ in shown]
    assert "<script" not in html
    style = write_html(evidence, how_to_run="x")
    for name, _ in shown:  # the style sheet knows each of them
        assert f"#show-{name}:checked ~ .view-{name}" in style


def test_the_download_comes_first_where_it_was_wished_for(evidence: Evidence) -> None:
    trials = tuple(replace(trial, packed_bytes=trial.size_bytes // 3) for trial in evidence.trials)
    html = write_html(replace(evidence, trials=trials, preset="smallest"), how_to_run="x")
    shown = tags(html, r'name="view" id="show-([a-z-]+)"( checked)?>')
    assert shown[0] == ("download-quality", " checked")
    assert len(shown) == 4
    assert "#show-download-quality:checked ~ .view-download-quality" in html
    fast = write_plots(replace(evidence, trials=trials))
    assert tags(fast, r'id="show-([a-z-]+)" checked') == ["size-quality"]


def test_a_single_view_needs_no_buttons(evidence: Evidence) -> None:
    untimed = tuple(replace(trial, latency_ratio=None) for trial in evidence.trials)
    html = write_plots(replace(evidence, trials=untimed))
    assert 'name="view"' not in html
    assert 'class="view view-size-quality alone"' in html
    assert write_plots(replace(evidence, trials=())) == ""


def test_every_dot_can_be_reached_and_says_what_it_is(evidence: Evidence) -> None:
    canvas = write_plots(evidence).split('name="dot-size-quality-wide"')
    assert len(canvas) == 1 + 12 + 1  # trials and the original
    html = write_plots(evidence)
    labels = tags(html, r'name="dot-size-quality-wide" aria-label="([^"]+)"')
    assert any("3. int8, squared error" not in label for label in labels)
    assert any("5. int8, squared error" in label or "squared error" in label for label in labels)
    assert len(set(labels)) == 13
    # The Tab key comes to the chosen one first; arrow keys walk from left to right.
    checked = tags(html, r'name="dot-size-quality-wide" aria-label="([^"]+)" checked')
    assert len(checked) == 1
    assert "last conv in float" in checked[0]
    part = html.split('class="view view-size-quality')[1].split('class="narrow"')[0]
    lefts = [float(left) for left in tags(part, r'style="left:([0-9.]+)%')]
    assert lefts == sorted(lefts)


def test_dots_lie_on_their_marks(evidence: Evidence) -> None:
    html = write_plots(evidence)
    part = html.split('class="wide"')[1].split('class="narrow"')[0]
    marks = {
        (round(float(x), 0), round(float(y), 0))
        for x, y in tags(part, r'<circle cx="([0-9.]+)" cy="([0-9.]+)" r="[0-9.]+" class="mark')
    }
    dots = {
        (round(8.8 * float(x), 0), round(4.4 * float(y), 0))
        for x, y in tags(part, r'style="left:([0-9.]+)%;top:([0-9.]+)%"')
    }
    near = {(x + i, y + j) for x, y in dots for i in (-1, 0, 1) for j in (-1, 0, 1)}
    assert marks
    assert marks <= near


@pytest.mark.parametrize("number", [15, 16, 120])
def test_the_table_is_folded_where_it_is_long(evidence: Evidence, number: int) -> None:
    trials = tuple(
        Trial(f"t{i}", 300_000 + 1000 * (i % 40), drop=0.001 * (i % 7), chosen=i == 11)
        for i in range(number)
    )
    html = write_trials(replace(evidence, trials=trials))
    assert ("<details open>" in html) == (number <= 15)
    assert html.count("<details") == 1
    # All are in the whole table, the chosen one and the front first.
    whole = html.split("<details")[1]
    rows = tags(whole, r"<bdi>(t[0-9]+)</bdi>")
    assert sorted(rows) == sorted(f"t{i}" for i in range(number))
    assert rows[0] == "t11"
    fronts = ['pill front">' in row for row in whole.split("<tr>")[3:]]
    assert fronts == sorted(fronts, reverse=True)
    assert len(html) < 1_500_000
