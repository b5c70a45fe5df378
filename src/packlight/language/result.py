"""A compressed language model with the evidence for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from packlight.measure.evidence import EXIT_STATUS, Verdict
from packlight.measure.language_evidence import LanguageEvidence
from packlight.proof import Proof
from packlight.report.folder import write_folder
from packlight.report.language import (
    language_table,
    show_language_evidence,
    write_language_html,
)
from packlight.report.language_json import language_evidence_to_json, write_language_json
from packlight.report.language_wording import how_to_run_language
from packlight.scratch import Scratch


@dataclass(frozen=True)
class LanguageResult:
    """A model with the evidence for it; `print` shows the table. model: its file or folder."""

    evidence: LanguageEvidence
    recipe: Mapping[str, Any]
    model: Path
    _texts: Mapping[str, str] = field(repr=False)
    _inputs: tuple[Path, ...] = field(repr=False)
    _keep: Scratch = field(repr=False, compare=False)

    @property
    def verdict(self) -> Verdict:
        """met, best-effort or not-worth-it."""
        return self.evidence.verdict

    @property
    def exit_status(self) -> int:
        """0 met, 3 best-effort, 4 not-worth-it."""
        return EXIT_STATUS[self.evidence.verdict]

    def save(self, out: str | Path, *, force: bool = False) -> Path:
        """Write the model, recipe, report, and what `verify` needs into the folder `out`.

        It appears whole or not at all; force: replace what is there.
        Raises UnusableOutput where it exists or cannot be written.
        """
        proof = Proof("language-model", original=None)
        texts = {
            **self._texts,
            **proof.texts,
            "report.json": write_language_json(self.evidence),
            "report.html": write_language_html(
                self.evidence, how_to_run=how_to_run_language(self.evidence.target, self.model.name)
            ),
        }
        files = sorted(self.model.iterdir()) if self.model.is_dir() else [self.model]
        largest = max(files, key=lambda path: path.stat().st_size).name
        folder = write_folder(
            Path(out),
            files=files,
            texts=texts,
            seal=lambda made: proof.seal(made, largest, self.to_json()),
            force=force,
            inputs=self._inputs,
        )
        self._keep.clear()
        return folder

    def to_json(self) -> dict[str, Any]:
        """The evidence as plain values: what `report.json` holds."""
        return language_evidence_to_json(self.evidence)

    def __str__(self) -> str:
        return language_table(self.evidence)

    def __rich__(self) -> RenderableType:
        return show_language_evidence(self.evidence)

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(str(self))}</pre>"
