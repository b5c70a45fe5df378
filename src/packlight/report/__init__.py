"""Evidence in readable form: the page, the JSON file and the terminal table."""

from __future__ import annotations

from packlight.report.html import write_html
from packlight.report.report_json import evidence_to_json, json_to_evidence, to_plain, write_json
from packlight.report.table import evidence_table, show_evidence
from packlight.report.wording import state_verdict

__all__ = [
    "evidence_table",
    "evidence_to_json",
    "json_to_evidence",
    "show_evidence",
    "state_verdict",
    "to_plain",
    "write_html",
    "write_json",
]
