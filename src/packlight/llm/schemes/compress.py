"""A checkpoint becomes a folder for vLLM: as in `packlight.llm.compress`, in another format.

checkpoint (+ text) -> scheme -> block by block: observe, round, replace -> folder
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from packlight.llm.calibrate_outputs import SlopeStore
from packlight.llm.checkpoint import Checkpoint
from packlight.llm.compress import compression_key
from packlight.llm.compress_alone import Spread, spread_over_threads
from packlight.llm.journal import Journal, Row
from packlight.llm.rounding import Settings, check_torch
from packlight.llm.schemes.config import small_files
from packlight.llm.schemes.folder import FolderRun, find_half, plan_folder
from packlight.llm.schemes.shards import begin_folder
from packlight.llm.schemes.sources import check_folder
from packlight.llm.schemes.table import Scheme
from packlight.llm.text import Windows
from packlight.progress import SILENT, Progress


@dataclass(frozen=True)
class FolderCompressed:
    """A finished folder. size_bytes: of its weights. rows: of every tensor that was rounded.

    kept: why others were not, by name.
    """

    path: Path
    size_bytes: int
    rows: tuple[Row, ...]
    kept: dict[str, str]
    notes: tuple[str, ...]


def compress_folder(
    checkpoint: Checkpoint,
    path: Path,
    scheme: Scheme,
    *,
    windows: Windows | None = None,
    settings: Settings | None = None,
    spread: Spread = spread_over_threads,
    progress: Progress = SILENT,
) -> FolderCompressed:
    """Write a checkpoint as a folder whose linear layers are stored in a scheme.

    path: of the folder, which must not exist. windows: of text; without it tensors are rounded on
    their own, and an architecture need not be known. spread: over whom windows or, without text,
    pieces of tensors are spread, which changes no byte. A run with the same arguments that was
    killed is gone on with. Raises UnusableModel, UnusableOutput, WrongUsage, MissingExtra
    (PyTorch, for windows).
    """
    settings = settings or Settings()
    check_folder(checkpoint)
    if windows is not None:
        check_torch()
    if windows is not None and scheme.rounds_inputs and settings.smoothing:
        from packlight.llm.smooth import smooth_inputs

        checkpoint = smooth_inputs(checkpoint, windows, scratch=path.parent, progress=progress)
    plan = plan_folder(checkpoint, scheme, find_half(checkpoint))
    texts = small_files(checkpoint, plan)
    key = compression_key(checkpoint, {"scheme": scheme.name}, windows, settings)
    with begin_folder(path, plan.shards, key) as writing:
        journal = Journal(path.with_name(f".{path.name}.rows"), key)
        slopes = SlopeStore(path.parent, f".{path.name}.slopes-")
        run = FolderRun(checkpoint, plan, writing, journal, settings, progress, slopes)
        if windows is None:
            run.round_alone(spread)
        else:
            from packlight.llm.compress_blocks import estimate_costs, round_blocks

            left = any(run.finished(name) is None for name in plan.rounded)
            if settings.rows_make_up and left:
                estimate_costs(checkpoint, windows, (), settings, path.parent, progress, slopes)
            round_blocks(run, windows, path.parent, spread)
        run.keep_others()
        writing.finish(texts)
        journal.remove()
        slopes.clear()
    rows = tuple(journal.rows[name] for name in plan.rounded)
    notes = (*checkpoint.notes, *run.notes)
    return FolderCompressed(path, plan.shards.size_bytes, rows, dict(plan.kept), notes)
