"""The verdict on a compressed language model, from what was measured on text held back."""

from __future__ import annotations

from packlight.measure.evidence import Pair, Verdict
from packlight.measure.language import Divergence
from packlight.measure.language_evidence import LanguageBudget, SpeedEvidence

SLOWER = 1.02
"""Less than that is not called slower."""
BITS_SLACK = 1.01
"""A file whose bits a weight are so close above what was asked for has kept to it."""


def judge_language(
    budget: LanguageBudget,
    *,
    size_bytes: Pair,
    bits_per_weight: float,
    divergence: Divergence | None,
    speed: SpeedEvidence | None,
) -> tuple[Verdict, str]:
    """The verdict, and its reason in one sentence.

    not-worth-it: the file is not smaller than the original, or generates text more slowly.
    best-effort: the budget is not kept, or the predictions could not be measured.
    met: the budget is kept on the text held back. Where no limit was set on agreement, its value
    is told.
    """
    before, after = size_bytes.original, size_bytes.compressed
    if after >= before:
        return "not-worth-it", (
            f"the best file found is not smaller ({after} bytes, the original has {before}): keep "
            "the original"
        )
    if speed is not None:
        writing = speed.generation
        if writing.ratio_interval_95[1] < 1.0 and writing.ratio * SLOWER < 1.0:
            return "not-worth-it", (
                f"the best file found generates text more slowly: {writing.ratio:.2f} times the "
                f"original's speed, though {before / after:.1f} times smaller"
            )
    unmet = []
    if budget.max_size_bytes is not None and after > budget.max_size_bytes:
        unmet.append(f"size is {after} bytes of {budget.max_size_bytes} allowed")
    if budget.bits is not None and bits_per_weight > budget.bits * BITS_SLACK:
        unmet.append(f"a weight takes {bits_per_weight:.3g} bits of {budget.bits:.3g} allowed")
    if divergence is None:
        unmet.insert(0, "how far its predictions changed could not be measured")
    else:
        lost = 1 - divergence.top_agreement
        if budget.max_drop is not None and not lost <= budget.max_drop:
            unmet.append(
                f"the most probable token is another one {lost:.4g} of the time on the text held "
                f"back, {budget.max_drop:.4g} are allowed"
            )
    if unmet:
        return "best-effort", "; ".join(unmet)
    assert divergence is not None
    if budget.max_drop is None:
        return "met", (
            "the budget is kept; no limit was set for the agreement with the original, which is "
            f"{divergence.top_agreement:.4g}"
        )
    if 1 - divergence.top_agreement_interval_95[0] > budget.max_drop:
        return "met", f"the budget is kept, though {divergence.tokens} tokens do not prove it"
    return "met", "the budget is kept, proven at 95 % on text that nothing was chosen with"
