"""Time and memory of making GGUF files, beside llama.cpp and beside what the forecast said.

    pip install -e .[llamacpp,llm] -r benchmarks/requirements.txt
    python benchmarks/llm_speed.py --parameters 1e9 --work /somewhere/with/10/GB

Without text: a checkpoint of random weights (`llm_random.py`, bfloat16, in shards) becomes Q4_K
throughout, by `compress_checkpoint` and by llama.cpp's `llama_model_quantize` (`pure`, from the
same weights as a bfloat16 GGUF file), each in a fresh process with two threads, in turns, packlight
first in one round and llama.cpp in the next. Columns: median seconds, from opening the checkpoint
to the finished file; median seconds of processor time, which other work on the machine disturbs
less; their ratios to llama.cpp's in the same round with 95 % intervals by bootstrap; the
largest peak of resident memory; the squared error of the rounded weights over their squares.

With text: `packlight.compress(novels-llama, data=its training text, bits=4.5)` in a fresh
process. Columns: seconds until the file is finished and what that is for a billion weights;
what `dry_run` said before; peak resident memory, and what it said.

A wide block: one of random weights, 2,048 wide, to 4.5 bits under second moments of 16,384 drawn
tokens, in one process and with --workers N. Columns as above; whether the bytes are the same.

A large vocabulary: a narrow block between an embedding and a head of 131,072 words, likewise in
one process.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import llm_peers
import numpy as np
from int8 import describe_processor, run_child
from llm_random import Shape, shape_of, write_random_llama
from measuring import ratio_interval
from numpy.typing import NDArray

import packlight
from packlight.language.target import spread_over
from packlight.llm.checkpoint import Checkpoint, open_checkpoint
from packlight.llm.checkpoint.stored import read_rows
from packlight.llm.compress import compress_checkpoint, uniform_types
from packlight.llm.compress_forecast import forecast_compression, rounded_names
from packlight.llm.costs import TensorCosts
from packlight.llm.gguf import plain_contents, read_gguf, write_gguf
from packlight.llm.text import Windows
from packlight.plan.types import CANDIDATES, plan_types
from packlight.runtime.llamacpp import llamacpp_name

HERE = Path(__file__).resolve().parent
KIND = "Q4_K"
FTYPE = "Q4_K_S"
CLAIM_RATIO, CLAIM_BYTES = 2.0, 1.5e9
PIECE = 1 << 22
MAKERS = ("packlight", "llama.cpp")
WIDE = Shape(2048, 5632, 1, vocabulary=512)
WORDS = Shape(256, 768, 1, vocabulary=131_072)
BITS = 4.5


def measured(work: Callable[[], Any]) -> dict[str, Any]:
    """Runs the work of this process, and says what it took."""
    began = time.perf_counter()
    found = work()
    seconds = time.perf_counter() - began
    spent = resource.getrusage(resource.RUSAGE_SELF)
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = 1024 * int(status.split("VmHWM:")[1].split()[0])
    cpu = spent.ru_utime + spent.ru_stime
    return {"seconds": seconds, "cpu": cpu, "peak": peak, **(found or {})}


def compress_alone(folder: Path, out: Path) -> None:
    """Packlight without text: one type for all tensors."""
    checkpoint = open_checkpoint(folder)
    compress_checkpoint(checkpoint, out, uniform_types(checkpoint, KIND))


def compress_with_text(model: Path) -> dict[str, Any]:
    """Packlight with text; the seconds until the file is finished and proven from then on."""
    began = time.perf_counter()
    proving: list[float] = []

    class Watch:
        def stage(self, name: str, total: int | None = None) -> None:
            if "original" in name or "proving" in name:
                proving.append(time.perf_counter() - began)

        def step(self, detail: str = "", advance: int = 1) -> None:
            pass

    named: dict[str, Any] = {"data": model / "text" / "train_sample.txt", "bits": 4.5}
    packlight.compress(model / "hf", target="llama.cpp", progress=Watch(), **named)
    return {"made": proving[0]}


def drawn_windows(vocabulary: int) -> Windows:
    """32 drawn windows of 512 tokens."""
    drawn = np.random.default_rng(0).integers(0, vocabulary, (36, 512)).astype(np.int32)
    return Windows("drawn", drawn[:32], drawn[32:34], drawn[34:], drawn.size)


def compress_drawn(folder: Path, out: Path, workers: int) -> dict[str, Any]:
    """Packlight on random weights, by so many workers; the seconds until types were weighed."""
    began, weighed = time.perf_counter(), 0.0
    checkpoint = open_checkpoint(folder)

    def choose(costs: Sequence[TensorCosts], other: int) -> Mapping[str, str]:
        nonlocal weighed
        weighed = time.perf_counter() - began
        return plan_types(costs, bits=BITS, other_bytes=other).types

    compress_checkpoint(
        checkpoint,
        out,
        choose,
        windows=drawn_windows(checkpoint.config.vocabulary),
        candidates=CANDIDATES,
        budget=str(BITS),
        spread=spread_over(workers),
    )
    return {"weighed": weighed}


def child(arguments: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Runs one of the works above in a process of its own."""
    said = run_child(["llm_speed.py", *arguments], python=sys.executable, limit=options.limit)
    found: dict[str, Any] = json.loads(said)
    return found


