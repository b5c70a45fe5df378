"""Channels removed from CIFAR-10 networks: what is left of the accuracy, and what it gains.

    pip install -e '.[heal]' -r benchmarks/requirements.txt
    python benchmarks/prune.py --real ../shared/real --models resnet20 --heal-minutes 20

prints Markdown tables. Nothing sees a label but the test: removal, repair and healing get up to
10,000 training pictures without theirs; all 10,000 test pictures measure the ONNX file in
onnxruntime, on one thread and interleaved for the time.

"inner" rows take the same number of channels out of every residual block's inner layer, as
torch-pruning does beside it: its MagnitudePruner (L2 norms) on the same weights in PyTorch, with
and without biases corrected to the original's mean outputs (what re-estimating batch
normalization does once it is folded). "every layer" rows take the share out of all layers, those
that the residual stream runs through too. "--prune" rows let packlight share the removal out
itself, among channels, residual branches and layers of low rank (--no-ranks: without those);
--of time takes the share out of the time that the model takes in 8 bits, by the clock. "healed"
ones are trained towards the original for so many minutes, or steps; the compressed rows are
packlight's answers for the healed file with each of --presets, for each of the sizes of --downloads
once packed, and with each of --choices in all layers (both trained so for --tune-minutes), packed.
--latency asks one command for a share of the original's time, and leaves everything to it (at most
10 % other answers). Choices are partly by the clock: --recipe repeats one that was printed.
Healed files are kept in --work, and used again. With --scores the "inner" rows alone are made, once
for each way of picking the channels (scores.py), all repaired alike.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cases import CIFAR_MEAN, CIFAR_STD
from fewbits import NETWORKS
from int8 import describe_processor
from measuring import load, open_session, ratio_interval, time_interleaved
from numpy.typing import NDArray
from peers.torch_pruning_cifar import thin_by_magnitude
from scores import thin_by_scores

import packlight
from packlight.graph.anatomy import count_macs
from packlight.graph.apply import why_not
from packlight.graph.coupling.groups import find_groups
from packlight.graph.layers import find_layers
from packlight.graph.model import Graph, Model, load_model, save_model
from packlight.graph.rewrite.simplify import simplify
from packlight.maths.intervals import paired_difference_interval
from packlight.plan.thinning import Thinned, thin
from packlight.plan.training import Training
from packlight.recipe import Recipe, read_recipe, write_recipe
from packlight.samples import Samples, Split, open_samples

HERE = Path(__file__).resolve().parent
SHARES = (0.25, 0.35, 0.5)
REPAIRED_ON = 2048
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """A network with its pictures: unlabelled ones to prune with, labelled ones to test with."""

    name: str
    model: Model
    graph: Graph
    samples: Samples
    test: Floats
    labels: NDArray[np.int64]
    work: Path

    @property
    def split(self) -> Split:
        """All training pictures to repair and heal with; a few of them for the gains."""
        count = len(self.samples)
        return Split(tuple(range(count)), tuple(range(count - 512, count)), ())


@dataclass(frozen=True)
class Row:
    """One file and what it is. packed_bytes: where it is packed for the download."""

    label: str
    path: Path
    seconds: float = 0.0
    packed_bytes: int | None = None


def main() -> int:
    """Prints a table for each network."""
    options = _options()
    print_head(options.seed)
    print(f"- {options.pictures:,} training pictures without labels, 10,000 test pictures")
    for name in options.models:
        case = _read(name, options)
        rows = [Row("original", case.model.source)]
        print(f"\n## {name}\n", flush=True)
        for make in _makers(case, options):
            try:
                rows += make()
            except packlight.errors.PacklightError as error:
                print(f"<!-- left out: {error} -->", flush=True)
        _print_table(case, rows)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=NETWORKS, default=NETWORKS[:1])
    parser.add_argument("--shares", nargs="*", type=float, default=SHARES)
    parser.add_argument("--prune", nargs="*", type=float, default=(0.5,), help="shares")
    parser.add_argument(
        "--of", choices=["macs", "weights", "time"], default="macs", help="of --prune"
    )
    parser.add_argument("--latency", nargs="*", default=(), help="budgets of one command")
    parser.add_argument("--recipe", type=Path, help="what goes, instead of choosing it")
    parser.add_argument("--heal-minutes", type=float, default=20.0, help="0: nothing is healed")
    parser.add_argument("--heal-steps", type=int, default=0, help="instead: so many steps")
    parser.add_argument("--choices", nargs="*", default=("int8", "int4", "weights-coded2.5"))
    parser.add_argument("--presets", nargs="*", default=("balanced", "smallest"))
    parser.add_argument("--downloads", nargs="*", default=(), help="budgets of the packed file")
    parser.add_argument("--tune-minutes", type=float, default=0.0, help="of training in those")
    parser.add_argument("--no-peers", dest="peers", action="store_false")
    parser.add_argument("--no-ranks", dest="ranks", action="store_false", help="no low rank")
    parser.add_argument("--scores", action="store_true", help="inner layers by score, and no more")
    parser.add_argument("--pictures", type=int, default=10_000, help="unlabelled ones")
    parser.add_argument("--real", type=Path, default=HERE.parent.parent / "shared" / "real")
    parser.add_argument("--work", type=Path, default=HERE.parent / ".bench" / "prune")
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not options.real.is_dir():
        parser.error(f"{options.real} is not a folder: name the real models with --real")
    return options


def print_head(seed: int) -> None:
    """Prints when, on what machine and with what versions this ran."""
    versions = []
    for name in ("numpy", "onnx", "onnxruntime", "packlight", "torch", "torch-pruning"):
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    print(f"- {datetime.datetime.now(datetime.UTC):%Y-%m-%d}, seed {seed}")
    print(f"- {describe_processor()}, {os.cpu_count()} cores, {platform.system()}")
    print(f"- load average when it began: {os.getloadavg()[0]:.1f}")
    print(f"- Python {platform.python_version()}, {', '.join(versions)}")


def _read(name: str, options: argparse.Namespace) -> Case:
    with np.load(options.real / "cifar10" / "cifar10.npz", allow_pickle=False) as archive:
        train, test = archive["x_train"][: options.pictures], archive["x_test"]
        labels = archive["y_test"].reshape(-1).astype(np.int64)
    train, test = (
        ((part.transpose(0, 3, 1, 2).astype(np.float32) / 255 - CIFAR_MEAN) / CIFAR_STD)
        for part in (train, test)
    )
    model = load_model(options.real / "cifar10" / f"{name}.onnx")
    graph, _ = simplify(model.ir, check=None)
    work = options.work / name
    work.mkdir(parents=True, exist_ok=True)
    samples = open_samples({"image": train}, model.inputs)
    return Case(name, model, graph, samples, test, labels, work)


def _makers(case: Case, options: argparse.Namespace) -> list[Callable[[], list[Row]]]:
    """What is to be made, each by itself: one that fails leaves the others."""
    makers: list[Callable[[], list[Row]]] = []
    if options.scores:
        return [lambda share=share: _scored(case, share, options.seed) for share in options.shares]
    for share in options.shares:
        if options.peers:
            makers.append(lambda share=share: _peer(case, share))
        makers.append(lambda share=share: _inner(case, share, options.seed))
    every = options.shares[:2]
    makers += [lambda share=share: _every_layer(case, share, options.seed) for share in every]
    makers += [lambda share=share: _planned(case, share, options) for share in options.prune]
    makers += [lambda most=most: _one_command(case, most, options) for most in options.latency]
    return makers


def _inner(case: Case, share: float, seed: int) -> list[Row]:
    """The same share out of every block's inner layer, repaired in closed form."""
    keep = tuple(_inner_counts(case, share).items())
    return [_thinned(case, f"inner {share:.0%}, packlight, closed form", seed, channels=keep)]


