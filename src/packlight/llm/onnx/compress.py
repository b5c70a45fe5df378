"""A checkpoint becomes an ONNX decoder: as in `packlight.llm.compress`, in another kind of file.

checkpoint (+ text) -> types per tensor -> block by block: observe, round, replace -> graph
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path

from packlight.durable import write_whole
from packlight.errors import UnusableOutput
from packlight.llm.architectures import ROPE
from packlight.llm.blocks_wiring import read_wiring
from packlight.llm.calibrate_outputs import SlopeStore
from packlight.llm.checkpoint import Checkpoint
from packlight.llm.compress import (
    Compressed,
    Weighing,
    compression_key,
    fit_types,
    settle_types,
    what_is_asked,
)
from packlight.llm.compress_alone import Spread, spread_over_threads
from packlight.llm.compress_forecast import rounded_names
from packlight.llm.costs import Choose
from packlight.llm.journal import Journal
from packlight.llm.onnx.companions import companion_files
from packlight.llm.onnx.formats import FLOAT, ONNX, fallback
from packlight.llm.onnx.graph import build_decoder
from packlight.llm.onnx.run import OnnxRun
from packlight.llm.onnx.support import check_decoder, context_of
from packlight.llm.onnx.writing import ALIGNMENT, Stored, Writing
from packlight.llm.rounding import Settings, check_torch
from packlight.llm.text import Windows
from packlight.progress import SILENT, Progress

DATA = ".data"
"""What the name of the file of weights ends with, after the graph's."""


def compress_decoder(
    checkpoint: Checkpoint,
    path: Path,
    types: Mapping[str, str] | Choose,
    *,
    windows: Windows | None = None,
    candidates: Sequence[str] = (),
    budget: str = "",
    settings: Settings | None = None,
    accuracy_level: int = 4,
    spread: Spread = spread_over_threads,
    slopes: SlopeStore | None = None,
    progress: Progress = SILENT,
) -> Compressed:
    """Write a checkpoint as an ONNX graph at `path`, with its weights and its tokenizer beside it.

    types, windows, candidates, budget, settings, spread, slopes: as of `packlight.llm.compress.
    compress_checkpoint`; types are those of `packlight.llm.onnx.formats`. accuracy_level: of
    `build_decoder`. A run with the same arguments that was killed is gone on with.
    Raises UnusableModel, UnusableOutput, MissingExtra (PyTorch, for windows), WrongUsage.
    """
    check_decoder(checkpoint)
    companions = companion_files(checkpoint, path.name)
    settings = settings or Settings()
    if windows is not None:
        check_torch()
    asked = {"onnx": what_is_asked(types, candidates, budget)}
    key = compression_key(checkpoint, asked, windows, settings)
    data = path.with_name(path.name + DATA)
    with Writing(data, decoder_shapes(checkpoint), key) as writing:
        journal = Journal(path.with_name(f".{path.name}.rows"), key)
        own = slopes or SlopeStore(path.parent, f".{path.name}.slopes-")
        weighing = Weighing(
            checkpoint, candidates, windows, settings, path.parent, progress, own, spread, ONNX
        )
        chosen = settle_types(
            weighing, types, journal, lambda: other_bytes(checkpoint), writing.is_complete
        )
        chosen = fit_types(checkpoint, chosen, ONNX)
        if journal.types is None:
            journal.add_types(chosen)
        run = OnnxRun(checkpoint, chosen, writing, journal, settings, progress, own)
        if windows is None:
            run.round_alone(spread)
        else:
            from packlight.llm.compress_blocks import round_blocks

            round_blocks(run, windows, path.parent, spread)
        graph = build_decoder(
            read_wiring(checkpoint),
            context_of(checkpoint),
            writing.stored,
            data.name,
            accuracy_level=accuracy_level,
        )
        writing.finish()
        for name, content in companions.items():
            _write(path.with_name(name), content)
        _write(path, graph.SerializeToString())
        journal.remove()
        if slopes is None:
            own.clear()
    rows = journal.rows
    notes = checkpoint.notes
    if context_of(checkpoint) < checkpoint.config.context:
        notes += (
            f"for {context_of(checkpoint)} positions: beyond, the model turns its heads by other "
            "factors, which an ONNX file of this kind does not hold",
        )
    return Compressed(
        path=path,
        size_bytes=path.stat().st_size + data.stat().st_size,
        rows=tuple(rows[name] for name in checkpoint.tensors if name in rows),
        kept=tuple(name for name in checkpoint.tensors if name not in rows),
        notes=notes,
    )


def _write(path: Path, content: bytes) -> None:
    try:
        write_whole(path, content)
    except OSError as broken:
        raise UnusableOutput(
            f"{path} cannot be written ({broken.strerror}): check that the folder may be written "
            "to and has space left, and start again"
        ) from broken


def decoder_shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Of the tensors that the file holds: all but factors of rotation, which are in the graph."""
    return {
        name: tuple(info.shape) for name, info in checkpoint.tensors.items() if info.role != ROPE
    }


def other_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of both files that no choice of types changes: the graph, and what stays in floats."""
    shapes = decoder_shapes(checkpoint)
    rounded = set(rounded_names(checkpoint))
    kept = sum(
        4 * prod(shape) + -4 * prod(shape) % ALIGNMENT
        for name, shape in shapes.items()
        if name not in rounded
    )
    # All linear layers in blocks: the graph with floats is smaller by some bytes a layer.
    likely = {
        name: Stored(name, fallback("int4-32", shape[-1]) if name in rounded else FLOAT, shape, 0)
        for name, shape in shapes.items()
    }
    graph = build_decoder(read_wiring(checkpoint), context_of(checkpoint), likely, "model" + DATA)
    return int(kept + graph.ByteSize() + 8 * len(shapes))
