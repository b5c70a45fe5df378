"""What an output folder gets so that it can be checked elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packlight.errors import RuntimeFailure, UnusableProof
from packlight.proof.golden import take_golden, write_golden
from packlight.proof.manifest import (
    MANIFEST,
    PAGE,
    FileEntry,
    GoldenEntry,
    Kind,
    Manifest,
    describe_file,
    write_manifest,
)
from packlight.proof.page import write_page
from packlight.samples import Samples
from packlight.tensors import TensorSpec

LEFT_OUT = "they were to be left out"

_CLAIMS = (
    *("verdict", "reason", "model", "target", "metric", "size_bytes", "latency_ms"),
    "peak_memory_bytes",
)
"""What of report.json is claimed in the manifest."""


@dataclass(frozen=True)
class Proof:
    """What will lie beside a model.

    files: golden.npz, or nothing. note: for the report. why: no golden samples are there; ''
    where they are.
    """

    kind: Kind
    original: FileEntry | None
    files: tuple[Path, ...] = ()
    golden: GoldenEntry | None = None
    note: str = ""
    why: str = ""

    @property
    def texts(self) -> dict[str, str]:
        """The page that checks a folder in a browser."""
        return {PAGE: write_page()}

    def seal(self, folder: Path, model: str, report: Mapping[str, Any]) -> dict[str, str]:
        """Give the manifest of a folder in which all else lies. report: as in report.json."""
        files = sorted(path for path in folder.iterdir())
        manifest = Manifest(
            kind=self.kind,
            model=model,
            original=self.original,
            files=tuple(describe_file(path) for path in files),
            claims={key: report[key] for key in _CLAIMS},
            made_on=report["environment"],
            golden=self.golden,
            note=self.why,
        )
        return {MANIFEST: write_manifest(manifest)}


def make_proof(
    original: Path,
    compressed: Path,
    samples: Samples,
    indices: Sequence[int],
    inputs: Sequence[TensorSpec],
    folder: Path,
    *,
    golden: bool,
    size_bytes: int,
) -> Proof:
    """Take golden samples of a compressed model and write them into `folder`.

    indices: samples that nothing was chosen with. golden: False leaves them out. size_bytes: of
    all of the original's files. What cannot be done is said in `why`.
    """
    entry = describe_file(original, size_bytes=size_bytes)
    if not golden:
        return Proof("graph", entry, why=LEFT_OUT)
    try:
        taken = take_golden(original, compressed, samples, indices, inputs)
    except (UnusableProof, RuntimeFailure) as error:
        why = str(error)
        note = f"no golden samples lie in this folder, so its answers cannot be checked: {why}"
        return Proof("graph", entry, note=note, why=why)
    count = len(taken.samples)
    whose = "made-up samples" if samples.generated else "of your samples"
    note = (
        f"golden.npz in this folder holds {count} {whose} with both models' outputs, so that "
        "`packlight verify` can run them on another machine; --no-golden leaves them out"
    )
    return Proof("graph", entry, (write_golden(taken, folder),), taken.entry, note)
