"""Removed channels in the report: the row, the part of the page, and back from JSON."""

from __future__ import annotations

import json
from dataclasses import replace

from packlight.measure.evidence import ChannelEvidence, Evidence, RankEvidence, Thinning
from packlight.report import write_html, write_json
from packlight.report.channels import describe_thinning
from packlight.report.report_json import json_to_evidence
from packlight.report.visible import escape_prose
from packlight.report.wording import list_figures

THINNING = Thinning(
    macs_original=40_000_000,
    macs_left=20_000_000,
    channels=(
        ChannelEvidence("conv1", 16, 8),
        ChannelEvidence("fc<b>", 10, 10, "the model's output 'y' keeps its shape"),
    ),
    heal_steps=1200,
    loss_before=0.4,
    loss_after=0.1,
    notes=("healing ended at step 900 of 1200: it no longer gained",),
    removed=("block<2>/Add",),
)


def test_the_page_tells_what_went_and_why_the_rest_stays(evidence: Evidence) -> None:
    page = write_html(replace(evidence, thinning=THINNING), how_to_run="")
    first, blocks, second, third = describe_thinning(THINNING)
    assert first.startswith("8 channels of 26 are gone, and with them 50 % of the multiplications")
    assert "1,200 steps" in second and third.startswith("Healing ended at step 900")
    assert all(escape_prose(line) in page for line in (first, blocks, second, third))
    assert "1 block" in blocks and "block<2>/Add" in blocks
    assert "fc&lt;b&gt;" in page and "fc<b>" not in page
    assert "the model's output" in page.replace("&#x27;", "'").replace("&#39;", "'")


def test_a_run_without_pruning_has_no_such_part(evidence: Evidence) -> None:
    assert "Channels that were removed" not in write_html(evidence, how_to_run="")
    assert "Multiplications" not in {figure.name for figure in list_figures(evidence)}


def test_the_table_has_the_multiplications(evidence: Evidence) -> None:
    rows = {row.name: row for row in list_figures(replace(evidence, thinning=THINNING))}
    row = rows["Multiplications, one sample"]
    assert (row.before, row.after, row.change) == ("40,000,000", "20,000,000", "50 % fewer")


def test_there_and_back_again(evidence: Evidence) -> None:
    thinned = replace(evidence, thinning=THINNING)
    assert json_to_evidence(json.loads(write_json(thinned))).thinning == THINNING
    assert json_to_evidence(json.loads(write_json(evidence))).thinning is None


def test_layers_that_are_two_now(evidence: Evidence) -> None:
    ranks = (RankEvidence("fc<b>", "matrix", 64), RankEvidence("conv2", "spatial", 12))
    thinned = replace(evidence, thinning=replace(THINNING, ranks=ranks))
    assert json_to_evidence(json.loads(write_json(thinned))).thinning == thinned.thinning
    page = write_html(thinned, how_to_run="")
    assert "fc&lt;b&gt;" in page and "a column, then a row" in page
    (first, *_) = describe_thinning(replace(THINNING, ranks=ranks))
    assert "50 % of the multiplications are gone. 2 layers became two of low rank each" in first
    assert "8 channels of 26 went" in first
    alone = replace(THINNING, channels=(ChannelEvidence("a", 8, 8),), ranks=ranks[:1])
    assert "went, first" not in describe_thinning(alone)[0]


def test_a_report_of_an_older_version_has_no_ranks(evidence: Evidence) -> None:
    plain = json.loads(write_json(replace(evidence, thinning=THINNING)))
    del plain["thinning"]["ranks"]
    assert json_to_evidence(plain).thinning == THINNING
