"""Compares folders for vLLM of one language model: same text, same runtime, peers in the same run.

    pip install -e .[vllm] -r benchmarks/requirements.txt
    python benchmarks/llm_vllm.py --real ../shared/real --llmcompressor .llmc/bin/python

prints one Markdown table and what it says of packlight's claims. The model is a Llama of 5.8
million weights. All folders are in the compressed-tensors format and are run by transformers, with
32-bit arithmetic, on the first tokens of a book that nobody trained on or calibrated with. All
methods see the same calibration text, block by block, each layer's inputs coming from what is
compressed before it.

Rows:
- packlight SCHEME: what `packlight compress --target vllm --scheme SCHEME --data TEXT` writes;
- nearest: scales that reach the largest weight of a group, weights rounded to nearest;
- GPTQ: the published loop (Frantar et al. 2022, algorithm 1; our own few lines of it), scales of
  a group found as the loop arrives there, damping 0.01; "in order of activation": the inputs of
  largest second moment first, with the groups' scales found beforehand;
- SparseGPT and Wanda: as published, by packlight's schemes of that name;
- llmcompressor: itself, in the environment of the Python that --llmcompressor names
  (peers/llmcompressor_peer.py says how to make one), with its own settings for the scheme. It
  keeps the embeddings in 32 bits, in which the model was given.

Columns: bytes of the weights; bits of a weight over all tensors; perplexity, with its ratio to the
original's; mean KL divergence of the next token's probabilities, original || folder, in nats, with
its 95 % interval (resampling windows); top = share of positions whose most probable token is the
original's; seconds of compressing.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from int8 import describe_processor
from llm_texts import calibration_windows, test_windows
from numpy.typing import NDArray
from peers import llmcompressor_peer

from packlight.llm.checkpoint import open_checkpoint
from packlight.llm.rounding import Settings
from packlight.llm.schemes import compress as compressing
from packlight.llm.schemes import compress_folder, find_scheme
from packlight.llm.schemes.folder import FolderRun
from packlight.llm.schemes.layouts import from_half, to_half
from packlight.llm.schemes.rows import RowFormat
from packlight.llm.text import Windows
from packlight.measure.language import Divergence
from packlight.measure.language_run import measure_divergences
from packlight.runtime.transformers import TRANSFORMERS

SCHEMES = ("w4a16", "w4a16-g32", "w8a16", "w8a8", "fp8", "nvfp4")
ROUNDED = ("w4a16", "w4a16-g32")
"""Schemes in which the peers round too."""
SPARSE = ("2:4", "50%")
W8 = ("w8a16", "w8a8", "fp8")
W8_SLACK = 0.001

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Row:
    """A folder and what it is worth. method: whose; scheme: which."""

    method: str
    scheme: str
    path: Path
    size_bytes: int
    seconds: float
    divergence: Divergence | None = None

    @property
    def name(self) -> str:
        """For the table."""
        return f"{self.method} {self.scheme}".strip()


def scales_of(weight: Floats, group: int, half: str) -> Floats:
    """Absmax scales [out, groups] of 4 bits, as compressed-tensors computes them."""
    peaks = np.abs(weight.reshape(len(weight), -1, group)).max(axis=2) / 7.5
    return from_half(to_half(np.maximum(peaks, 1e-8).astype(np.float32), half), half)


def flat(scales: Floats, codes: NDArray[np.floating]) -> Bytes:
    """Rows as packlight's writer takes them."""
    return np.concatenate(
        [scales.astype("<f4").view(np.uint8), codes.astype(np.int8).view(np.uint8)], axis=1
    )


def round_nearest(rows: RowFormat, weight: Floats, moments: Floats | None) -> Bytes:
    """Nearest codes on absmax scales."""
    group = rows.scheme.group_of(rows.inputs)
    scales = scales_of(weight, group, rows.half)
    return flat(scales, np.clip(np.rint(weight / np.repeat(scales, group, axis=1)), -8, 7))


