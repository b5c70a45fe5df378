"""Blocks that go before anything is rounded, where the user or a recipe asks for it."""

from __future__ import annotations

from dataclasses import replace

from packlight.language.ask import Ask
from packlight.language.forecast import LanguageForecast, forecast_language
from packlight.language.target import LanguageTarget
from packlight.llm.checkpoint import Checkpoint
from packlight.llm.checkpoint.shorten import check_alike, drop_blocks
from packlight.llm.depth import Shortened, count_removed, forecast_depth, shorten_checkpoint
from packlight.llm.depth_plan import SAID
from packlight.llm.text import Windows
from packlight.progress import Progress
from packlight.scratch import Scratch


def outline(checkpoint: Checkpoint, ask: Ask) -> Checkpoint:
    """A checkpoint with the names and shapes of the shortened one; nothing is read for it."""
    count = _count(checkpoint, ask)
    layers = checkpoint.config.layers
    return drop_blocks(checkpoint, range(layers - count, layers)) if count else checkpoint


def shorten(
    checkpoint: Checkpoint,
    ask: Ask,
    windows: Windows | None,
    scratch: Scratch,
    progress: Progress,
) -> Shortened:
    """The checkpoint without the blocks that are missed least; as it is where none are to go."""
    count = _count(checkpoint, ask)
    if not count or windows is None:
        return Shortened(checkpoint)
    return shorten_checkpoint(
        checkpoint,
        windows,
        scratch.file("blocks", SAID).parent,
        count=count,
        removed=ask.removed,
        progress=progress,
    )


def forecast_shortened(
    target: LanguageTarget,
    checkpoint: Checkpoint,
    ask: Ask,
    windows: Windows | None,
    workers: int | str,
) -> LanguageForecast:
    """The pre-flight, with what it takes to choose the blocks."""
    small = outline(checkpoint, ask)
    found = forecast_language(target, small, ask, windows, workers)
    if small is checkpoint:
        return found
    layers, count = checkpoint.config.layers, _count(checkpoint, ask)
    notes = [f"{count} of {layers} blocks would be removed first: the figures are of what stays."]
    seconds = 0.0
    if ask.removed is None:
        depth = forecast_depth(checkpoint, count)
        seconds = depth.seconds
        way = "the divergence without each of them" if depth.measured else "block influence"
        notes.append(
            f"Which ones is chosen by {way}: {depth.passes:,} passes of {depth.tokens:,} tokens "
            "through a block."
        )
    return replace(
        found,
        original_bytes=checkpoint.size_bytes,
        seconds=found.seconds + seconds,
        notes=(*found.notes, *notes),
    )


def tell_removed(checkpoint: Checkpoint, short: Shortened) -> tuple[str, ...]:
    """What went, in words."""
    removed = short.removed
    if not removed:
        return ()
    layers = checkpoint.config.layers
    numbers = ", ".join(str(number) for number in sorted(one.number for one in removed))
    several = "blocks" if len(removed) > 1 else "block"
    said = f"{len(removed)} of {layers} blocks were removed, counted from 0: {several} {numbers}"
    if removed[-1].kl is not None:
        said += f" (estimated divergence {removed[-1].kl:.3g})"
    elif removed[-1].influence is not None:
        said += "; the model is large, so they were chosen by influence, not by divergence"
    fitted = "no fit of what stays made up for it"
    if short.refitted:
        fitted = f"to make up for it, {', '.join(short.refitted)} was refitted"
    return (f"{said}; {fitted}; the blocks of the file are numbered anew",)


def _count(checkpoint: Checkpoint, ask: Ask) -> int:
    if ask.removed:
        check_alike(checkpoint)
        return min(len(ask.removed), checkpoint.config.layers - 1)
    return count_removed(checkpoint, ask.prune) if ask.prune else 0
