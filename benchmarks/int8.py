"""Compares 8-bit quantizers: same models, same samples, same runtime, one run.

    pip install -e . -r benchmarks/requirements.txt
    python benchmarks/int8.py --real ../shared/real

prints one Markdown table a model. Every quantizer and every measurement runs in a child
process with a time limit: one that crashes or hangs is a row of the table, not its end.

Columns: top-1 (where there are labels) and agreement with float32 (classifiers), or
explained variance (worst output); output SNR = 10 log10(sum y^2 / sum (y - y')^2), worst
output; "ideal" is the same with the runtime's graph optimizations off, that is, without
integer kernels that might saturate; bytes of all files; median milliseconds of one sample
on one thread, runs interleaved, and the median ratio to float32 with its 95 % interval by
bootstrap; seconds the quantizer took.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import measuring
import numpy as np
from cases import CASES, Case, Data, shorten
from feeding import take
from peers.table import PEERS, QUICK

HERE = Path(__file__).resolve().parent
FLOAT = "float32"
TELL_VERSIONS = """
import importlib.metadata as metadata, json, sys
present = {found.metadata["Name"].lower(): found.version for found in metadata.distributions()}
print(json.dumps({name: present.get(name, "is not installed") for name in sys.argv[1:]}))
"""


class ChildFailed(Exception):
    """A child process ended badly; the message is what the table says."""


@dataclass(frozen=True)
class Row:
    """What one quantizer's file is worth; None where it does not apply or was not reached."""

    name: str
    crashed: str = ""
    top1: float | None = None
    agreement: float | None = None
    variance: float | None = None
    noise_db: float | None = None
    ideal_db: float | None = None
    size_bytes: int | None = None
    latency_ms: float | None = None
    ratio: tuple[float, float, float] | None = None
    seconds: float | None = None


def run_child(arguments: list[str], *, python: str, limit: float) -> str:
    """Runs Python with the arguments from this folder and returns the last line it printed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(python_path())}
    try:
        done = subprocess.run(
            [python, *arguments],
            cwd=HERE,
            env=environment,
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ChildFailed(f"stopped after {limit:.0f} s") from None
    if done.returncode < 0:
        raise ChildFailed(f"killed by {signal.Signals(-done.returncode).name}")
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line and not line.startswith(" ")]
        raise ChildFailed(lines[-1] if lines else f"exit status {done.returncode}")
    return (done.stdout.strip().splitlines() or [""])[-1]


def python_path() -> list[str]:
    """Returns where children look for modules: this folder, and whatever was asked for."""
    return [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]


def quantize_all(
    model: Path, folder: Path, names: list[str], options: argparse.Namespace
) -> dict[str, Row]:
    """Lets every peer write its file into a folder of its own; a failure is a row too."""
    rows = {}
    for number, name in enumerate(names):
        out = folder / str(number) / "model.onnx"
        out.parent.mkdir()
        print(f"  {name} ...", file=sys.stderr, flush=True)
        python = options.peer_python if not name.startswith("packlight") else sys.executable
        arguments = ["-m", "peers", name, str(model), str(folder / "calibration.npz"), str(out)]
        try:
            answer = json.loads(run_child(arguments, python=python, limit=options.limit))
            if "error" in answer:
                raise ChildFailed(answer["error"])
            if not out.is_file():
                raise ChildFailed("no file was written")
        except ChildFailed as failure:
            rows[name] = Row(name, crashed=str(failure))
        else:
            size = sum(file.stat().st_size for file in out.parent.iterdir())
            rows[name] = Row(name, size_bytes=size, seconds=answer["seconds"])
    return rows


def measure_fidelity(
    case: Case, data: Data, row: Row, model: Path, folder: Path, options: argparse.Namespace
) -> Row:
    """Runs a file on the test samples and compares its outputs with float32's."""

    def outputs(kind: str, how: str) -> dict[str, np.ndarray]:
        out = folder / "outputs.npz"
        run_child(
            ["measuring.py", "outputs", str(model), str(folder / f"{kind}.npz"), str(out), how],
            python=sys.executable,
            limit=options.limit,
        )
        return measuring.load(out)

    reference = measuring.load(folder / "reference-test.npz")
    measured = outputs("test", "optimized")
    figures: dict[str, float] = {
        "noise_db": measuring.signal_to_noise_db(reference, measured),
        "ideal_db": measuring.signal_to_noise_db(
            measuring.load(folder / "reference-few.npz"), outputs("few", "plain")
        ),
    }
    if case.classifier:
        (name,) = reference
        chosen, expected = measured[name].argmax(1), reference[name].argmax(1)
        figures["agreement"] = float((chosen == expected).mean())
        if data.labels is not None:
            figures["top1"] = float((chosen == data.labels).mean())
    else:
        figures["variance"] = measuring.explained_variance(reference, measured)
    return Row(row.name, size_bytes=row.size_bytes, seconds=row.seconds, **figures)