def make_models(options: argparse.Namespace, work: Path) -> tuple[Path, Path]:
    """The checkpoint, and the same as GGUF; what is there from an earlier run is taken."""
    shape = shape_of(int(options.parameters))
    folder = work / f"random-{shape.parameters}"
    if not (folder / "config.json").is_file():
        print("  drawing the weights ...", file=sys.stderr, flush=True)
        write_random_llama(folder, shape)
    original = folder / "original.gguf"
    if not original.is_file():
        checkpoint = open_checkpoint(folder)
        write_gguf(original, checkpoint, plain_contents(checkpoint, "BF16"))
    return folder, original


def run_rounds(
    folder: Path, original: Path, options: argparse.Namespace
) -> dict[str, list[dict[str, Any]]]:
    """What each took, round by round."""
    commands = {
        "packlight": ["alone", str(folder), str(folder / "packlight.gguf")],
        "llama.cpp": ["peer", str(original), str(folder / "llamacpp.gguf")],
    }
    found: dict[str, list[dict[str, Any]]] = {maker: [] for maker in MAKERS}
    for number in range(options.rounds):
        for maker in MAKERS[:: 1 if number % 2 == 0 else -1]:
            Path(commands[maker][2]).unlink(missing_ok=True)
            found[maker].append(child(commands[maker], options))
            print(f"  {maker}: {found[maker][-1]}", file=sys.stderr, flush=True)
    return found