def round_gptq(
    rows: RowFormat, weight: Floats, moments: Floats | None, *, by_activation: bool = False
) -> Bytes:
    """GPTQ, algorithm 1: one input after another, by the Cholesky factor of H^-1."""
    inputs, group = rows.inputs, rows.scheme.group_of(rows.inputs)
    w, h = weight.astype(np.float64), moments.astype(np.float64)
    dead = np.diagonal(h) <= 0
    h[dead, dead] = 1
    w[:, dead] = 0
    order = np.argsort(-np.diagonal(h), kind="stable") if by_activation else np.arange(inputs)
    scales = scales_of(weight, group, rows.half).astype(np.float64)
    h = h[np.ix_(order, order)]
    h[np.diag_indices(inputs)] += 0.01 * np.diagonal(h).mean()
    upper = np.linalg.cholesky(np.linalg.inv(h)).T
    w = w[:, order]
    codes = np.zeros_like(w)
    for at, place in enumerate(order):
        if not by_activation and at % group == 0:
            some = w[:, at : at + group].astype(np.float32)
            scales[:, at // group] = scales_of(some, group, rows.half)[:, 0]
        scale = scales[:, place // group]
        codes[:, at] = np.clip(np.rint(w[:, at] / scale), -8, 7)
        error = (w[:, at] - codes[:, at] * scale) / upper[at, at]
        w[:, at:] -= np.outer(error, upper[at, at:])
    back = np.empty_like(codes)
    back[:, order] = codes
    return flat(scales.astype(np.float32), back)


PEERS = {
    "nearest": round_nearest,
    "GPTQ": round_gptq,
    "GPTQ in order of activation": lambda *a: round_gptq(*a, by_activation=True),
}


def make(
    method: str, scheme: str, folder: Path, windows: Windows, work: Path
) -> tuple[Path, int, float]:
    """Writes one folder; a peer's codes take the place of packlight's in the same writer."""

    class Peer(FolderRun):
        def _encode(
            self, name: str, rows: RowFormat, weight: Floats, moments: Floats | None
        ) -> Bytes:
            return PEERS[method](rows, weight, moments)

    begun = time.perf_counter()
    out = work / f"{method}-{scheme}".replace(" ", "-").replace(":", "").replace("%", "")
    shutil.rmtree(out, ignore_errors=True)
    compressing.FolderRun = Peer if method in PEERS else FolderRun
    settings = Settings(rows_make_up=method not in PEERS)
    found = compress_folder(
        open_checkpoint(folder), out, find_scheme(scheme), windows=windows, settings=settings
    )
    return out, found.size_bytes, time.perf_counter() - begun


def make_theirs(
    python: Path, scheme: str, folder: Path, windows: Windows, work: Path
) -> tuple[Path, int, float]:
    """Has llmcompressor write one folder, in an environment of its own."""
    out, tokens = work / f"llmcompressor-{scheme}", work / "calibration.npy"
    shutil.rmtree(out, ignore_errors=True)
    np.save(tokens, windows.calibration.astype(np.int64))
    begun = time.perf_counter()
    command = [python, llmcompressor_peer.__file__, folder, tokens, scheme, out]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"llmcompressor failed: {done.stderr[-2000:]}")
    seconds = time.perf_counter() - begun
    for path in folder.glob("tokenizer*"):
        shutil.copyfile(path, out / path.name)
    return out, (out / "model.safetensors").stat().st_size, seconds


def make_all(options: argparse.Namespace, work: Path) -> Iterator[Row]:
    """Yields every row with its folder; the first is the original."""
    model = options.real / "novels-llama"
    folder = model / "hf"
    checkpoint = open_checkpoint(folder)
    yield Row("original", "", folder, checkpoint.size_bytes, 0.0)
    windows = calibration_windows(model, options.sequences)
    wanted = [("packlight", scheme) for scheme in SCHEMES]
    wanted += [(peer, scheme) for scheme in ROUNDED for peer in PEERS]
    for pattern in SPARSE:
        wanted += [("packlight", pattern)]
        wanted += [("", f"{pattern}-{solver}") for solver in ("sparsegpt", "wanda")]
    if options.llmcompressor is not None:
        wanted += [("llmcompressor", scheme) for scheme in llmcompressor_peer.SCHEMES]
    for method, scheme in wanted:
        if scheme.split("-sp")[0].split("-wa")[0] not in options.schemes:
            continue
        print(f"  {method} {scheme} ...", file=sys.stderr, flush=True)
        if method == "llmcompressor":
            found = make_theirs(options.llmcompressor, scheme, folder, windows, work)
        else:
            found = make(method, scheme, folder, windows, work)
        path, size, seconds = found
        yield Row(method, scheme, path, size, seconds)


def measure(rows: list[Row], options: argparse.Namespace) -> list[Row]:
    """Runs all folders on the test text."""
    windows = test_windows(options.real / "novels-llama", options.tokens, options.window)
    print("  running ...", file=sys.stderr, flush=True)
    found = []
    for row in rows:  # two at a time are in memory
        (far,) = measure_divergences(
            rows[0].path, [row.path], windows, threads=options.threads, runtime=TRANSFORMERS
        )
        print(f"  {row.name}: {far.perplexity_compressed:.3f}", file=sys.stderr, flush=True)
        found.append(Row(**{**row.__dict__, "divergence": far}))
    return found


def show_row(row: Row, weights: int) -> str:
    """Returns a row as Markdown."""
    far = row.divergence
    low, high = far.mean_kl_interval_95
    cells = [f"{row.size_bytes:,}", f"{8 * row.size_bytes / weights:.2f}"]
    cells += [f"{far.perplexity_compressed:.3f} ({far.perplexity_ratio - 1:+.2%})"]
    cells += [f"{far.mean_kl:.5f} ({low:.5f} to {high:.5f})", f"{far.top_agreement:.2%}"]
    cells += [f"{row.seconds:.0f}" if row.seconds else ""]
    return f"| {row.name} | " + " | ".join(cells) + " |"


def list_claims(rows: list[Row], windows: NDArray[np.integer], threads: int) -> Iterator[str]:
    """Yields what the table says of each claim, good or bad.

    Perplexities of two folders are compared window by window: their ratio and its interval.
    """
    for ours in (row for row in rows if row.method == "packlight"):
        peers = [
            row
            for row in rows
            if row.scheme == ours.scheme and row.method.startswith(("GPTQ", "llmcompressor"))
        ]
        for peer in peers:
            (far,) = measure_divergences(
                peer.path, [ours.path], windows, threads=threads, runtime=TRANSFORMERS
            )
            low, high = far.perplexity_ratio_interval_95
            said = "lower" if high < 1 else "HIGHER" if low > 1 else "no difference shown"
            yield (
                f"{ours.scheme}: perplexity {far.perplexity_ratio - 1:+.3%} "
                f"({low - 1:+.3%} to {high - 1:+.3%}) of {peer.name}'s: {said}; mean KL "
                f"{ours.divergence.mean_kl / peer.divergence.mean_kl - 1:+.1%}"
            )
        if ours.scheme in W8:
            off = ours.divergence.perplexity_ratio - 1
            said = "reached" if abs(off) <= W8_SLACK else "NOT reached"
            yield f"{ours.scheme}: perplexity {off:+.3%} of the original's, within 0.1 %: {said}"


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real", type=Path, required=True, help="the folder of real models")
    parser.add_argument("--sequences", type=int, default=128, help="of 1,024 calibration tokens")
    parser.add_argument("--tokens", type=int, default=40_960, help="of the test text")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--schemes", nargs="+", default=[*SCHEMES, *SPARSE], help="those alone")
    parser.add_argument("--llmcompressor", type=Path, help="a Python that has it")
    parser.add_argument("--work", type=Path, help="keep the folders here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        rows = measure(list(make_all(options, work)), options)
        weights = sum(info.weights for info in open_checkpoint(rows[0].path).tensors.values())
        print("# Folders for vLLM compared\n")
        print(
            f"- {TRANSFORMERS.name()}; {describe_processor()}; Python {platform.python_version()}"
        )
        print(f"- {options.sequences} x 1,024 tokens of calibration, {options.tokens:,} of test\n")
        heads = ("", "bytes", "bits", "perplexity", "mean KL (95 %)", "top", "s")
        print("| " + " | ".join(heads) + " |")
        print("|---" * len(heads) + "|")
        for row in rows:
            print(show_row(row, weights))
        print()
        test = test_windows(options.real / "novels-llama", options.tokens, options.window)
        for claim in list_claims(rows[1:], test, options.threads):
            print(f"- {claim}")


if __name__ == "__main__":
    main()
