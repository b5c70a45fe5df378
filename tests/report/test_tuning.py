"""Training of the chosen file in the report: what is told, and back from JSON."""

from __future__ import annotations

import json
from dataclasses import replace

from packlight.measure.evidence import Evidence, Tuning
from packlight.report import evidence_table, write_html, write_json
from packlight.report.report_json import json_to_evidence
from packlight.report.tuning import describe_tuning
from packlight.report.visible import escape_prose

TUNING = Tuning(1200, 0.4, 0.1, True, ("tuning ended at step 900 of 1200: it no longer gained",))


def test_page_and_table_tell_how_it_went(evidence: Evidence) -> None:
    tuned = replace(evidence, tuning=TUNING)
    first, second = describe_tuning(TUNING)
    assert "1,200 steps" in first and "0.400 to 0.100" in first
    assert second == "Tuning ended at step 900 of 1200: it no longer gained."
    page = write_html(tuned, how_to_run="")
    assert escape_prose(first) in page and escape_prose(second) in page
    assert "rounding in the loop" in " ".join(evidence_table(tuned).split())


def test_a_file_that_stayed_as_it_was_is_said() -> None:
    told = describe_tuning(Tuning(0, notes=("there was nothing to tune",)))
    assert told == (
        "The file that is handed over is the one from before this training.",
        "There was nothing to tune.",
    )


def test_a_run_without_it_says_nothing(evidence: Evidence) -> None:
    assert describe_tuning(None) == ()
    assert "rounding in the loop" not in write_html(evidence, how_to_run="")


def test_there_and_back_again(evidence: Evidence) -> None:
    for tuning in (TUNING, None):
        tuned = replace(evidence, tuning=tuning)
        assert json_to_evidence(json.loads(write_json(tuned))).tuning == tuning
