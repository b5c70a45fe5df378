from __future__ import annotations

import math
from dataclasses import replace

import pytest

from packlight.measure.evidence import Budget, Evidence, LatencyEvidence, Pair
from packlight.plan.goal import PRESETS
from packlight.report.wording import (
    WISHES,
    as_sentence,
    explain_gain,
    explain_proof,
    list_budget,
    list_figures,
    state_request,
    state_verdict,
)


def test_the_sentence_of_a_success(evidence: Evidence) -> None:
    assert state_verdict(evidence) == (
        "Your model is 3.3 times smaller and 1.6 times faster, and on 2,000 samples it gave the "
        "same answers 99.4 % of the time: within the loss of 1 % that you allow, with 95 % "
        "certainty."
    )


def test_without_samples_it_says_that_nobody_knows(evidence: Evidence) -> None:
    blind = replace(evidence, metric=None, verdict="best-effort")
    assert state_verdict(blind).endswith("whether it still gives the right answers is not known.")


def test_a_slower_file_is_never_called_faster(evidence: Evidence) -> None:
    slow = LatencyEvidence("r", 1, 0.5, 0.7, 1.4, (1.35, 1.45))
    said = state_verdict(replace(evidence, verdict="not-worth-it", latency_ms=slow))
    assert said.startswith("Keep your original model")
    assert "3.3 times smaller but 1.4 times slower" in said
    figure = list_figures(replace(evidence, latency_ms=slow))[1]
    assert (figure.change, figure.spread, figure.tone) == (
        "1.4× slower",
        "1.35× to 1.45×",
        "worse",
    )


def test_an_interval_that_holds_one_is_no_speed_up(evidence: Evidence) -> None:
    unsure = LatencyEvidence("r", 1, 0.5, 0.45, 0.9, (0.8, 1.05))
    assert "about as fast as before" in state_verdict(replace(evidence, latency_ms=unsure))
    assert list_figures(replace(evidence, latency_ms=unsure))[1].change == "no clear change"


def test_the_speed_up_is_the_inverse_of_the_ratio_of_times(evidence: Evidence) -> None:
    figure = list_figures(evidence)[1]
    assert figure.name == "Latency, 1 thread"
    assert (figure.change, figure.spread) == ("1.6× faster", "1.56× to 1.64×")


@pytest.mark.parametrize(
    ("drop", "proven", "tail"),
    [
        (0.006, True, "with 95 % certainty."),
        (0.006, False, "but not proven."),
        (0.03, False, "more is lost than the 1 % you allow."),
        (math.nan, False, "more is lost than the 1 % you allow."),
    ],
)
def test_the_tail_says_whether_the_limit_holds(
    evidence: Evidence, drop: float, proven: bool, tail: str
) -> None:
    assert evidence.metric is not None
    metric = replace(evidence.metric, drop=drop, proven=proven)
    assert state_verdict(replace(evidence, metric=metric)).endswith(tail)


def test_metrics_of_other_names(evidence: Evidence) -> None:
    assert evidence.metric is not None
    top1 = replace(evidence.metric, name="top-1 accuracy", original=0.917, compressed=0.9145)
    said = state_verdict(replace(evidence, metric=top1))
    assert "it was right 91.5 % of the time (before: 91.7 %)" in said
    own = replace(evidence.metric, name="word error", original=12.5, compressed=12.75, drop=0.25)
    rows = list_figures(replace(evidence, metric=own, budget=Budget()))
    assert (rows[4].before, rows[4].after, rows[4].change) == ("12.50", "12.75", "0.2500 lost")


def test_a_loss_alarms_only_beyond_what_was_allowed(evidence: Evidence) -> None:
    assert evidence.metric is not None
    assert list_figures(evidence)[4].tone == "same"
    bad = replace(evidence, metric=replace(evidence.metric, drop=0.02))
    assert list_figures(bad)[4].tone == "worse"


def test_a_file_of_the_same_size_is_not_called_smaller(evidence: Evidence) -> None:
    same = replace(evidence, size_bytes=Pair(1000, 999))
    assert "of the same size" in state_verdict(same)


def test_the_proof_names_how_many_samples_it_needs(evidence: Evidence) -> None:
    assert evidence.metric is not None
    short = replace(evidence.metric, proven=False, samples_needed=5400)
    assert "about 5,400 samples" in explain_proof(short)


def test_the_budget_is_told_in_its_own_units() -> None:
    budget = Budget(max_drop=0.01, max_size_bytes=5_000_000, max_latency_ms=10)
    assert [limit for _, limit in list_budget(budget)] == ["1 %", "5.00 MB", "10.0 ms"]
    assert list_budget(Budget()) == ()
    assert list_budget(Budget(max_download_bytes=70_000)) == (
        ("Packed download at most", "70.0 KB"),
    )


def test_the_download_has_its_row_and_its_word(evidence: Evidence) -> None:
    packed = replace(evidence, packed_bytes=54_734)
    row = list_figures(packed)[1]
    assert (row.name, row.before, row.after) == ("Download, once packed", "1.09 MB", "54.7 KB")
    assert (row.change, row.tone) == ("20× smaller", "better")
    said = "Your model is 3.3 times smaller (20 times once packed for download) and 1.6 times"
    assert state_verdict(packed).startswith(said)
    # A packed file that is hardly smaller is no news, unless it was asked for.
    slightly = replace(evidence, packed_bytes=310_000)
    assert "download" not in state_verdict(slightly)
    assert "(3.5 times once packed" in state_verdict(replace(slightly, preset="smallest"))
    limit = Budget(max_drop=0.01, max_download_bytes=320_000)
    assert "(3.5 times once packed" in state_verdict(replace(slightly, budget=limit))


def test_the_request_names_preset_and_limits(evidence: Evidence) -> None:
    asked = replace(evidence, preset="smallest", budget=Budget(0.01, max_download_bytes=70_000))
    assert state_request(asked) == (
        "Asked for: the smallest download (preset smallest); loss of quality at most 1 %; packed "
        "download at most 70.0 KB."
    )
    assert set(WISHES) == {goal.name for goal in PRESETS}


def test_gains_of_size_only_are_said_plainly(evidence: Evidence) -> None:
    assert explain_gain(evidence) == ""  # all in integers
    layers = tuple(replace(layer, choice="weights-int4") for layer in evidence.layers[:3])
    kept = replace(evidence.layers[3], choice="float32")
    faster = replace(evidence, layers=(*layers, kept))
    assert explain_gain(faster).startswith("Only the file is smaller: when the model is loaded")
    assert explain_gain(faster).endswith("speed comes from the simpler graph.")
    unsure = LatencyEvidence("r", 1, 0.5, 0.49, 0.98, (0.9, 1.05))
    assert "speed" not in explain_gain(replace(faster, latency_ms=unsure))
    some = replace(evidence, layers=(*layers, replace(kept, choice="int4")))
    assert explain_gain(some).startswith("3 of 4 compressed layers are smaller in the file only")
    one = replace(evidence, layers=(layers[0], replace(kept, choice="weights-int4-blocks")))
    assert explain_gain(one).startswith("1 of 2 compressed layers is smaller in the file only")
    table = replace(layers[0], op="Gather", choice="weights-int8")  # whose rows stay codes
    assert explain_gain(replace(evidence, layers=(table, evidence.layers[3]))) == ""


def test_a_reason_is_shown_as_a_sentence() -> None:
    assert as_sentence("the budget is kept") == "The budget is kept."
    assert as_sentence("Why not?") == "Why not?"
    assert as_sentence(" ") == ""