def _inner_counts(case: Case, share: float) -> dict[str, int]:
    return {
        group.name: group.size - round(share * group.size)
        for group in find_groups(case.graph)
        if not group.pinned and len(group.makers) == len(group.readers) == 1
    }


def _scored(case: Case, share: float, seed: int) -> list[Row]:
    """As `_inner`, the channels picked by each of the usual scores, repaired alike."""
    counts = _inner_counts(case, share)
    rows = []
    for score, graph, seconds in thin_by_scores(
        case.graph, case.samples, case.split, case.model.inputs, counts, seed=seed
    ):
        path = case.work / f"score-{score.replace(' ', '-')}-{share:g}.onnx"
        save_model(graph, path, durable=False)
        rows.append(Row(f"inner {share:.0%}, by {score}", path, seconds))
    return rows


def _every_layer(case: Case, share: float, seed: int) -> list[Row]:
    keep = [
        (group.name, group.size - round(share * group.size))
        for group in find_groups(case.graph)
        if not group.pinned
    ]
    return [_thinned(case, f"every layer {share:.0%}, packlight, closed form", seed, channels=keep)]


def _thinned(case: Case, label: str, seed: int, **how: Any) -> Row:
    return _thin(case, label, seed, **how)[0]


def _thin(case: Case, label: str, seed: int, **how: Any) -> tuple[Row, Thinned]:
    began = time.perf_counter()
    found = thin(case.graph, case.samples, case.split, case.model.inputs, seed=seed, **how)
    path = case.work / f"{label.replace(' ', '-').replace('%', '').replace(',', '')}.onnx"
    save_model(found.graph, path, durable=False)
    return Row(label, path, time.perf_counter() - began), found


