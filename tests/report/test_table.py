from __future__ import annotations

from dataclasses import replace

from packlight.measure.evidence import Evidence
from packlight.report.table import evidence_table


def test_the_table_says_verdict_figures_and_reason(evidence: Evidence) -> None:
    text = evidence_table(evidence)
    assert text.startswith("Budget met. Your model is 3.3 times smaller")
    row = next(line for line in text.splitlines() if line.startswith("Latency, 1 thread"))
    assert row.split() == (
        [
            "Latency,",
            "1",
            "thread",
            "0.481",
            "ms",
            "0.301",
            "ms",
            "1.6×",
            "faster",
            "1.56×",
            "to",
            "1.64×",
        ]
    )
    assert evidence.reason in text.replace("\n", " ")


def test_when_accuracy_could_not_be_measured_that_is_the_first_line(evidence: Evidence) -> None:
    first = evidence_table(replace(evidence, metric=None)).splitlines()[0]
    assert first.startswith("Accuracy could not be measured")


def test_names_are_no_markup_and_no_escape_sequence(evidence: Evidence) -> None:
    text = evidence_table(replace(evidence, reason="layer [red]x[/red] \x1b[31m", notes=("[b]",)))
    assert "[red]x[/red]" in text
    assert "\x1b" not in text
    assert "- [b]" in text


def test_many_notes_are_counted(evidence: Evidence) -> None:
    text = evidence_table(replace(evidence, notes=tuple(f"note {i}" for i in range(9))))
    assert "and 3 more notes" in text
