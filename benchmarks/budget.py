"""Counts how often the promise is kept: the drop on fresh samples after "met" and "proven".

    pip install -e . -r benchmarks/requirements.txt
    python benchmarks/budget.py --real ../shared/real --minutes 60

For every model, budget and seed a part of a pool of samples is drawn (`pools.py`), and
`packlight.compress(..., max_drop=budget)` gets that part alone. What it calls met and proven is
then measured with `packlight.compare` on the rest of the pool, which it has never seen. A run is
kept when the drop there, as it was measured, is within the budget; "surely over" counts
runs whose whole 95 % interval of it lies above.

Each run is a process of its own and a line of runs.jsonl in the folder --work: started again,
this goes on with the runs that are missing. Runs of another state of packlight's source do not
count. Tables are Markdown, with Wilson intervals of the shares.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from feeding import count_samples
from int8 import ChildFailed, describe_processor, run_child
from numpy.typing import NDArray
from pools import POOLS, Pool

import packlight
from packlight.maths.intervals import wilson_interval

HERE = Path(__file__).resolve().parent
BUDGETS = (0.005, 0.01, 0.02)
Run = dict[str, Any]


def find_model(pool: Pool, real: Path, nets: Path) -> Path:
    """Returns where a model's file lies, in the folder of real models or of trained ones."""
    return (real if "/" in pool.path else nets) / pool.path


def draw(job: Run, between: tuple[int, int], count: int) -> tuple[NDArray, NDArray]:
    """Returns indices of the samples that packlight gets, and of the fresh ones."""
    # Another draw for every run: none tells of what another was lucky with.
    words = zlib.crc32(f"{job['model']} {job['budget']}".encode())
    generator = np.random.default_rng((job["seed"], words))
    size = int(generator.integers(between[0], between[1] + 1))
    order = generator.permutation(count)
    return np.sort(order[:size]), np.sort(order[size:])


def run_once(job: Run) -> Run:
    """Compresses a model on one draw, and measures what was promised on the fresh samples."""
    (pool,) = (pool for pool in POOLS if pool.name == job["model"])
    model = Path(job["file"])
    arrays, labels = pool.read(Path(job["real"]), model)
    chosen, fresh = draw(job, pool.draw, count_samples(arrays))

    def part(indices: NDArray) -> dict[str, NDArray]:
        found = {name: a[indices] if a.ndim else a for name, a in arrays.items()}
        return found if labels is None else {**found, "labels": labels[indices]}

    began = time.perf_counter()
    result = packlight.compress(
        model, data=part(chosen), max_drop=job["budget"], seed=job["seed"], target="laptop"
    )
    seconds = time.perf_counter() - began
    evidence = result.evidence
    run: Run = {
        "samples": len(chosen),
        "fresh": len(fresh),
        "verdict": evidence.verdict,
        "seconds": round(seconds, 1),
        "size_ratio": evidence.size_bytes.original / evidence.size_bytes.compressed,
        "latency_ratio": evidence.latency_ms.ratio,
        "choices": dict(Counter(layer.choice for layer in evidence.layers)),
    }
    if evidence.metric is not None:
        run |= {
            "metric": evidence.metric.name,
            "proven": evidence.metric.proven,
            "drop": evidence.metric.drop,
            "interval": evidence.metric.drop_interval_95,
        }
    if evidence.verdict == "met":
        with tempfile.TemporaryDirectory() as folder:
            saved = result.save(Path(folder) / "packed") / "model.onnx"
            metric = packlight.compare(model, saved, data=part(fresh)).figures.metric
        assert metric is not None
        run |= {"fresh_drop": metric.drop, "fresh_interval": metric.drop_interval_95}
    return run


