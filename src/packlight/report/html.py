"""Evidence as one HTML page that opens offline: no script, nothing fetched.

The page's policy forbids everything but its own style sheet, and every text that
came from a model, a file name or a runtime is escaped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib.resources import files

from packlight.measure.evidence import Evidence, Verdict
from packlight.report import sections
from packlight.report.channels import write_channels
from packlight.report.device_file import write_device_file
from packlight.report.tuning import write_tuning
from packlight.report.visible import escape, escape_prose
from packlight.report.wording import (
    NOT_MEASURED,
    VERDICTS,
    Figure,
    as_sentence,
    explain_gain,
    explain_proof,
    list_figures,
    state_request,
    state_verdict,
)

POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'"
)

_SIGNS = {"met": "✓", "best-effort": "◐", "not-worth-it": "✕"}


def write_html(evidence: Evidence, *, how_to_run: str) -> str:
    """The whole report as one page.

    how_to_run: the snippet that runs the result on its target, as plain text.
    """
    bodies = [
        ("run", "How to run it", sections.write_use(evidence, how_to_run)),
        ("device", "The file for the device", write_device_file(evidence)),
        ("tried", "What was tried", sections.write_trials(evidence)),
        ("channels", "Channels that were removed", write_channels(evidence)),
        ("tuned", "Training with rounding in the loop", write_tuning(evidence)),
        ("bytes", "Where the bytes are", sections.write_bytes(evidence)),
        ("time", "Where the time goes", sections.write_times(evidence)),
        ("error", "What each layer lost", sections.write_errors(evidence)),
        ("kept", "What was left alone, and why", sections.write_kept(evidence)),
        ("layers", "All layers", sections.write_layers(evidence)),
        ("measured", "How this was measured", sections.write_method(evidence)),
    ]
    return write_page(
        verdict=evidence.verdict,
        model=evidence.model,
        target=evidence.target,
        first_screen=_first_screen(evidence),
        bodies=bodies,
    )


def write_page(
    *,
    verdict: Verdict,
    model: str,
    target: str,
    first_screen: str,
    bodies: Sequence[tuple[str, str, str]],
) -> str:
    """The page around its parts.

    first_screen: HTML. bodies: (id, title, HTML), left out where the HTML is empty.
    """
    parts = [(key, title, body) for key, title, body in bodies if body]
    links = "".join(f'<li><a href="#{key}">{escape(title)}</a></li>' for key, title, _ in parts)
    rooms = "".join(
        f'<section aria-labelledby="{key}"><h2 id="{key}">{escape(title)}</h2>{body}</section>\n'
        for key, title, body in parts
    )
    word = VERDICTS[verdict]
    style = (files("packlight.report") / "page.css").read_text(encoding="utf-8")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>{word}: {escape(model, limit=80)} (packlight report)</title>
<style>
{style}</style>
</head>
<body>
<a class="skip" href="#run">Skip to the details</a>
<header><span class="brand">packlight</span>
<span class="subject"><bdi>{escape(model, limit=120)}</bdi> for \
<bdi>{escape(target, limit=80)}</bdi></span></header>
<main>
{first_screen}
<nav aria-label="On this page"><ul>{links}</ul></nav>
{rooms}</main>
<footer>Made by packlight. Every figure on this page was measured on the files themselves; \
the same figures for programs are in report.json.</footer>
</body>
</html>
"""


def _first_screen(evidence: Evidence) -> str:
    fine = [] if evidence.metric is None else [explain_proof(evidence.metric)]
    return write_first_screen(
        verdict=evidence.verdict,
        alarm=NOT_MEASURED if evidence.metric is None else "",
        headline=state_verdict(evidence),
        reason=evidence.reason,
        figures=list_figures(evidence),
        fine=[*fine, explain_gain(evidence), state_request(evidence)],
    )


def write_first_screen(
    *,
    verdict: Verdict,
    alarm: str,
    headline: str,
    reason: str,
    figures: Iterable[Figure],
    fine: Iterable[str],
) -> str:
    """What is seen first: the verdict in words, the figures, and what to know of them.

    All text is plain, and may be hostile; what is empty is left out.
    """
    parts = ['<div class="verdict">']
    if alarm:
        parts.append(f'<p class="alarm" role="note">{escape_prose(alarm)}</p>')
    parts += [
        f'<p class="badge {verdict}"><span aria-hidden="true">'
        f"{_SIGNS[verdict]}</span> {VERDICTS[verdict]}</p>",
        f"<h1>{escape_prose(headline)}</h1>",
    ]
    if reason:
        parts.append(f'<p class="reason">{escape_prose(as_sentence(reason))}</p>')
    parts += ["</div>", _write_figures(figures)]
    parts += [f'<p class="fine">{escape_prose(text)}</p>' for text in fine if text]
    return "\n".join(parts)


def _write_figures(figures: Iterable[Figure]) -> str:
    write: Callable[[str], str] = escape_prose
    rows = []
    for figure in figures:
        spread = ""
        if figure.spread:
            spread = (
                f'<span class="spread"><span class="hidden">95 % interval: </span>'
                f"{write(figure.spread)}</span>"
            )
        rows.append(
            f'<tr><th scope="row">{write(figure.name)}</th>'
            f'<td class="number">{write(figure.before)}</td>'
            f'<td class="number after">{write(figure.after)}</td>'
            f'<td><span class="change {figure.tone}">{write(figure.change)}</span>{spread}</td>'
            "</tr>"
        )
    return (
        '<table class="figures"><caption class="hidden">Before and after, with 95 % intervals'
        '</caption><thead><tr><td></td><th scope="col">Before</th><th scope="col">After</th>'
        f'<th scope="col">Change</th></tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )
