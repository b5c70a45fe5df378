"""The part of the page that tells how the chosen file was trained with its rounding in the loop."""

from __future__ import annotations

from packlight.measure.evidence import Evidence, Tuning
from packlight.report.units import format_number
from packlight.report.visible import escape_prose
from packlight.report.wording import count


def write_tuning(evidence: Evidence) -> str:
    """The training of the chosen file; '' where none was asked for."""
    lines = describe_tuning(evidence.tuning)
    return "".join(f"<p>{escape_prose(line)}</p>" for line in lines)


def describe_tuning(tuning: Tuning | None) -> tuple[str, ...]:
    """How the chosen file was trained, in sentences; () where none was asked for."""
    if tuning is None:
        return ()
    told = []
    if tuning.loss_before is not None and tuning.loss_after is not None:
        told.append(
            "The chosen file was trained towards the original with its rounding in the loop "
            f"({count(tuning.steps, 'step')}, without labels): on calibration samples held out, "
            f"the loss went from {format_number(tuning.loss_before)} to "
            f"{format_number(tuning.loss_after)}."
        )
    if not tuning.kept:
        told.append("The file that is handed over is the one from before this training.")
    return (*told, *(note[:1].upper() + note[1:] + "." for note in tuning.notes))