def relative_error(checkpoint: Checkpoint, path: Path) -> float:
    """Squared error of all rounded weights of a file over their squares."""
    stored = read_gguf(path).tensors
    lost = whole = 0.0
    for name in rounded_names(checkpoint):
        rows, inputs = stored[name].rows, stored[name].shape[-1]
        step = max(PIECE // inputs, 1)
        for at in range(0, rows, step):
            stop = min(at + step, rows)
            weight = checkpoint.read_rows(name, at, stop)
            gap = weight - read_rows(stored[name], at, stop)
            lost += float(np.vdot(gap, gap))
            whole += float(np.vdot(weight, weight))
    return lost / whole


def column(rows: list[dict[str, Any]], key: str) -> NDArray[np.float64]:
    """One figure of every round."""
    return np.array([row[key] for row in rows])


def show_alone(options: argparse.Namespace, work: Path) -> None:
    """Prints the table of the run without text, and what it says of the claim."""
    folder, original = make_models(options, work)
    checkpoint = open_checkpoint(folder)
    weights = sum(info.weights for info in checkpoint.tensors.values())
    found = run_rounds(folder, original, options)
    print(f"## Without text: {weights / 1e6:,.0f} million random weights to {KIND}\n")
    print("| | s | ratio (95 %) | processor s | ratio (95 %) | peak MB | bytes | relative error |")
    print("|---" * 8 + "|")
    reference = found["llama.cpp"]
    for maker in MAKERS:
        rows, cells = found[maker], [maker]
        for key in ("seconds", "cpu"):
            figures = column(rows, key)
            ratio, low, high = ratio_interval(figures, column(reference, key))
            cells += [f"{np.median(figures):.1f}", f"{ratio:.2f} ({low:.2f} to {high:.2f})"]
        path = folder / f"{maker.replace('.', '')}.gguf"
        cells += [f"{column(rows, 'peak').max() / 1e6:,.0f}", f"{path.stat().st_size:,}"]
        print("| " + " | ".join([*cells, f"{relative_error(checkpoint, path):.6f}"]) + " |")
    ratio = ratio_interval(column(found["packlight"], "seconds"), column(reference, "seconds"))[0]
    peak = column(found["packlight"], "peak").max()
    said = "reached" if ratio <= CLAIM_RATIO and peak <= CLAIM_BYTES else "NOT reached"
    print(
        f"\n- {ratio:.2f} of llama.cpp's time in {options.rounds} rounds, at most {CLAIM_RATIO:g} "
        f"asked for; peak {peak / 1e6:,.0f} MB, at most {CLAIM_BYTES / 1e6:,.0f}: {said}\n"
    )


def show_with_text(options: argparse.Namespace) -> None:
    """Prints the table of the run with text."""
    model = options.real / "novels-llama"
    forecast: Any = packlight.compress(
        model / "hf",
        target="llama.cpp",
        data=model / "text" / "train_sample.txt",
        bits=4.5,
        dry_run=True,
    )
    took = child(["text", str(model)], options)
    print("## With text: novels-llama, 4.5 bits\n")
    print("| | s | s for a billion weights | processor s | peak MB |\n" + "|---" * 5 + "|")
    for name, seconds, cpu, peak in (
        ("measured", took["made"], f"{took['cpu']:.0f} (proof too)", took["peak"]),
        ("forecast", forecast.seconds, "", forecast.memory_bytes),
    ):
        each = seconds / forecast.parameters * 1e9
        print(f"| {name} | {seconds:.0f} | {each:,.0f} | {cpu} | {peak / 1e6:,.0f} |")
    kept = "kept" if took["peak"] <= forecast.memory_bytes else "NOT kept"
    print(f"\n- the forecast's memory: {kept}\n")


def show_drawn(
    title: str, shape: Shape, workers: Sequence[int], folder: Path, options: argparse.Namespace
) -> None:
    """Prints the table of random weights, by each number of workers."""
    if not (folder / "config.json").is_file():
        write_random_llama(folder, shape)
    checkpoint = open_checkpoint(folder)
    said = forecast_compression(
        checkpoint,
        uniform_types(checkpoint, "Q4_K"),
        tokens=drawn_windows(shape.vocabulary).calibration.size,
        weighed=len(CANDIDATES),
    )
    print(f"## {title}: {shape.parameters / 1e6:,.0f} million random weights, {BITS} bits\n")
    print("| | s | of it weighing | s for a billion weights | peak MB |\n" + "|---" * 5 + "|")
    made = set()
    for count in workers:
        out = folder / f"{count}.gguf"
        for left in (*folder.glob(out.name), *folder.glob(f".{out.name}*")):
            left.unlink()  # of an earlier run, with which this one would go on
        took = child(["drawn", str(folder), str(out), str(count)], options)
        made.add(out.read_bytes())
        row = [f"{count} worker{'s' if count > 1 else ''}", f"{took['seconds']:.0f}"]
        row += [f"{took['weighed']:.0f}", f"{took['seconds'] / shape.parameters * 1e9:,.0f}"]
        print("| " + " | ".join([*row, f"{took['peak'] / 1e6:,.0f}"]) + " |", flush=True)
    each = said.seconds / shape.parameters * 1e9
    print(f"| forecast | {said.seconds:.0f} |  | {each:,.0f} | {said.memory_bytes / 1e6:,.0f} |\n")
    if len(workers) > 1:
        print(f"- the same bytes: {'yes' if len(made) == 1 else 'NO'}\n")


def print_head(options: argparse.Namespace) -> None:
    """Prints where and with what this was measured."""
    print("# Making GGUF files: time and memory\n")
    print(f"- {datetime.datetime.now(datetime.UTC):%Y-%m-%d}")
    print(f"- {describe_processor()}, {os.cpu_count()} cores, {platform.system()}")
    print(f"- load average when it began: {os.getloadavg()[0]:.1f}")
    print(f"- Python {platform.python_version()}, packlight {packlight.__version__}")
    print(f"- {llamacpp_name()}, 2 threads; {options.rounds} rounds\n")


def main() -> int:
    """Runs what the options ask for."""
    works = {
        "alone": lambda folder, out: compress_alone(Path(folder), Path(out)),
        "peer": lambda original, out: {
            "seconds": llm_peers.quantize(Path(original), Path(out), FTYPE, threads=2, pure=True)
        },
        "text": lambda model: compress_with_text(Path(model)),
        "drawn": lambda folder, out, workers: compress_drawn(Path(folder), Path(out), int(workers)),
    }
    if sys.argv[1:2] and sys.argv[1] in works:
        print(json.dumps(measured(lambda: works[sys.argv[1]](*sys.argv[2:]))))
        return 0
    parser = argparse.ArgumentParser(description="Time and memory of making GGUF files.")
    parser.add_argument("--parameters", type=float, default=1e9, help="of the random checkpoint")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-alone", dest="alone", action="store_false")
    parser.add_argument("--no-text", dest="text", action="store_false")
    parser.add_argument("--no-wide", dest="wide", action="store_false")
    parser.add_argument("--no-words", dest="words", action="store_false")
    parser.add_argument("--workers", type=int, default=2, help="beside one, on a wide block")
    parser.add_argument(
        "--real",
        type=Path,
        default=HERE.parent.parent / "shared" / "real",
        help="the folder of real models and data",
    )
    parser.add_argument("--limit", type=float, default=3600, help="seconds a child may take")
    parser.add_argument("--work", type=Path, default=None, help="where the models stay")
    options = parser.parse_args()
    options.real = options.real.resolve()
    print_head(options)
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)).resolve()
        if options.alone:
            show_alone(options, work)
        if options.text:
            show_with_text(options)
        if options.wide:
            show_drawn("A wide block", WIDE, (1, options.workers), work / "wide", options)
        if options.words:
            show_drawn("A large vocabulary", WORDS, (1,), work / "words", options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