def _planned(case: Case, share: float, options: argparse.Namespace) -> list[Row]:
    """Packlight's own choice of what goes: repaired, healed, in 8 bits, and packed."""
    name = f"--prune {share:.0%}" + (f" of the {options.of}" if options.of != "macs" else "")
    rows = []
    layers = find_layers(case.graph)
    static = tuple((one.name, "int8") for one in layers if not why_not(one, "int8"))
    name += "" if options.ranks else ", no ranks"
    how: dict[str, Any] = {
        "share": share,
        "of": options.of,
        "whole": [] if options.ranks else [layer.name for layer in layers],
        "computes": Recipe(layers=static) if options.of == "time" else None,
    }
    if options.recipe is not None:
        said, name = read_recipe(options.recipe), f"as in {options.recipe.stem}"
        how = {"channels": said.channels, "removed": said.removed, "ranks": said.ranks}
    row, chosen = _thin(case, f"{name}, closed form", options.seed, **how)
    rows.append(row)
    print(f"<!-- {name}: {write_recipe(chosen.note_in(Recipe()))} -->", flush=True)
    if not options.heal_minutes:
        return rows
    training, long = (
        Training(heal_minutes=options.heal_minutes),
        f"{options.heal_minutes:g} minutes",
    )
    if options.heal_steps:
        training, long = Training(heal_steps=options.heal_steps), f"{options.heal_steps} steps"
    words = ("healed", options.of, name, long, str(options.seed))
    stem = "-".join(words).replace(" ", "-").replace("%", "").replace(",", "")
    healed = case.work / f"{stem}.onnx"
    seconds = 0.0
    if not healed.exists():
        label = f"{name}, healed {long}"
        row, found = _thin(
            case,
            label,
            options.seed,
            channels=chosen.channels,
            removed=chosen.removed,
            ranks=chosen.ranks,
            training=training,
        )
        seconds = row.seconds
        save_model(found.graph, healed)
        print(f"<!-- {name}: {found.evidence} -->", flush=True)
    rows.append(Row(f"{name}, healed", healed, seconds))
    return rows + _compress(case, healed, name, options)


def _one_command(case: Case, most: str, options: argparse.Namespace) -> list[Row]:
    """What `packlight compress` makes of the original for a latency, trained as long."""
    began = time.perf_counter()
    result = packlight.compress(
        case.model.source,
        data=case.samples.read(range(len(case.samples))),
        max_latency=most,
        max_drop="10%",
        heal_minutes=options.heal_minutes,
        seed=options.seed,
    )
    assert isinstance(result, packlight.Result)
    folder = case.work / f"latency-{most}".replace("%", "")
    result.save(folder, force=True)
    packed = packlight.pack(folder, case.work / f"{folder.name}.plz", force=True)
    seconds = time.perf_counter() - began
    print(f"<!-- {result.evidence.notes} {write_recipe(result.recipe)} -->", flush=True)
    size = packed.path.stat().st_size
    return [Row(f"--max-latency {most}", folder / "model.onnx", seconds, size)]


