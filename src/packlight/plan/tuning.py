"""Training of the file that was chosen, with its rounding in the loop, and what it remembers.

The steps of compression that take minutes leave files in a folder of checkpoints, from which the
same call goes on after an interruption: where training stands, and what the search had chosen,
since measured times, and with them the choice, differ from run to run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from packlight.durable import write_whole
from packlight.errors import PacklightError, UnsupportedOperator, WrongUsage
from packlight.graph.fingerprint import fingerprint
from packlight.graph.layers import Layer
from packlight.graph.model import Graph, load_model
from packlight.measure.evidence import Tuning
from packlight.plan.search import Found
from packlight.plan.training import CHOSEN, Training
from packlight.plan.trials import Workbench
from packlight.plan.tried import Tried
from packlight.progress import Progress
from packlight.recipe import Recipe, parse_recipe, write_recipe


def tune_chosen(
    bench: Workbench,
    found: Found,
    layers: Sequence[Layer],
    original: Graph,
    training: Training,
    *,
    pruned: bool,
    progress: Progress,
) -> tuple[Found, Tuning]:
    """Train the chosen file towards the original; where that makes it no better it stays.

    layers: of the graph that was compressed. original: simplified, with all its channels.
    A file that PyTorch cannot compute stays too, and the notes name the operator.
    """
    from packlight.graph.torch.distill import Lessons
    from packlight.graph.torch.tune import tune

    chosen, recipe = found.chosen, found.chosen.recipe
    lessons = Lessons(
        bench.samples,
        bench.split.calibration,
        bench.model.inputs,
        bench.process,
        seed=bench.seed,
        checkpoint=training.tuned,
        progress=progress,
        steps=training.tune_steps or None,
        minutes=None if training.tune_steps else training.tune_minutes,
    )
    # Balancing moves factors inside: the graph that was rounded has them too, unless channels
    # went, for then the original is another.
    balanced = bool(recipe.equalize or recipe.rotate or recipe.smooth)
    teacher = original if pruned else bench.forms.start(recipe, bench.process).graph
    made_up = ("it was trained on made-up samples",) if bench.samples.generated else ()
    try:
        tuned = tune(
            teacher,
            load_model(chosen.path).ir,
            recipe,
            layers,
            lessons,
            hints=not (pruned and balanced),
        )
    except (UnsupportedOperator, WrongUsage) as error:
        return found, Tuning(0, notes=(f"not tuned: {error}",))
    went = tuned.training
    if went is None:
        return found, Tuning(0, notes=tuned.notes)
    notes = [*made_up, *tuned.notes, *went.notes]
    if went.better:
        new = bench.adopt(
            tuned.model,
            replace(recipe, tune_steps=went.planned),
            f"{chosen.label}, tuned",
            chosen.notes,
        )
        new = bench.evaluate(new.recipe, new.label)
        if chosen.latency_ratio is not None and not new.failure:
            new = bench.rank([new], seconds=2.0)[0]
        reason = _why_not(new, chosen, bench)
        if reason:
            notes.append(f"the tuned file was put aside: {reason}")
        else:
            found = replace(found, chosen=new)
        found = replace(found, tried=tuple(bench.tried))
    kept = found.chosen is not chosen
    return found, Tuning(went.planned, went.before, went.after, kept, tuple(notes))


def _why_not(new: Tried, old: Tried, bench: Workbench) -> str:
    """Why a file that is nearer to the original on held-out samples is not taken all the same."""
    if new.failure:
        return f"it does not run ({new.failure})"
    limit = bench.max_drop
    if limit is not None and not bench.samples.generated and old.drop <= limit < new.drop:
        return f"on the search samples its drop is {new.drop:.2%}, and before {old.drop:.2%}"
    return ""


def key_of_choice(bench: Workbench, graph: Graph, settings: object) -> str:
    """What a remembered choice belongs to: graph, samples and settings."""
    indices = (*bench.split.calibration, *bench.split.search)
    return fingerprint((graph,), bench.samples, indices, bench.model.inputs, settings)


def remember_choice(folder: Path, key: str, recipe: Recipe) -> None:
    """Write down what the search chose, for the same call after an interruption."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / CHOSEN, json.dumps({"key": key, "recipe": write_recipe(recipe)}).encode())


def recall_choice(bench: Workbench, folder: Path, key: str) -> Found | None:
    """What an interrupted run of that key chose, made again; None where there is no such."""
    try:
        head = json.loads((folder / CHOSEN).read_text(encoding="utf-8"))
        if head["key"] != key:
            return None
        recipe = parse_recipe(head["recipe"], folder / CHOSEN)
    except (OSError, ValueError, KeyError, TypeError, PacklightError):
        return None
    chosen = bench.evaluate(recipe, "chosen before the interruption")
    if chosen.failure:
        return None
    (chosen,) = bench.rank([chosen])
    return Found(chosen, tuple(bench.tried))
