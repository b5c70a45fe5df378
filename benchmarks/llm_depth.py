"""Whole decoder blocks removed from a language model: which ones, what the refit brings, and
whether it is worth it beside fewer bits.

    pip install -e .[llamacpp,llm]
    python benchmarks/llm_depth.py --real ../shared/real

prints one Markdown table. The model is a Llama of 5.8 million weights and six blocks; files are run
by llama.cpp on a book that nobody trained on or calibrated with, and compared with the 16-bit file
of all blocks. Blocks go by

- last: from the end;
- influence: 1 - mean cosine of the stream before and behind a block, the least first (Men et al.
  2024, ShortGPT);
- divergence: packlight's choice, the measured KL divergence without the block, one block after
  another;

refitted: the output projections of the blocks that stay make up for those that went. The rows with
bits are data-free files of one type each: what is left after pruning in many bits, and all blocks
in so few that the file is about as large.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from llm_texts import calibration_windows

from packlight.llm import blocks_depth, depth
from packlight.llm.checkpoint import Checkpoint, open_checkpoint
from packlight.llm.checkpoint.shorten import drop_blocks
from packlight.llm.compress import compress_checkpoint, uniform_types
from packlight.llm.gguf import plain_contents, write_gguf
from packlight.llm.rounding import Settings
from packlight.llm.text import Windows
from packlight.measure.language_run import cut_windows, measure_divergences
from packlight.progress import SILENT
from packlight.runtime.llamacpp import LlamaCpp

Chosen = dict[str, tuple[int, ...]]


def choose(checkpoint: Checkpoint, windows: Windows, count: int, work: Path) -> Chosen:
    """Returns the blocks that go, by each of the ways."""
    layers, settings = checkpoint.config.layers, Settings()
    some = blocks_depth.choose_windows(windows.calibration, depth.TOKENS)
    influences = blocks_depth.measure_influences(checkpoint, some, settings, work)
    ours = blocks_depth.choose_by_divergence(checkpoint, some, count, settings, work, SILENT)
    return {
        "last": tuple(range(layers - 1, layers - 1 - count, -1)),
        "influence": tuple(sorted(range(layers), key=lambda n: influences[n])[:count]),
        "divergence": tuple(number for number, _ in ours),
    }


def shortened(
    checkpoint: Checkpoint, windows: Windows, removed: tuple[int, ...], work: Path, *, refit: bool
) -> Checkpoint:
    """Returns the checkpoint without these blocks."""
    if not refit:
        return drop_blocks(checkpoint, removed)
    folder = work / f"refit-{'-'.join(map(str, removed))}"
    return depth.shorten_checkpoint(checkpoint, windows, folder, removed=removed).checkpoint


def make_files(
    checkpoint: Checkpoint, windows: Windows, work: Path, counts: list[int], ways: list[str]
) -> Iterator[tuple[str, Path, float]]:
    """Yields (name of a row, its file, seconds that making it took)."""
    whole = choose(checkpoint, windows, max(counts), work)
    for count in counts:
        for way in ways:
            removed = whole[way][:count]
            for refit in (False, True):
                began = time.perf_counter()
                small = shortened(checkpoint, windows, removed, work, refit=refit)
                path = work / f"{count}-{way}-{refit}.gguf"
                write_gguf(path, small, plain_contents(small, "F16"))
                numbers = ", ".join(map(str, sorted(removed)))
                name = f"{way}: without {numbers}{', refitted' if refit else ''}"
                yield name, path, time.perf_counter() - began
    for count, kind, alone in ((1, "Q6_K", "Q5_K"), (2, "Q6_K", "Q4_K")):
        if count not in counts:
            continue
        removed = whole["divergence"][:count]
        small = shortened(checkpoint, windows, removed, work, refit=True)
        for model, its, name in (
            (small, kind, f"without {', '.join(map(str, sorted(removed)))}, refitted, {kind}"),
            (checkpoint, alone, f"all blocks, {alone}"),
        ):
            began = time.perf_counter()
            path = work / f"{count}-{its}-{model is small}.gguf"
            compress_checkpoint(model, path, uniform_types(model, its))
            yield name, path, time.perf_counter() - began


def main() -> int:
    """Makes all files, measures them together, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real", type=Path, required=True, help="the folder of real models")
    parser.add_argument("--tokens", type=int, default=10240, help="of the test text")
    parser.add_argument("--window", type=int, default=256, help="tokens of a window")
    parser.add_argument("--sequences", type=int, default=128, help="calibration windows")
    parser.add_argument("--removed", type=int, nargs="+", default=[1, 2], help="how many blocks")
    parser.add_argument("--ways", nargs="+", default=["last", "influence", "divergence"])
    options = parser.parse_args()
    model = options.real / "novels-llama"
    checkpoint = open_checkpoint(model / "hf")
    windows = calibration_windows(model, options.sequences)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        original = work / "original.gguf"
        write_gguf(original, checkpoint, plain_contents(checkpoint, "F16"))
        rows = [("all blocks, F16", original, 0.0)]
        for row in make_files(checkpoint, windows, work, options.removed, options.ways):
            print(f"  {row[0]}: {row[2]:.0f} s", file=sys.stderr, flush=True)
            rows.append(row)
        text = (model / "text" / "test.txt").read_text(encoding="utf-8")[: 8 * options.tokens]
        with LlamaCpp(original, context=options.window) as opened:
            tokens = opened.tokenize(text)
        test = cut_windows(tokens, options.window, most=options.tokens)
        found = measure_divergences(original, [path for _, path, _ in rows], test)
        print("| Blocks | Bytes | Mean KL | Same first choice | Perplexity |")
        print("|---|---:|---:|---:|---:|")
        for (name, path, _), one in zip(rows, found, strict=True):
            low, high = one.mean_kl_interval_95
            print(
                f"| {name} | {path.stat().st_size:,} | {one.mean_kl:.4f} ({low:.4f} to {high:.4f})"
                f" | {one.top_agreement:.1%} | {one.perplexity_compressed:.1f} |"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
