"""The public functions: compress, inspect, compare, load. The story of the house, on one page.

source -> load -> prepare -> simplify -> calibrate -> search -> measure -> Evidence -> save
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType

from packlight.devices.story import with_device_file, write_for_device
from packlight.errors import WrongUsage
from packlight.graph.anatomy import Anatomy, describe
from packlight.graph.layers import find_layers
from packlight.graph.model import load_model as load
from packlight.graph.model import save_model
from packlight.graph.torch.enter import to_torch
from packlight.language.known import is_language_model
from packlight.measure.evidence import EXIT_STATUS, Budget, Evidence
from packlight.measure.quality import Metric, find_metric
from packlight.plan.account import state_evidence
from packlight.plan.answer import Question, find_answer, tune_answer
from packlight.plan.budget import check_budget, parse_drop, parse_size
from packlight.plan.candidates import describe_targets
from packlight.plan.forecast import Forecast, forecast
from packlight.plan.goal import Goal, find_goal
from packlight.plan.judge import Figures, measure_figures
from packlight.plan.prepare import bring_in, common_inputs, prepare_samples, simplify_checked
from packlight.plan.thinning import parse_share
from packlight.plan.training import NO_TRAINING, Training, plan_training
from packlight.plan.trials import Workbench
from packlight.plan.tried import Tried
from packlight.plan.workers import parse_workers
from packlight.progress import SILENT, Progress
from packlight.proof import Proof, Verification, make_proof, verify
from packlight.recipe import Recipe, parse_choice, read_recipe, write_recipe
from packlight.report import evidence_table, evidence_to_json, write_html, write_json
from packlight.report.comparison import comparison_table, comparison_to_json
from packlight.report.folder import write_folder
from packlight.report.snippet import how_to_run
from packlight.report.table import show_evidence
from packlight.runtime import profile_operators
from packlight.samples import feeds_of
from packlight.scratch import Scratch
from packlight.targets import TARGETS, Target, find_target
from packlight.transport import pack, unpack

if TYPE_CHECKING:
    from packlight.language.forecast import LanguageForecast
    from packlight.language.result import LanguageResult
    from packlight.llm.anatomy import LanguageAnatomy

__all__ = [
    "Comparison",
    "Forecast",
    "Result",
    "Verification",
    "compare",
    "compress",
    "inspect",
    "load",
    "pack",
    "targets",
    "to_torch",
    "unpack",
    "verify",
]

MOST_PACKED = 32 << 20
"""Larger files are not packed unless that is asked for: it would take minutes."""


@dataclass(frozen=True)
class Result:
    """A compressed model with the evidence for it; `print` shows the table."""

    evidence: Evidence
    recipe: Recipe
    model: Path
    _files: tuple[Path, ...] = field(repr=False)
    _inputs: tuple[Path, ...] = field(repr=False)
    _proof: Proof = field(repr=False)
    _keep: Any = field(repr=False, compare=False, default=None)
    _training: Training = field(repr=False, compare=False, default=NO_TRAINING)

    @property
    def verdict(self) -> str:
        """met, best-effort or not-worth-it."""
        return self.evidence.verdict

    @property
    def exit_status(self) -> int:
        """0 met, 3 best-effort, 4 not-worth-it."""
        return EXIT_STATUS[self.evidence.verdict]

    def save(self, out: str | Path, *, force: bool = False) -> Path:
        """Write model, recipe, report, and what `verify` needs into the folder `out`.

        It appears whole or not at all; force: replace what is there. Then the checkpoints of
        training are removed.
        Raises UnusableOutput where it exists or cannot be written.
        """
        texts = {
            "recipe.yaml": write_recipe(self.recipe),
            "report.json": write_json(self.evidence),
            "report.html": write_html(self.evidence, how_to_run=how_to_run(self.evidence)),
            **self._proof.texts,
        }
        folder = write_folder(
            Path(out),
            files=(*self._files, *self._proof.files),
            texts=texts,
            seal=lambda made: self._proof.seal(made, self.model.name, self.to_json()),
            force=force,
            inputs=self._inputs,
        )
        self._training.clear()
        return folder

    def to_json(self) -> dict[str, Any]:
        """The evidence as plain values: what `report.json` holds."""
        return evidence_to_json(self.evidence)

    def __str__(self) -> str:
        return evidence_table(self.evidence)

    def __rich__(self) -> RenderableType:
        return show_evidence(self.evidence)

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(str(self))}</pre>"


@dataclass(frozen=True)
class Comparison:
    """Two files side by side; `print` shows the table."""

    first: Path
    second: Path
    figures: Figures
    samples: str

    def evidence_json(self) -> dict[str, Any]:
        """The figures as plain values."""
        return comparison_to_json(self.first, self.second, asdict(self.figures), self.samples)

    def __str__(self) -> str:
        return comparison_table(self.first, self.second, asdict(self.figures), self.samples)


def compress(
    model: object,
    *,
    data: object = None,
    example_inputs: object = None,
    target: str = "laptop",
    max_drop: str | float | None = None,
    max_size: str | float | None = None,
    max_latency: str | float | None = None,
    max_download: str | float | None = None,
    bits: str | float | None = None,
    scheme: str | None = None,
    preset: str = "balanced",
    recipe: str | Path | Recipe | None = None,
    pin: Mapping[str, str] | None = None,
    forbid: Sequence[str] = (),
    prune: str | float | None = None,
    heal_minutes: float = 0.0,
    checkpoints: str | Path | None = None,
    metric: str | Metric | None = None,
    preprocess: str | None = None,
    workers: int | str = 1,
    golden: bool = True,
    seed: int = 0,
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> Result | Forecast | LanguageResult | LanguageForecast:
    """Make a model smaller and faster for a target, and measure what it still does.

    model: a path to an .onnx or .pt2 file, or a PyTorch module, whose example_inputs are a tensor
        or a tuple of them; or a language model, a Hugging Face folder or a .gguf file: its data
        is a text, its budget bits (a weight), max_size or max_drop (of the agreement on the most
        probable token), its target "llama.cpp", "ollama", "onnxruntime", or "vllm", for which a
        scheme ("w4a16", "fp8", ..) says it all.
    data: samples, as `packlight.samples.open_samples` takes them; None: made up, so that
        accuracy cannot be judged. max_drop: "1%" or 0.01, absolute, of the metric (the default
        where no budget is named). max_size: "5MB" or "25%". max_latency: "10ms" or "40%".
        max_download: likewise, of the packed file (see `pack`).
    preset: what is wished for most under the budget: balanced, fastest, smallest, lossless.
    recipe: do this, with its target and seed, instead of searching; with pins it is a wish for
        the search. pin: {layer: choice} and forbid: choices, which the search keeps to.
    prune: save this share of the multiply-accumulates ("30%" or 0.3) by channels, branches and
        ranks that are missed least, and fit the rest to the original's outputs; "auto": what the
        drop allows; None: what the budget needs beyond fewer bits; 0: nothing. Of a language model
        this share of its blocks goes, and nothing without being asked for.
    heal_minutes: train towards the original for so long, without labels: the chosen file with its
        rounding in the loop, and before it, for two thirds of the time, what is left after
        pruning; needs PyTorch. checkpoints: a folder in which training keeps where
        it stands, so that the same call goes on after an interruption; removed by `Result.save`.
    metric: a name or a function of (outputs, labels). workers: processes for the search, or a
        Ray cluster ("ray://host:port"). golden: put a few held-out samples into the output
        folder, so that `verify` can run them elsewhere. dry_run: only say what would happen.
    Raises PacklightError with a sentence for the user.
    """
    begun = time.monotonic()
    kept = None if checkpoints is None else Path(checkpoints)
    if is_language_model(model):
        no_use = {
            "--max-latency": max_latency is not None,
            "--max-download": max_download is not None,
            "--preset": preset != "balanced",
            "--forbid": bool(forbid),
            "--heal-minutes": heal_minutes != 0,
            "--metric": metric is not None,
            "--preprocess": preprocess is not None,
            "--no-golden": not golden,
        }
        _refuse(no_use, "a language model")
        from packlight.language.enter import enter  # what it needs, other models do without

        return enter(
            model,
            data=data,
            target=target,
            bits=bits,
            max_size=max_size,
            max_drop=max_drop,
            scheme=scheme,
            prune=prune,
            recipe=None if recipe is None else _path_of(recipe),
            pins=pin or {},
            scratch=kept,
            seed=seed,
            workers=workers,
            dry_run=dry_run,
            progress=progress,
        )
    no_use = {"--bits": bits is not None, "--scheme": scheme is not None}
    _refuse(no_use, "a model that is no language model")
    found_metric = find_metric(metric) if isinstance(metric, str) else metric
    given = _recipe(recipe)
    if given is not None:
        target, seed = given.target, given.seed
    share = None if prune is None else parse_share(prune)
    training = plan_training(heal_minutes, prunes=bool(share), given=given, folder=kept)
    given = given and replace(given, tune_steps=0)  # that is training's, from now on
    goal, wish = find_target(target), find_goal(preset)
    of_one = not callable(found_metric)
    drop = None if max_drop is None else parse_drop(max_drop, share=of_one)
    limited = any(one is not None for one in (max_size, max_latency, max_download))
    if max_drop is None and not limited and of_one:
        drop = wish.drop
    check_budget(max_size, max_latency, max_download)
    workers = parse_workers(workers) if isinstance(workers, str) else workers
    if share and given is not None and not (given.searches or pin or forbid):
        raise WrongUsage(
            "--prune and a recipe that says all contradict each other: edit `channels:` in the "
            "recipe, or leave it out."
        )
    progress.stage("reading the model and the samples")
    arrived = Scratch()
    source = load(bring_in(model, example_inputs, arrived.path))
    size, download = (
        None if most is None else parse_size(most, source.size_bytes, option=option)
        for most, option in ((max_size, "max-size"), (max_download, "max-download"))
    )
    if dry_run:
        most = drop if of_one else None
        return forecast(source, goal, wish, has_data=data is not None, max_drop=most, max_size=size)
    prepared = prepare_samples(
        source, data, preprocess=preprocess, seed=seed, training=training.any
    )
    progress.stage("simplifying the graph")
    with tempfile.TemporaryDirectory(prefix="packlight-") as folder:
        simplified, steps = simplify_checked(
            source, prepared.samples, prepared.split.calibration, Path(folder)
        )
    question = Question(
        source,
        simplified,
        prepared,
        goal,
        wish,
        found_metric,
        Budget(drop, size, None, download),
        max_latency=max_latency,
        share=share,
        pin=pin or {},
        forbid=forbid,
        given=given,
        training=training,
        heal_minutes=heal_minutes,
        workers=workers,
        seed=seed,
    )
    with contextlib.ExitStack() as stack:
        answer = find_answer(question, stack, progress)
        answer, tuning = tune_answer(question, answer, progress)
        bench, chosen, split = answer.bench, answer.chosen, prepared.split
        held_out = split.proof or split.search or split.calibration
        figures = measure_figures(
            bench, chosen.path, chosen.size_bytes, indices=held_out, progress=progress
        )
        if _to_be_packed(chosen, wish, download):
            progress.stage("packing for the download")
            packed = bench.pack_trial(chosen).packed_bytes
            figures = replace(figures, packed_bytes=packed)
        evidence = state_evidence(question, answer, steps, figures, tuning)
        scratch = Scratch()
        made = scratch.path / "device"
        device, extra = write_for_device(question, answer, figures, held_out, made, progress)
        evidence = with_device_file(evidence, device)
        files = (*_keep(chosen, scratch.path), *extra)
    proof = make_proof(
        source.source,
        files[0],
        prepared.samples,
        held_out,
        source.inputs,
        scratch.path,
        golden=golden,
        size_bytes=source.size_bytes,
    )
    notes = (*evidence.notes, *([proof.note] if proof.note else []))
    evidence = replace(evidence, notes=notes, seconds=time.monotonic() - begun)
    given_paths = (model, data, recipe)
    held = [source.source, *(Path(path) for path in given_paths if isinstance(path, str | Path))]
    done = answer.recipe
    if tuning is not None:  # at least 1: samples are split otherwise where nothing is trained
        done = replace(done, tune_steps=max(tuning.steps, 1))
    return Result(evidence, done, files[0], files, tuple(held), proof, scratch, training)


def inspect(
    model: str | Path,
    *,
    data: object = None,
    preprocess: str | None = None,
    progress: Progress = SILENT,
) -> Anatomy | LanguageAnatomy:
    """Where a model's bytes, multiply-accumulates and milliseconds are, and what is redundant.

    Of a language model (a Hugging Face folder or a .gguf file) what it is made of, and how large
    GGUF files of it would be; nothing but the heads of its files is read.
    """
    progress.stage("reading the model")
    if is_language_model(model):
        no_use = {"--data": data is not None, "--preprocess": preprocess is not None}
        _refuse(no_use, "inspecting a language model")
        from packlight.llm.anatomy import describe_checkpoint
        from packlight.llm.checkpoint import open_checkpoint

        return describe_checkpoint(open_checkpoint(model))
    source = load(model)
    progress.stage("timing its operators")
    prepared = prepare_samples(source, data, preprocess=preprocess)
    feeds = next(iter(feeds_of(prepared.samples, (0,), source.inputs, batch=1)))
    with tempfile.TemporaryDirectory(prefix="packlight-") as folder:
        # A copy, since the nodes of the file itself may have no names to tell them by.
        named = Path(folder) / "model.onnx"
        save_model(source.ir, named)
        times = profile_operators(named, feeds, level="extended")
    anatomy = describe(
        source,
        milliseconds={time.name.removeprefix("fused "): time.ms for time in times},
        shapes={name: array.shape for name, array in feeds.items()},
    )
    able = describe_targets(find_layers(source.ir), TARGETS)
    return replace(anatomy, targets=tuple(able.items()))


def compare(
    first: str | Path,
    second: str | Path,
    *,
    data: object,
    metric: str | Metric | None = None,
    preprocess: str | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Comparison:
    """Two model files on the same samples: quality, latency, memory and size."""
    progress.stage("reading both models and the samples")
    one, other = load(first), load(second)
    one = replace(one, inputs=common_inputs(one, other))
    prepared = prepare_samples(one, data, preprocess=preprocess, seed=seed)
    with Workbench(
        one,
        one.ir,
        prepared.samples,
        prepared.split,
        find_target("laptop"),
        metric=find_metric(metric) if isinstance(metric, str) else metric,
        seed=seed,
    ) as bench:
        indices = tuple(range(len(prepared.samples)))
        figures = measure_figures(
            bench, other.source, other.size_bytes, indices=indices, progress=progress
        )
    figures = replace(figures, notes=(*prepared.notes, *figures.notes))
    return Comparison(one.source, other.source, figures, prepared.samples.source)


def targets() -> tuple[Target, ...]:
    """The devices that `compress` knows."""
    return TARGETS


def _to_be_packed(chosen: Tried, goal: Goal, download: int | None) -> bool:
    """Whether the packed file matters: it was asked for, or holds a gain that the file hides.

    For the latter large files are not packed: it would take minutes.
    """
    few = any(parse_choice(word).bits < 8 for _, word in chosen.recipe.layers)
    few = few and chosen.size_bytes <= MOST_PACKED
    return few or download is not None or goal.wish in ("download", "nothing")


def _refuse(options: Mapping[str, bool], what: str) -> None:
    """Raise WrongUsage for options that were given and that such a model has no use for."""
    given = [name for name, is_given in options.items() if is_given]
    if given:
        raise WrongUsage(f"{' and '.join(given)} cannot be used for {what}: leave it out.")


def _path_of(recipe: str | Path | Recipe) -> str | Path:
    if isinstance(recipe, Recipe):
        raise WrongUsage("The recipe of a language model is a path to a recipe.yaml.")
    return recipe


def _recipe(recipe: str | Path | Recipe | None) -> Recipe | None:
    return recipe if recipe is None or isinstance(recipe, Recipe) else read_recipe(recipe)


def _keep(chosen: Tried, folder: Path) -> tuple[Path, ...]:
    """Move the chosen file out of the workbench, which is cleared."""
    kept = folder / "chosen"
    kept.mkdir()
    return tuple(file.rename(kept / file.name) for file in chosen.files)
