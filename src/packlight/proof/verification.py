"""What came of checking a folder, as frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from packlight.measure.evidence import EXIT_STATUS
from packlight.report import to_plain
from packlight.version import __version__

Status = Literal["passed", "failed", "not-checked"]
Outcome = Literal["proven", "intact", "failed"]

SCHEMA = 1

SAID: dict[Outcome, str] = {
    "proven": "Proven: the files are as they were written, and give the answers promised.",
    "intact": "Intact: the files are as they were written; their answers were not checked.",
    "failed": "Failed: something is not as it was promised.",
}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: a plain sentence, and its figures for programs."""

    name: str
    status: Status
    said: str
    figures: Mapping[str, float | str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Verification:
    """All that was found about a folder; `print` shows it.

    seal: names the proof: the same on two machines, the folder is the same byte for byte; ''
    where it is broken. machine: this one.
    """

    folder: Path
    checks: tuple[Check, ...]
    seal: str = ""
    machine: Mapping[str, str] = field(default_factory=dict)

    @property
    def verdict(self) -> Outcome:
        """proven: nothing failed, and answers were checked. intact: they were not. failed."""
        if any(check.status == "failed" for check in self.checks):
            return "failed"
        answers = {check.status for check in self.checks if check.name == "answers"}
        return "proven" if answers == {"passed"} else "intact"

    @property
    def exit_status(self) -> int:
        """0 proven, 3 intact, 4 failed: as of a budget that is met, not proven, not worth it."""
        status = {"proven": "met", "intact": "best-effort", "failed": "not-worth-it"}
        return EXIT_STATUS[status[self.verdict]]  # type: ignore[index]

    def to_json(self) -> dict[str, Any]:
        """Plain values, of the schema in docs/verify.md."""
        value = {
            "schema": SCHEMA,
            "verdict": self.verdict,
            "folder": str(self.folder),
            "seal": self.seal,
            "packlight": __version__,
            "machine": self.machine,
            "checks": [asdict(check) for check in self.checks],
        }
        plain = to_plain(value)
        assert isinstance(plain, dict)
        return plain

    def __str__(self) -> str:
        signs = {"passed": "ok", "failed": "FAILED", "not-checked": "-"}
        lines = [SAID[self.verdict], ""]
        lines += [f"{signs[one.status]:<8}{one.name:<10}{one.said}" for one in self.checks]
        return "\n".join(lines + ([f"\nSeal: {self.seal}"] if self.seal else []))