def measure_latency(
    files: dict[str, Path], folder: Path, options: argparse.Namespace
) -> dict[str, np.ndarray]:
    """Times all files in one process, interleaved; milliseconds [round] by name."""
    out = folder / "times.npz"
    run_child(
        ["measuring.py", "latency", str(folder / "few.npz"), str(out), str(options.rounds)]
        + [str(file) for file in files.values()],
        python=sys.executable,
        limit=options.limit,
    )
    return dict(zip(files, measuring.load(out)["times"], strict=True))


def compare(case: Case, names: list[str], options: argparse.Namespace) -> list[Row]:
    """Quantizes and measures one model with every peer; the first row is float32."""
    model = options.real / case.path
    data = case.read(options.real, model, options.seed)
    if options.quick:
        data = shorten(data, calibration=128, test=1000)
    with tempfile.TemporaryDirectory(dir=options.work) as temporary:
        folder = Path(temporary)
        np.savez(folder / "calibration.npz", **data.calibration)
        np.savez(folder / "test.npz", **data.test)
        np.savez(folder / "few.npz", **take(data.test, slice(0, options.ideal_samples)))
        for kind in ("test", "few"):
            out = folder / f"reference-{kind}.npz"
            measuring.run_outputs(model, folder / f"{kind}.npz", out, optimize=True)
        quantized = quantize_all(model, folder, names, options)
        files = {FLOAT: model}
        rows = {FLOAT: Row(FLOAT, size_bytes=model.stat().st_size), **quantized}
        for number, name in enumerate([FLOAT, *names]):
            file = model if name == FLOAT else folder / str(number - 1) / "model.onnx"
            if rows[name].crashed:
                continue
            try:
                rows[name] = measure_fidelity(case, data, rows[name], file, folder, options)
                files[name] = file
            except ChildFailed as failure:
                rows[name] = Row(
                    name, crashed=f"its file does not run: {failure}".replace(str(folder), "")
                )
        times = measure_latency(files, folder, options)
    for name, taken in times.items():
        ratio = measuring.ratio_interval(taken, times[FLOAT]) if name != FLOAT else None
        rows[name] = Row(
            **{**vars(rows[name]), "latency_ms": float(np.median(taken)), "ratio": ratio}
        )
    return list(rows.values())


