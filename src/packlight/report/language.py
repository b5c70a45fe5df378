"""Evidence of a language model in readable form: the page and the terminal table."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from packlight.measure.language_evidence import LanguageEvidence
from packlight.report import language_sections as sections
from packlight.report.html import write_first_screen, write_page
from packlight.report.language_wording import (
    NO_TEXT,
    explain_divergence,
    list_language_figures,
    state_language_request,
    state_language_verdict,
)
from packlight.report.table import STYLES, figures_table, render_plain
from packlight.report.visible import visible
from packlight.report.wording import VERDICTS, as_sentence

_NOTES_SHOWN = 6


def write_language_html(evidence: LanguageEvidence, *, how_to_run: str) -> str:
    """The whole report as one page that opens offline.

    how_to_run: the lines that run the result on its target, as plain text.
    """
    far = evidence.divergence
    explained = "" if far is None else explain_divergence(far)
    return write_page(
        verdict=evidence.verdict,
        model=evidence.model,
        target=evidence.target,
        first_screen=write_first_screen(
            verdict=evidence.verdict,
            alarm=NO_TEXT if far is None else "",
            headline=state_language_verdict(evidence),
            reason=evidence.reason,
            figures=list_language_figures(evidence),
            fine=(explained, state_language_request(evidence)),
        ),
        bodies=(
            ("run", "How to run it", sections.write_run(how_to_run)),
            ("answers", "What it writes", sections.write_answers(evidence)),
            ("removed", "Blocks that went", sections.write_removed(evidence)),
            ("types", "Where the bytes are", sections.write_types(evidence)),
            ("error", "What each tensor lost", sections.write_losses(evidence)),
            ("tried", "What was tried", sections.write_language_trials(evidence)),
            ("kept", "What was left alone, and why", sections.write_left_alone(evidence)),
            ("tensors", "All tensors", sections.write_tensors(evidence)),
            ("measured", "How this was measured", sections.write_language_method(evidence)),
        ),
    )


def show_language_evidence(evidence: LanguageEvidence) -> RenderableType:
    """Verdict, before/after table, reason and notes as one rich renderable.

    All text is put in as `Text`, so that a name in square brackets is no markup.
    """
    parts: list[RenderableType] = []
    if evidence.divergence is None:
        parts += [Text(NO_TEXT, style="yellow"), Text()]
    verdict = Text(f"{VERDICTS[evidence.verdict]}. ", style=STYLES[evidence.verdict])
    headline = visible(state_language_verdict(evidence), limit=1000)
    parts.append(verdict.append(Text(headline, style="default")))
    parts += [Text(), figures_table(list_language_figures(evidence))]
    said = [as_sentence(evidence.reason), state_language_request(evidence)]
    parts += [Text(), *(Text(visible(text, limit=1000)) for text in said if text)]
    notes = [Text(f"- {visible(note)}", style="dim") for note in evidence.notes[:_NOTES_SHOWN]]
    if len(evidence.notes) > _NOTES_SHOWN:
        more = len(evidence.notes) - _NOTES_SHOWN
        notes.append(Text(f"- and {more} more notes in report.html", style="dim"))
    if notes:
        parts += [Text(), *notes]
    return Group(*parts)


def language_table(evidence: LanguageEvidence, *, width: int = 100) -> str:
    """The same as plain text, `width` columns wide, without colours or trailing spaces."""
    return render_plain(show_language_evidence(evidence), width=width)
