"""Channels removed from a detector, a segmenter, a network for sound and a Transformer.

    pip install -e '.[heal]' -r benchmarks/requirements.txt
    python benchmarks/prune_kinds.py --real ../shared/real --heal-minutes 3

prints a Markdown table for each. packlight is called as a user calls it (`packlight.compress`
with `--prune`, and with `--heal-minutes`); its lossless preset leaves the rest in float, so
that the figures are those of pruning alone. "Simplified" is the same without pruning: what is
faster beyond it is owed to the channels. With --eight-bits the last file is compressed further,
by the default preset.

Samples to prune and heal with have no labels and are not those of the test. The figures are
read off the ONNX files in onnxruntime, on one thread; times are interleaved.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cases import Arrays
from kinds import KINDS, Kind, Outputs, answer_each
from measuring import (
    explained_variance,
    load,
    ratio_interval,
    signal_to_noise_db,
    time_interleaved,
)
from numpy.typing import NDArray
from prune import print_head

import packlight
from packlight.graph.model import load_model, save_model
from packlight.graph.rewrite.simplify import simplify
from packlight.plan.thinning import parse_share

HERE = Path(__file__).resolve().parent
LEAST_REMOVED = 0.2


@dataclass(frozen=True)
class Row:
    """One file, what it is and how long it took to make. macs: the share that is left."""

    label: str
    path: Path
    macs: float = 1.0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


def main() -> int:
    """Prints a table for each network."""
    options = _options()
    print_head(options.seed)
    for kind in KINDS:
        if kind.name not in options.models:
            continue
        work = options.work / kind.name
        work.mkdir(parents=True, exist_ok=True)
        path = kind.find(options.real, work)
        first, second = (max(10, round(options.samples * count)) for count in kind.counts)
        data = kind.read(options.real, path, first, second)
        print(f"\n## {kind.name}: {kind.what}\n\n{kind.source}; {first} and {second}.\n")
        rows = _make(kind, path, data.calibration, work, options)
        _print_table(kind, rows, data.test, options.rounds)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = [kind.name for kind in KINDS]
    parser.add_argument("--models", nargs="+", choices=names, default=names)
    parser.add_argument("--prune", default="25%", help="share of the multiply-accumulates")
    parser.add_argument("--heal-minutes", type=float, default=3.0, help="0: nothing is healed")
    parser.add_argument("--eight-bits", action="store_true")
    parser.add_argument("--samples", type=float, default=1.0, help="times as many samples")
    parser.add_argument("--again", action="store_true", help="measure what lies in --work again")
    parser.add_argument("--no-peers", dest="peers", action="store_false")
    parser.add_argument("--real", type=Path, default=HERE.parent.parent / "shared" / "real")
    parser.add_argument("--work", type=Path, default=HERE.parent / ".bench" / "prune_kinds")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not options.real.is_dir():
        parser.error(f"{options.real} is not a folder: name the real models with --real")
    return options


def _make(
    kind: Kind, path: Path, samples: Arrays, work: Path, options: argparse.Namespace
) -> list[Row]:
    share, minutes = options.prune, options.heal_minutes
    rows = [Row("original", path)]

    def compressed(label: str, source: Path, **how: object) -> Row:
        name = "".join(c if c.isalnum() else "-" for c in label)
        folder = work / name
        if not (options.again and (folder / "report.json").exists()):
            result = packlight.compress(
                source, data=samples, seed=options.seed, progress=_Stages(), **how
            )
            assert isinstance(result, packlight.Result)
            result.save(folder, force=True)
        return _read_row(label, folder)

    # A wide budget: how far the outputs move is the question here, and is measured below.
    alone = {"preset": "lossless", "max_drop": "99%"}
    graph, _ = simplify(load_model(path).ir, check=None)
    save_model(graph, work / "simplified.onnx", durable=False)
    rows.append(Row("simplified", work / "simplified.onnx"))
    rows.append(compressed(f"--prune {share}, closed form", path, prune=share, **alone))
    if minutes:
        label = f"--prune {share}, healed {minutes:g} minutes"
        rows.append(compressed(label, path, prune=share, heal_minutes=minutes, **alone))
    if options.peers and kind.convolutional:
        from peers.torch_pruning_peer import prune

        began = time.perf_counter()
        left = prune(path, parse_share(share), work / "torch-pruning.onnx")
        seconds = time.perf_counter() - began
        rows.insert(2, Row("torch-pruning", work / "torch-pruning.onnx", left, seconds))
    if options.eight_bits:
        rows.append(compressed(f"{rows[-1].label}, 8 bits", rows[-1].path))
    return rows


def _read_row(label: str, folder: Path) -> Row:
    """What the report in an output folder of packlight says."""
    report = json.loads((folder / "report.json").read_text())
    thinning = report["thinning"]
    if thinning is None:
        return Row(label, folder / "model.onnx", float("nan"), report["seconds"])
    left = thinning["macs_left"] / thinning["macs_original"]
    notes = list(thinning["notes"])
    if thinning["loss_before"] is not None:
        before, after = (thinning[f"loss_{when}"] for when in ("before", "after"))
        steps = thinning["heal_steps"]
        notes.append(f"loss {before:.2e} before healing, {after:.2e} after {steps} steps")
    return Row(label, folder / "model.onnx", left, report["seconds"], tuple(notes))


class _Stages:
    """Progress: says on stderr what is going on."""

    def __init__(self) -> None:
        self.began = time.perf_counter()

    def stage(self, name: str, total: int | None = None) -> None:
        print(f"{time.perf_counter() - self.began:6.0f} s {name} {total or ''}", file=sys.stderr)

    def step(self, detail: str = "", advance: int = 1) -> None:
        """Stages are enough."""


def _print_table(kind: Kind, rows: Sequence[Row], test: Arrays, rounds: int) -> None:
    plain = kind.answers(rows[0].path, test)
    direct = _first_outputs(kind, rows[0].path, test)
    figures = [kind.judge(plain, kind.answers(row.path, test), test) for row in rows]
    times = _time([row.path for row in rows], test, rounds)
    size = rows[0].path.stat().st_size
    head = ["", "MACs left", *figures[0], "explained variance", "SNR dB", "bytes", "smaller"]
    head += ["ms", "faster (95 %)", "faster than simplified (95 %)", "s"]
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for number, row in enumerate(rows):
        outputs = _first_outputs(kind, row.path, test)
        cells = [
            row.label,
            "" if np.isnan(row.macs) else f"{row.macs:.3f}",
            *figures[number].values(),
            f"{explained_variance(direct, outputs):.4f}",
            f"{signal_to_noise_db(direct, outputs):.1f}",
            f"{row.path.stat().st_size:,}",
            f"{size / row.path.stat().st_size:.2f}x",
            f"{np.median(times[number]):.3f}",
            _faster(times[number], times[0]),
            _faster(times[number], times[1]),
            f"{row.seconds:.0f}",
        ]
        print("| " + " | ".join(cells) + " |", flush=True)
    for row in rows:
        for note in row.notes:
            print(f"\n{row.label}: {note}.")


def _first_outputs(kind: Kind, path: Path, test: Arrays) -> Outputs:
    """What a file gives on the test samples, states of the original included."""
    return answer_each(path, test)


def _faster(times: NDArray[np.float64], reference: NDArray[np.float64]) -> str:
    ratio, least, most = ratio_interval(times, reference)
    return f"{1 / ratio:.2f}x ({1 / most:.2f} to {1 / least:.2f})"


def _time(paths: Sequence[Path], test: Arrays, rounds: int) -> NDArray[np.float64]:
    with tempfile.TemporaryDirectory() as folder:
        samples, out = Path(folder) / "in.npz", Path(folder) / "out.npz"
        np.savez(samples, **{name: array[:1] for name, array in test.items()})
        time_interleaved(samples, out, rounds, list(paths))
        found: NDArray[np.float64] = load(out)["times"]
    return found


if __name__ == "__main__":
    sys.exit(main())