def print_table(case: Case, rows: list[Row], options: argparse.Namespace) -> None:
    """Prints one model's rows as Markdown."""
    columns: list[str] = []
    if case.classifier:
        columns += ["top-1"] * any(row.top1 is not None for row in rows) + ["agreement"]
    else:
        columns += ["explained variance"]
    columns += ["SNR dB", "ideal dB", "bytes", "ms", "ratio to float32 (95 %)", "quantized in s"]
    print(f"\n### {case.name}\n\n{case.source}.\n")
    print("| | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for row in rows:
        cells = {
            "top-1": show(row.top1, "{:.2%}"),
            "agreement": show(row.agreement, "{:.2%}"),
            "explained variance": show(row.variance, "{:.5f}"),
            "SNR dB": show(row.noise_db, "{:.2f}"),
            "ideal dB": show(row.ideal_db, "{:.2f}"),
            "bytes": show(row.size_bytes, "{:,}"),
            "ms": show(row.latency_ms, "{:.3f}"),
            "ratio to float32 (95 %)": show(row.ratio, "{0[0]:.3f} ({0[1]:.3f} to {0[2]:.3f})"),
            "quantized in s": show(row.seconds, "{:.1f}"),
        }
        if row.crashed:
            said = row.crashed.replace("|", "/")[:240]
            print(f"| {row.name} | crashed: {said} |" + " |" * (len(columns) - 1))
        else:
            print(f"| {row.name} | " + " | ".join(cells[name] for name in columns) + " |")
    sys.stdout.flush()


def show(value: object, form: str) -> str:
    """Formats a figure, or leaves the cell empty."""
    return "" if value is None else form.format(value)


def print_environment(options: argparse.Namespace) -> None:
    """Prints where and with what this was measured."""
    print("# 8-bit quantizers compared\n")
    print(f"- {datetime.datetime.now(datetime.UTC):%Y-%m-%d}, seed {options.seed}")
    print(f"- {describe_processor()}, {os.cpu_count()} cores, {platform.system()}")
    print(f"- Python {platform.python_version()}, " + ", ".join(versions(options)))
    print(f"- {options.rounds} interleaved rounds on one thread for the latency")
    print(f"- ideal dB over the first {options.ideal_samples} test samples")
    if options.quick:
        print("- quick: 128 calibration and at most 1,000 test samples, fewer configurations")


def versions(options: argparse.Namespace) -> list[str]:
    """Returns "name version" of each package, asked of the interpreter that runs it."""
    ours = ["onnxruntime", "onnx", "numpy", "packlight"]
    theirs = ["onnxruntime", "onnx", "numpy", "nncf", "torch"]
    found = set()
    for python, packages in ((sys.executable, ours), (options.peer_python, theirs)):
        answer = run_child(["-c", TELL_VERSIONS, *packages], python=python, limit=60)
        found |= {f"{package} {version}" for package, version in json.loads(answer).items()}
    return sorted(found)


def describe_processor() -> str:
    """Returns the processor's name and which of its vector units matter for int8."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    flags = set(fields.get("flags", "").split())
    units = [
        unit for unit in ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8") if unit in flags
    ]
    missing = "" if any("vnni" in unit for unit in units) else ", no VNNI"
    return f"{fields.get('model name', platform.machine())} ({', '.join(units)}{missing})"


def main() -> int:
    """Runs the comparison the options ask for."""
    parser = argparse.ArgumentParser(description="Compares 8-bit quantizers of ONNX models.")
    known = [case.name for case in CASES]
    parser.add_argument("--models", nargs="+", choices=known, default=known, metavar="MODEL")
    parser.add_argument("--peers", nargs="+", default=None, help="rows whose name contains this")
    parser.add_argument("--quick", action="store_true", help="few samples and configurations")
    parser.add_argument(
        "--real",
        type=Path,
        default=HERE.parent.parent / "shared" / "real",
        help="the folder of real models and data",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=300, help="of the latency measurement")
    parser.add_argument("--limit", type=float, default=900, help="seconds a child may take")
    parser.add_argument("--ideal-samples", type=int, default=2000)
    parser.add_argument("--work", type=Path, default=None, help="where temporary files go")
    parser.add_argument(
        "--peer-python", default=sys.executable, help="interpreter that has the rivals"
    )
    options = parser.parse_args()
    options.real = options.real.resolve()
    if not options.real.is_dir():
        parser.error(f"{options.real} is not a folder: name the real models with --real")
    names = list(QUICK) if options.quick else [peer.name for peer in PEERS]
    if options.peers:
        names = [peer.name for peer in PEERS if any(part in peer.name for part in options.peers)]
    print_environment(options)
    for case in CASES:
        if case.name in options.models:
            print(case.name, file=sys.stderr, flush=True)
            print_table(case, compare(case, names, options), options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