def hash_source() -> str:
    """Returns what tells one state of packlight's source from another."""
    digest = hashlib.sha256()
    (root,) = packlight.__path__
    for file in sorted(Path(root).rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def read_runs(log: Path) -> list[Run]:
    """Returns the runs of a log; a line that was cut off is left out."""
    runs = []
    for line in log.read_text().splitlines() if log.exists() else []:
        try:
            runs.append(json.loads(line))
        except json.JSONDecodeError:
            print(f"left out: {line[:60]}", file=sys.stderr)
    return runs


def jobs(options: argparse.Namespace) -> Iterator[Run]:
    """Yields what is to be run: every model at every budget before the next seed."""
    for seed in range(options.seed, options.seed + options.seeds):
        for pool in options.pools:
            for budget in options.budgets:
                file = find_model(pool, options.real, options.nets)
                yield {
                    "model": pool.name,
                    "budget": budget,
                    "seed": seed,
                    "real": str(options.real),
                    "file": str(file),
                }


def key(run: Run) -> tuple[str, float, int]:
    """Returns what tells one run from another."""
    return run["model"], run["budget"], run["seed"]


def run_missing(options: argparse.Namespace, source: str, log: Path) -> int:
    """Runs what the log lacks until the time is over; returns how many are still missing."""
    known = (run for run in read_runs(log) if options.any_source or run["source"] == source)
    done = {key(run) for run in known}
    until = time.monotonic() + 60 * options.minutes
    missing = 0
    for job in jobs(options):
        if key(job) in done:
            continue
        if time.monotonic() > until:
            missing += 1
            continue
        print(f"  {job['model']} {job['budget']:.1%} seed {job['seed']}", file=sys.stderr)
        try:
            said = run_child(
                ["budget.py", "--run", json.dumps(job)], python=sys.executable, limit=options.limit
            )
            run = json.loads(said)
        except ChildFailed as failure:
            run = {"failed": str(failure)[:300]}
        named = {name: job[name] for name in ("model", "budget", "seed")}
        with log.open("a") as lines:
            lines.write(json.dumps({"source": source, **named, **run}) + "\n")
            lines.flush()
            os.fsync(lines.fileno())
    return missing


def kept(run: Run) -> bool:
    """Whether the drop on fresh samples is within the budget; one that is no number is not."""
    return bool(run["fresh_drop"] <= run["budget"])


def summarize(name: str, runs: list[Run]) -> str:
    """Returns one row of the table."""
    verdicts = Counter("failed" if "failed" in run else run["verdict"] for run in runs)
    met = [run for run in runs if run.get("verdict") == "met"]
    proven = [run for run in met if run["proven"]]
    unproven = [run for run in met if not run["proven"]]
    good = sum(map(kept, proven))
    share = "-"
    if proven:
        low, high = wilson_interval(good, len(proven))
        share = f"{good / len(proven):.1%} ({low:.1%} to {high:.1%})"
    over = sum(run["fresh_interval"][0] > run["budget"] for run in proven)
    worst = max((run["fresh_drop"] - run["budget"] for run in proven), default=None)
    cells = [f"{len(runs)}", f"{len(proven)}", f"{good}", share, f"{over}"]
    cells += ["-" if worst is None else f"{100 * worst:+.2f}"]
    cells += [f"{sum(map(kept, unproven))} of {len(unproven)}"]
    cells += [f"{verdicts[each]}" for each in ("best-effort", "not-worth-it", "failed")]
    ratios = [run["size_ratio"] for run in met]
    cells += [f"{np.median(ratios):.1f}" if ratios else "-"]
    seconds = [run["seconds"] for run in runs if "seconds" in run]
    cells += [f"{np.median(seconds):.0f}" if seconds else "-"]
    return f"| {name} | " + " | ".join(cells) + " |"


COLUMNS = (
    *("runs", "met and proven", "kept on fresh samples", "share (95 %)", "surely over"),
    *("worst fresh drop less budget, points", "met, not proven: kept", "best-effort"),
    *("not-worth-it", "failed", "times smaller (median)", "s (median)"),
)


def print_tables(runs: list[Run], pools: list[Pool]) -> None:
    """Prints the table by model, then by budget and in all."""
    print("\n| | " + " | ".join(COLUMNS) + " |\n" + "|---" * (len(COLUMNS) + 1) + "|")
    for pool in pools:
        print(summarize(pool.name, [run for run in runs if run["model"] == pool.name]))
    for budget in sorted({run["budget"] for run in runs}):
        chosen = [run for run in runs if run["budget"] == budget]
        print(summarize(f"all at {budget:.1%}", chosen))
    print(summarize("**all**", runs))
    for failure, count in Counter(run["failed"] for run in runs if "failed" in run).items():
        print(f"- failed {count} times: {failure}")


def print_head(options: argparse.Namespace, source: str, others: int, missing: int) -> None:
    """Prints where and with what this was measured, and from which samples."""
    print("# Budgets kept\n")
    print(f"- {datetime.datetime.now(datetime.UTC):%Y-%m-%d}, packlight source {source}")
    print(f"- {describe_processor()}, {os.cpu_count()} cores, {platform.system()}")
    print(f"- seeds {options.seed} to {options.seed + options.seeds - 1}")
    if missing:
        print(f"- {missing} runs are missing still")
    if others:
        print(f"- {others} runs of another state of the source are left out")
    for pool in options.pools:
        low, high = pool.draw
        print(f"- {pool.name}: {low:,} to {high:,} drawn of {pool.source}")


def main() -> int:
    """Runs what is missing, and prints what is known."""
    if sys.argv[1:2] == ["--run"]:
        stdout, sys.stdout = sys.stdout, sys.stderr
        stdout.write(json.dumps(run_once(json.loads(sys.argv[2]))) + "\n")
        return 0
    parser = argparse.ArgumentParser(description="Checks accuracy budgets on fresh samples.")
    known = [pool.name for pool in POOLS]
    parser.add_argument("--models", nargs="+", choices=known, default=known, metavar="MODEL")
    parser.add_argument("--budgets", nargs="+", type=float, default=BUDGETS, help="0.01 is 1 %%")
    parser.add_argument("--seeds", type=int, default=5, help="draws of each model and budget")
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--minutes", type=float, default=60.0, help="no run begins after that")
    parser.add_argument("--limit", type=float, default=1800, help="seconds that a run may take")
    parser.add_argument("--any-source", action="store_true", help="count runs of other states too")
    parser.add_argument(
        "--real",
        type=Path,
        default=HERE.parent.parent / "shared" / "real",
        help="the folder of real models and data",
    )
    parser.add_argument(
        "--nets",
        type=Path,
        default=HERE.parent / ".bench" / "size",
        help="where benchmarks/size.py keeps the networks that it trains",
    )
    parser.add_argument(
        "--work", type=Path, default=HERE.parent / ".bench" / "budget", help="where runs.jsonl lies"
    )
    options = parser.parse_args()
    options.real, options.nets = options.real.resolve(), options.nets.resolve()
    if not options.real.is_dir():
        parser.error(f"{options.real} is not a folder: name the real models with --real")
    options.pools = []
    for pool in POOLS:
        if pool.name in options.models:
            if find_model(pool, options.real, options.nets).is_file():
                options.pools.append(pool)
            else:
                lacking = find_model(pool, options.real, options.nets)
                print(f"{pool.name} is left out: there is no {lacking}", file=sys.stderr)
    options.work.mkdir(parents=True, exist_ok=True)
    log, source = options.work / "runs.jsonl", hash_source()
    missing = run_missing(options, source, log)
    wanted = {key(job) for job in jobs(options)}
    runs = [run for run in read_runs(log) if key(run) in wanted]
    counted = [run for run in runs if options.any_source or run["source"] == source]
    counted = list({key(run): run for run in counted}.values())
    print_head(options, source, len(runs) - len(counted), missing)
    print_tables(counted, options.pools)
    return 0


if __name__ == "__main__":
    sys.exit(main())
