"""Compares GGUF files of one language model: same text, same runtime, peers in the same run.

    pip install -e .[llamacpp,llm] -r benchmarks/requirements.txt
    python benchmarks/llm.py --real ../shared/real

prints one Markdown table, smallest file first, and what it says of packlight's claims. The
model is a Llama of 5.8 million weights; its 16-bit GGUF file is the original. Files are run by
llama.cpp on the first tokens of a book that nobody trained on or calibrated with.

Rows:
- llama.cpp: its own quantizer (`llama_model_quantize`), plain, and with the importance matrix
  that `llama-imatrix` would collect on the calibration text, for the same tensors; from the
  32-bit file. "head, too" gives it the importance of the tied output head as well;
- packlight's rounding, llama.cpp's types: every tensor has the type that it has in llama.cpp's
  file, and the codes and scales are packlight's, with the inputs' full second moments (of the
  float model, layer by layer; no sequence, no planning): the same number of bytes;
- packlight in sequence, llama.cpp's types: the same types again, but block by block, each layer
  under the second moments of what reaches it once all before it are rounded;
- packlight: `packlight.compress(..., target="llama.cpp")` for so many bits a weight, and for the
  size of llama.cpp's files. Sizes are those of whole files.

Columns: bytes of the file; bits of a weight on average over all tensors, norms and scales
counted, names and the tokenizer not; mean KL divergence of
the next token's probabilities, original || file, in nats, with its 95 % interval (resampling
windows); 99th percentile; top = share of positions whose most probable token is the original's;
perplexity; tokens a second of reading a prompt of 128 tokens and of generating 32 after it, with
the median ratio to the 16-bit file in interleaved rounds and its 95 % interval; peak resident
memory of a process that does that; seconds of quantizing, calibration of packlight included.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import llm_peers
import numpy as np
from int8 import ChildFailed, describe_processor, run_child
from numpy.typing import NDArray

import packlight
from packlight.errors import PacklightError
from packlight.measure.language import Divergence
from packlight.measure.language_evidence import Speed
from packlight.measure.language_run import (
    compare_speed,
    cut_windows,
    measure_divergences,
    peak_memory,
    time_texts,
)
from packlight.runtime.llamacpp import LlamaCpp, llamacpp_name

HERE = Path(__file__).resolve().parent
SAME_TYPES = ("Q4_K_M", "Q3_K_M", "Q2_K")
FEW = ("IQ2_XXS", "IQ1_S")
"""Sizes that are not asked for: rows only where --types names them."""
ALL_SIZES = (*SAME_TYPES, *FEW)
BITS = (4.5, 3.5, 2.7)
CLAIM = 0.6
"""At the size of llama.cpp's files, at most so much of the better one's divergence."""
SIZE_SLACK = 0.01
SAME_SIZE = 1.0005
"""A file's metadata may take a few bytes more."""
PROMPT, GENERATED = 128, 32
GIVEN = "llama.cpp's types, packlight's rounding"
SEQUENCE = "llama.cpp's types, packlight in sequence"


@dataclass(frozen=True)
class Row:
    """A file and what it is worth; `failed` says why there is none.

    group: what made it. size_of: the type of llama.cpp's file whose size it has, or ''.
    asked_bits: a weight, where a size was asked for so.
    """

    name: str
    group: str
    path: Path | None = None
    seconds: float | None = None
    failed: str = ""
    size_of: str = ""
    asked_bits: float | None = None
    size_bytes: int = 0
    bits: float = 0.0
    divergence: Divergence | None = None
    prompt: Speed | None = None
    generation: Speed | None = None
    peak_bytes: int | None = None


LEFT_OUT = "left out"


def attempt(row: Row, make: Callable[[], tuple[Path, float]], methods: list[str]) -> Row:
    """Makes a file, if its name matches; what goes wrong is said in its row."""
    if not any(re.search(part, row.name) for part in methods):
        return replace(row, failed=LEFT_OUT)
    print(f"  {row.name} ...", file=sys.stderr, flush=True)
    try:
        path, seconds = make()
    except (ChildFailed, PacklightError, ImportError, OSError, TypeError) as failure:
        return replace(row, failed=f"{type(failure).__name__}: {failure}")
    return weigh(replace(row, path=path, seconds=seconds))


