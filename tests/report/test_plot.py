from __future__ import annotations

import itertools
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packlight.measure.evidence import Evidence, Trial
from packlight.report.plot import draw, lay_out
from packlight.report.views import collect_view

SVG = "{http://www.w3.org/2000/svg}"


def draw_trials(
    evidence: Evidence, *, width: int, height: int, name: str, numbers: bool = False
) -> str:
    """Size and quality as an SVG; empty where there is nothing to plot."""
    found = collect_view(evidence, "size-quality")
    if found is None:
        return ""
    return draw(lay_out(found, width=width, height=height), name=name, numbers=numbers)


def parse(svg: str) -> ET.Element:
    return ET.fromstring(svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


def label_boxes(root: ET.Element) -> list[tuple[float, float, float, float]]:
    boxes = []
    for text in root.iter(f"{SVG}text"):
        if "label" in text.get("class", ""):
            x, y, width = (
                float(text.get("x", 0)),
                float(text.get("y", 0)),
                6.2 * len(text.text or ""),
            )
            anchor = {"middle": width / 2, "end": width}[text.get("text-anchor", "")]
            boxes.append((x - anchor, y - 10, x - anchor + width, y + 3))
    return boxes


trials = st.builds(
    Trial,
    label=st.text(st.characters(codec="ascii"), min_size=1, max_size=40),
    size_bytes=st.integers(1, 10**9),
    drop=st.none() | st.floats(-1, 1) | st.just(math.nan),
    noise_db=st.none() | st.floats(-20, 150),
    chosen=st.booleans(),
)


@given(st.lists(trials, max_size=14), st.sampled_from([None, 0.01]))
def test_any_trials_make_a_sound_drawing(
    make_evidence: Callable[..., Evidence], tried: list[Trial], max_drop: float | None
) -> None:
    evidence = make_evidence(trials=tuple(tried))
    evidence = replace(evidence, budget=replace(evidence.budget, max_drop=max_drop))
    for width, height, numbers in ((880, 420, False), (340, 360, True)):
        svg = draw_trials(evidence, width=width, height=height, name="p", numbers=numbers)
        if not svg:
            continue
        assert "nan" not in re.sub(r">[^<]*<", "><", svg)
        boxes = label_boxes(parse(svg))
        for (a, b, c, d), (e, f, g, h) in itertools.combinations(boxes, 2):
            assert a >= g or e >= c or b >= h or f >= d, "two labels overlap"
        assert all(b[0] >= 0 and b[2] <= width and b[1] >= 0 and b[3] <= height for b in boxes)


def test_smaller_is_left_and_better_is_up(evidence: Evidence) -> None:
    pair = (
        Trial("small bad", 100, drop=0.004),
        Trial("large good", 900_000, drop=0.0, chosen=True),
    )
    root = parse(draw_trials(replace(evidence, trials=pair), width=880, height=420, name="p"))
    marks = [c for c in root.iter(f"{SVG}circle") if "mark" in c.get("class", "")]
    by_kind = {(c.get("class") or "").split()[1]: c for c in marks}
    small, large = by_kind["tried"], by_kind["chosen"]
    assert float(small.get("cx", 0)) < float(large.get("cx", 0))
    assert float(small.get("cy", 0)) > float(large.get("cy", 0))


def test_a_ruined_model_does_not_flatten_the_rest(evidence: Evidence) -> None:
    ruined = Trial("ruined", 300_000, drop=0.9)
    svg = draw_trials(
        replace(evidence, trials=(*evidence.trials, ruined)), width=880, height=420, name="p"
    )
    assert "ruined (−90 %)" in svg
    heights = {c.get("cy") for c in parse(svg).iter(f"{SVG}circle")}
    assert len(heights) >= 7


def test_without_a_metric_the_height_is_the_signal_to_noise_ratio(evidence: Evidence) -> None:
    blind = tuple(replace(trial, drop=None) for trial in evidence.trials)
    svg = draw_trials(replace(evidence, trials=blind, metric=None), width=880, height=420, name="p")
    assert " dB</text>" in svg
    assert "your limit" not in svg


@pytest.mark.parametrize("tried", [(), (Trial("a", 5),), (Trial("a", 5, drop=math.nan),)])
def test_nothing_measured_is_nothing_drawn(evidence: Evidence, tried: tuple[Trial, ...]) -> None:
    assert draw_trials(replace(evidence, trials=tried), width=880, height=420, name="p") == ""