def _compress(case: Case, healed: Path, name: str, options: argparse.Namespace) -> list[Row]:
    """The healed file in fewer bits: by the presets, and with one choice for all layers."""
    rows = []
    asked: list[tuple[str, dict[str, Any]]] = [
        (preset, {"preset": preset, "max_drop": "0.5%"}) for preset in options.presets
    ]
    minutes = {"heal_minutes": options.tune_minutes}
    asked += [
        (f"at most {most} packed", {"preset": "smallest", "max_download": most, **minutes})
        for most in options.downloads
    ]
    layers = find_layers(simplify(load_model(healed).ir, check=None)[0])
    for choice in options.choices:
        choices = tuple((layer.name, choice) for layer in layers)
        recipe = case.work / f"{choice}.yaml"
        recipe.write_text(write_recipe(Recipe(layers=choices, sequential=True, seed=options.seed)))
        asked.append((choice, {"recipe": recipe, **minutes}))
    for label, how in asked:
        began = time.perf_counter()
        data = case.samples.read(range(len(case.samples)))
        result = packlight.compress(healed, data=data, seed=options.seed, **how)
        assert isinstance(result, packlight.Result)
        folder = case.work / f"{healed.stem}-{label.replace(' ', '-')}"
        result.save(folder, force=True)
        packed = packlight.pack(folder, case.work / f"{folder.name}.plz", force=True)
        seconds = time.perf_counter() - began
        size = packed.path.stat().st_size
        rows.append(Row(f"{name}, healed, {label}", folder / "model.onnx", seconds, size))
    return rows


def _peer(case: Case, share: float) -> list[Row]:
    pictures = case.samples.read(range(min(REPAIRED_ON, len(case.samples))))["image"]
    made = thin_by_magnitude(case.graph, pictures, share, case.work)
    return [Row(f"inner {share:.0%}, {label}", path, seconds) for label, path, seconds in made]


def _print_table(case: Case, rows: Sequence[Row]) -> None:
    wanted = _run(case.model.source, case.test)
    times = _time([row.path for row in rows], case.test[:64], 300)
    right = wanted.argmax(1) == case.labels
    total = _macs(case.model.source)
    before = case.model.source.stat().st_size
    print(
        "| | top-1 | drop in points (95 %) | agreement | MACs left | bytes | smaller | packed "
        "| packed smaller | ms | faster (95 %) | s |\n" + "|---" * 12 + "|"
    )
    for number, row in enumerate(rows):
        found = _run(row.path, case.test)
        hits = found.argmax(1) == case.labels
        drop, low, high = _drop(right, hits)
        ratio, least, most = ratio_interval(times[number], times[0])
        size = row.path.stat().st_size
        cells = [
            row.label,
            f"{hits.mean():.2%}",
            f"{drop:.2f} ({low:.2f} to {high:.2f})",
            f"{(found.argmax(1) == wanted.argmax(1)).mean():.2%}",
            f"{_macs(row.path) / total:.3f}" if _macs(row.path) else "",
            f"{size:,}",
            f"{before / size:.1f}x",
            f"{row.packed_bytes:,}" if row.packed_bytes else "",
            f"{before / row.packed_bytes:.1f}x" if row.packed_bytes else "",
            f"{np.median(times[number]):.3f}",
            f"{1 / ratio:.2f}x ({1 / most:.2f} to {1 / least:.2f})",
            f"{row.seconds:.0f}",
        ]
        print("| " + " | ".join(cells) + " |", flush=True)


def _drop(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> tuple[float, float, float]:
    lost, won = int((before & ~after).sum()), int((~before & after).sum())
    low, high = paired_difference_interval(lost, won, len(before))
    return 100 * (lost - won) / len(before), 100 * low, 100 * high


def _macs(path: Path) -> int:
    graph, _ = simplify(load_model(path).ir, check=None)
    if any(node.op_type == "QuantizeLinear" for node in graph.graph):
        return 0  # integer layers are not counted
    return sum(count or 0 for count in count_macs(graph).values())


def _run(path: Path, pictures: Floats) -> Floats:
    session = open_session(path, threads=os.cpu_count() or 1)
    name = session.get_inputs()[0].name
    parts = [
        session.run(None, {name: pictures[start : start + 250]})[0]
        for start in range(0, len(pictures), 250)
    ]
    return np.concatenate(parts)


def _time(paths: Sequence[Path], pictures: Floats, rounds: int) -> NDArray[np.float64]:
    with tempfile.TemporaryDirectory() as folder:
        samples, out = Path(folder) / "in.npz", Path(folder) / "out.npz"
        np.savez(samples, image=pictures)
        time_interleaved(samples, out, rounds, list(paths))
        found: NDArray[np.float64] = load(out)["times"]
    return found


if __name__ == "__main__":
    sys.exit(main())