def weigh(row: Row) -> Row:
    """Fills in the size of a row's file, and its bits a weight."""
    import gguf

    assert row.path is not None
    tensors = gguf.GGUFReader(row.path).tensors
    bits = (
        8 * sum(int(one.n_bytes) for one in tensors) / sum(int(one.n_elements) for one in tensors)
    )
    return replace(row, size_bytes=row.path.stat().st_size, bits=bits)


def make_peers(original: Path, work: Path, options: argparse.Namespace) -> Iterator[Row]:
    """Yields llama.cpp's own files."""
    kinds = (("", ""), (", importance", "blocks.npz"), (", importance, head, too", "all.npz"))
    for kind in options.types:
        for suffix, matrix in kinds:
            out = work / f"{kind}{Path(matrix).stem}.gguf"
            arguments = ["llm_peers.py", str(original), str(out), kind, str(options.threads)]
            arguments += [str(work / matrix)] if matrix else []

            def make(arguments: list[str] = arguments, out: Path = out) -> tuple[Path, float]:
                said = run_child(arguments, python=sys.executable, limit=options.limit)
                return out, float(json.loads(said)["seconds"])

            yield attempt(
                Row(f"llama.cpp {kind}{suffix}", "llama.cpp", size_of=kind), make, options.methods
            )


def peer_file(work: Path, kind: str) -> Path:
    """llama.cpp's file of a type: plain, or with importance where it refuses that."""
    plain = work / f"{kind}.gguf"
    return plain if plain.is_file() else work / f"{kind}blocks.gguf"


def make_same_types(
    original: Path, work: Path, moments: Mapping[str, NDArray[np.float64]], kind: str
) -> tuple[Path, float]:
    """Writes packlight's bytes over llama.cpp's in a copy of its file, type by type."""
    import gguf

    from packlight.llm.formats import quantize

    out = Path(shutil.copy(peer_file(work, kind), work / f"{kind}-rounded.gguf"))
    weights = {tensor.name: tensor.data for tensor in gguf.GGUFReader(original).tensors}
    seconds = 0.0
    for tensor in gguf.GGUFReader(out, "r+").tensors:
        format_name = tensor.tensor_type.name
        if format_name in ("F32", "F16"):
            continue
        began = time.perf_counter()
        data = quantize(format_name, np.asarray(weights[tensor.name]), moments.get(tensor.name))
        seconds += time.perf_counter() - began
        tensor.data[:] = data.reshape(tensor.data.shape)
    return out, seconds


def make_in_sequence(
    folder: Path, text: Path, work: Path, kind: str, options: argparse.Namespace
) -> tuple[Path, float]:
    """Compresses block by block, every tensor to the type that it has in llama.cpp's file."""
    import gguf

    from packlight.llm.checkpoint import open_checkpoint
    from packlight.llm.compress import compress_checkpoint, rounded_names
    from packlight.llm.text import open_tokenizer, read_windows

    began = time.perf_counter()
    tensors = gguf.GGUFReader(peer_file(work, kind)).tensors
    theirs = {tensor.name: tensor.tensor_type.name for tensor in tensors}
    checkpoint = open_checkpoint(folder)
    windows = read_windows(
        text,
        open_tokenizer(folder),
        vocabulary=json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"],
        calibration=options.sequences,
        length=1024,
    )
    types = {name: theirs[name] for name in rounded_names(checkpoint)}
    out = work / f"{kind}-sequence.gguf"
    compress_checkpoint(checkpoint, out, types, windows=windows)
    return out, time.perf_counter() - began


def make_packlight(folder: Path, text: Path, out: Path, **budget: Any) -> tuple[Path, float]:
    """Writes the file that one call of packlight makes."""
    began = time.perf_counter()
    result = packlight.compress(folder, target="llama.cpp", data=text, **budget)
    result.save(out)
    (file,) = out.glob("*.gguf")
    return file, time.perf_counter() - began


def make_all(options: argparse.Namespace, work: Path) -> Iterator[Row]:
    """Yields every row with its file; the first is the original."""
    model = options.real / "novels-llama"
    text = model / "text" / "train_sample.txt"
    float16, float32 = work / "F16.gguf", work / "F32.gguf"
    for path in (float16, float32):
        llm_peers.write_original(model / "hf", path, half=path is float16)
    yield weigh(Row("F16 (original)", "original", float16))
    print("  importance and second moments ...", file=sys.stderr, flush=True)
    moments = llm_peers.observe_moments(
        model / "hf",
        text.read_text(encoding="utf-8"),
        sequences=options.sequences,
        length=1024,
        threads=options.threads,
    )
    means = {name: np.diag(second).astype(np.float32) for name, second in moments.items()}
    np.savez(work / "all.npz", **means)
    np.savez(work / "blocks.npz", **{k: v for k, v in means.items() if k.startswith("blk.")})
    peers = []
    for row in make_peers(float32, work, options):
        peers.append(row)
        yield row
    for kind in ALL_SIZES:
        if kind in options.types:
            yield attempt(
                Row(f"{GIVEN} ({kind})", GIVEN, size_of=kind),
                lambda kind=kind: make_same_types(float32, work, moments, kind),
                options.methods,
            )
            yield attempt(
                Row(f"{SEQUENCE} ({kind})", SEQUENCE, size_of=kind),
                lambda kind=kind: make_in_sequence(model / "hf", text, work, kind, options),
                options.methods,
            )
    for bits in options.bits:
        yield attempt(
            Row(f"packlight, bits={bits}", "packlight", asked_bits=bits),
            lambda bits=bits: make_packlight(model / "hf", text, work / f"b{bits}", bits=bits),
            options.methods,
        )
    for kind in ALL_SIZES:
        sizes = [row.size_bytes for row in peers if row.size_of == kind and not row.failed]
        if not sizes:
            continue
        most = min(sizes)
        yield attempt(
            Row(f"packlight, size of {kind}", "packlight", size_of=kind),
            lambda kind=kind, most=most: make_packlight(
                model / "hf", text, work / f"s{kind}", max_size=most
            ),
            options.methods,
        )


def measure(rows: list[Row], options: argparse.Namespace) -> list[Row]:
    """Runs all files on the test text, then times them in turns."""
    made = [row for row in rows if row.path is not None]
    paths = [row.path for row in made if row.path is not None]
    text = (options.real / "novels-llama" / "text" / "test.txt").read_text(encoding="utf-8")
    with LlamaCpp(paths[0]) as model:
        tokens = model.tokenize(text)
        start = model.model.start if model.model.adds_start else None
    windows = cut_windows(tokens, options.window, start=start, most=options.tokens)
    print("  running ...", file=sys.stderr, flush=True)
    compared = measure_divergences(paths[0], paths, windows, threads=options.threads)
    found = [replace(row, divergence=one) for row, one in zip(made, compared, strict=True)]
    if options.speed:
        print("  timing ...", file=sys.stderr, flush=True)
        prompt = tokens[options.tokens :][:PROMPT]
        times = time_texts(paths, prompt, GENERATED, threads=options.threads, rounds=options.rounds)
        found = [
            replace(
                row,
                prompt=compare_speed(times[0].prompt, took.prompt, PROMPT),
                generation=compare_speed(times[0].generation, took.generation, GENERATED),
                peak_bytes=peak_memory(took.path, prompt, GENERATED, threads=options.threads),
            )
            for row, took in zip(found, times, strict=True)
        ]
    return [*found, *(row for row in rows if row.path is None)]


COLUMNS = (
    *("bytes", "bits", "mean KL (95 %)", "p99 KL", "top", "perplexity"),
    *("prompt tokens/s (ratio)", "generated tokens/s (ratio)", "peak MB", "s"),
)


def show_row(row: Row) -> str:
    """Returns a row as Markdown."""
    if row.failed or row.divergence is None:
        said = row.failed.replace("|", "/").replace("\n", " ")[:240] or "not measured"
        return f"| {row.name} | {said} |" + " |" * (len(COLUMNS) - 1)
    far = row.divergence
    low, high = far.mean_kl_interval_95
    cells = [f"{row.size_bytes:,}", f"{row.bits:.3f}"]
    cells += [f"{far.mean_kl:.5f} ({low:.5f} to {high:.5f})", f"{far.p99_kl:.4f}"]
    cells += [f"{far.top_agreement:.2%}", f"{far.perplexity_compressed:.2f}"]
    cells += [show_speed(row.prompt), show_speed(row.generation)]
    cells += ["" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.1f}"]
    cells += ["" if row.seconds is None else f"{row.seconds:.2f}"]
    return f"| {row.name} | " + " | ".join(cells) + " |"


def show_speed(speed: Speed | None) -> str:
    """Returns tokens a second and the ratio to the original's."""
    if speed is None:
        return ""
    low, high = speed.ratio_interval_95
    return f"{speed.compressed:.0f} ({speed.ratio:.2f}, {low:.2f} to {high:.2f})"


def list_claims(rows: list[Row]) -> Iterator[str]:
    """Yields what the table says of each claim, good or bad."""
    measured = [row for row in rows if row.divergence is not None]
    for kind in ALL_SIZES:
        peers = [row for row in measured if row.group == "llama.cpp" and row.size_of == kind]
        if not peers:
            continue
        best = min(peers, key=lambda row: row.divergence.mean_kl)
        for row in measured:
            if row.size_of == kind and row.group != "llama.cpp":
                share = row.divergence.mean_kl / best.divergence.mean_kl
                fits = row.size_bytes <= SAME_SIZE * best.size_bytes
                said = f"{row.name}: mean KL {share:.3f} of {best.name}'s"
                said += f", size {row.size_bytes:,} of {best.size_bytes:,}"
                if kind in SAME_TYPES:
                    reached = share <= CLAIM and fits
                    said += f"; asked for at most {CLAIM}: {'' if reached else 'NOT '}reached"
                yield said
    for row in measured:
        if row.asked_bits is not None:
            off = row.bits / row.asked_bits - 1
            beaten = [
                other.name
                for other in measured
                if other.size_bytes <= row.size_bytes
                and other.divergence.mean_kl < row.divergence.mean_kl
            ]
            said = f"beaten by {', '.join(beaten)}" if beaten else "on the front"
            good = abs(off) <= SIZE_SLACK and not beaten
            yield (
                f"{row.name}: size {off:+.2%} of what was asked for, {said}: "
                + ("reached" if good else "NOT reached")
            )


def print_head(options: argparse.Namespace) -> None:
    """Prints where and with what this was measured."""
    print("# Language models compared\n")
    print(f"- {datetime.datetime.now(datetime.UTC):%Y-%m-%d}")
    print(f"- {describe_processor()}, {os.cpu_count()} cores, {platform.system()}")
    print(f"- load average when it began: {os.getloadavg()[0]:.1f}")
    print(f"- Python {platform.python_version()}, packlight {packlight.__version__}")
    print(f"- {llamacpp_name()}, {options.threads} threads")
    print(
        f"- novels-llama; calibration: {options.sequences} sequences of 1,024 tokens of its "
        f"training text; test: {options.tokens:,} tokens in windows of {options.window}, every "
        "position but the last of a window counts\n"
    )


def main() -> int:
    """Runs the comparison the options ask for."""
    parser = argparse.ArgumentParser(description="Compares GGUF files of one language model.")
    every = (*llm_peers.TYPES, *llm_peers.FEW)
    parser.add_argument("--types", nargs="+", choices=every, default=llm_peers.TYPES)
    parser.add_argument("--bits", nargs="*", type=float, default=BITS, help="a weight, to ask for")
    parser.add_argument("--methods", nargs="+", default=[""], help="rows whose name matches")
    parser.add_argument("--tokens", type=int, default=10_240, help="of the test text")
    parser.add_argument("--window", type=int, default=256, help="tokens of a window")
    parser.add_argument("--sequences", type=int, default=128, help="of calibration, 1,024 tokens")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20, help="of timing")
    parser.add_argument("--no-speed", dest="speed", action="store_false")
    parser.add_argument(
        "--real",
        type=Path,
        default=HERE.parent.parent / "shared" / "real",
        help="the folder of real models and data",
    )
    parser.add_argument("--limit", type=float, default=900, help="seconds a child may take")
    parser.add_argument("--work", type=Path, default=None, help="where temporary files go")
    options = parser.parse_args()
    options.real = options.real.resolve()
    if not options.real.is_dir():
        parser.error(f"{options.real} is not a folder: name the real models with --real")
    print_head(options)
    with tempfile.TemporaryDirectory(dir=options.work) as temporary:
        rows = [row for row in make_all(options, Path(temporary)) if row.failed != LEFT_OUT]
        rows = measure(rows, options)
    print("| | " + " | ".join(COLUMNS) + " |\n" + "|---" * (len(COLUMNS) + 1) + "|")
    for row in sorted(rows, key=lambda row: (row.path is None, row.size_bytes)):
        print(show_row(row))
    print()
    for claim in list_claims(rows):
        print(f"- {claim}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
