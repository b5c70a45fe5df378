"""An answer to what the user asks: what goes, what each layer becomes, what training made of it.

Bits come first, since they cost the least. Where they alone do not reach the budget, or the
shortest latency is wished for, channels, branches and ranks go too, and bits are chosen again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from packlight.errors import WrongUsage
from packlight.graph.apply import check_choices, why_not
from packlight.graph.layers import Layer, find_layers
from packlight.graph.model import Graph, Model
from packlight.measure.evidence import Budget, Tuning
from packlight.measure.latency import rank_latencies
from packlight.measure.quality import Metric
from packlight.plan.budget import limits_of, parse_latency
from packlight.plan.goal import Goal
from packlight.plan.ground import OF_WORDS, Of
from packlight.plan.prepare import Prepared
from packlight.plan.rules import read_rules
from packlight.plan.search import Found, option_of, search
from packlight.plan.solve import choose, violation
from packlight.plan.thinning import Share, Thinned, thin
from packlight.plan.training import Training, plan_training
from packlight.plan.trials import GIVEN, Workbench
from packlight.plan.tried import Tried
from packlight.plan.tuning import key_of_choice, recall_choice, remember_choice, tune_chosen
from packlight.progress import SILENT, Progress
from packlight.recipe import Recipe
from packlight.targets import Target

ATTEMPTS = 2
"""Shares that are tried where bits alone do not reach the budget."""

AIM = 0.95
"""Share of a budget that the first attempt aims at: less goes in time than in multiplications."""

LEAST_SHARE, MOST_SHARE = 0.1, 0.75

FURTHER = 0.25
"""What more goes where only the quality is short of the budget: then bits were too few."""


@dataclass(frozen=True)
class Question:
    """What the user asks, read and checked.

    budget: without its latency, which may be a share of the original's: `max_latency` says it.
    share: of the multiply-accumulates that are to go; 0 for none, None for what the budget needs.
    given: the user's recipe.
    """

    source: Model
    simplified: Graph
    prepared: Prepared
    target: Target
    goal: Goal
    metric: Metric | str | None
    budget: Budget
    max_latency: str | float | None
    share: Share | None
    pin: Mapping[str, str]
    forbid: Sequence[str]
    given: Recipe | None
    training: Training
    heal_minutes: float
    workers: int | str
    seed: int

    @property
    def limited(self) -> bool:
        """Whether a size or a time was asked for."""
        limits = (self.budget.max_size_bytes, self.budget.max_download_bytes, self.max_latency)
        return any(limit is not None for limit in limits)

    @property
    def searches(self) -> bool:
        """Whether layers' choices are searched for, rather than as a recipe says."""
        return self.given is None or self.given.searches or bool(self.pin) or bool(self.forbid)

    @property
    def may_thin(self) -> bool:
        """Whether parts may go without having been asked for."""
        judged = not self.prepared.samples.generated and self.budget.max_drop is not None
        return self.share is None and self.given is None and judged

    def open_bench(self, graph: Graph, progress: Progress = SILENT) -> Workbench:
        """A bench on which candidates that start from `graph` are tried."""
        return Workbench(
            self.source,
            graph,
            self.prepared.samples,
            self.prepared.split,
            self.target,
            metric=self.metric,
            max_drop=self.budget.max_drop,
            workers=self.workers,
            seed=self.seed,
            progress=progress,
        )

    def drop_of(self, graph: Graph) -> float:
        """What `graph` loses on the search samples before any layer of it is rounded."""
        with self.open_bench(graph) as bench:
            plain = Recipe(target=self.target.name, seed=self.seed)
            return bench.evaluate(plain, "without channels").drop


@dataclass(frozen=True)
class Answer:
    """A file that was chosen, on its bench, with all that led to it.

    budget: with the latency in milliseconds. before: answers that were put aside.
    """

    bench: Workbench
    layers: tuple[Layer, ...]
    thinned: Thinned | None
    training: Training
    found: Found
    budget: Budget
    original_ms: float | None
    before: tuple[Answer, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def chosen(self) -> Tried:
        """The file."""
        return self.found.chosen

    @property
    def recipe(self) -> Recipe:
        """How the file was made."""
        done = self.chosen.recipe
        return done if self.thinned is None else self.thinned.note_in(done)

    @property
    def over(self) -> float:
        """The file's size or time as a share of its limit, the worst of those that there are."""
        return max(self._size_over, self._time_over)

    @property
    def needs(self) -> Of:
        """What of should go to keep the budget: weights or time, whichever is short."""
        if self.over == 0:
            return "macs"
        return "weights" if self._size_over >= self._time_over else "time"

    @property
    def _size_over(self) -> float:
        chosen, budget = self.chosen, self.budget
        shares = [0.0]
        if budget.max_size_bytes:
            shares.append(chosen.size_bytes / budget.max_size_bytes)
        if budget.max_download_bytes and chosen.packed_bytes:
            shares.append(chosen.packed_bytes / budget.max_download_bytes)
        return max(shares)

    @property
    def _time_over(self) -> float:
        chosen, budget = self.chosen, self.budget
        if not (budget.max_latency_ms and chosen.latency_ratio and self.original_ms):
            return 0.0
        return chosen.latency_ratio * self.original_ms / budget.max_latency_ms

    @property
    def beyond(self) -> float:
        """How far the file is beyond the budget in all, 0 where it keeps to it."""
        limits = limits_of(self.budget, self.bench.model.size_bytes, self.original_ms)
        found = violation(option_of(self.chosen), limits)
        most, packed = self.budget.max_download_bytes, self.chosen.packed_bytes
        return found + (max(packed / most - 1, 0.0) if most and packed else 0.0)


def find_answer(question: Question, stack: ExitStack, progress: Progress) -> Answer:
    """The best answer; its bench, and those of answers put aside, are closed with `stack`.

    Raises WrongUsage for a recipe, pin or share that cannot be, UnusableRecipe likewise.
    """
    best = _answer(question, question.share or None, question.training, stack, progress)
    share = _first_share(question, best)
    training = question.training
    if share is not None and training.any:
        folder, minutes = training.folder, question.heal_minutes
        training = plan_training(minutes, prunes=True, given=None, folder=folder)
    short = best.beyond > 0
    reason = "bits alone do not reach the budget" if short else "the shortest time was wished for"
    of = best.needs
    for _ in range(ATTEMPTS):
        if share is None:
            break
        try:
            other = _answer(question, share, training, stack, progress, known=best, of=of)
        except WrongUsage as error:
            note = f"{reason}, and parts of the model cannot go too: {error}"
            return replace(best, notes=(*best.notes, note))
        if not other.recipe.thins:
            break
        better = _betters(other, best, question.goal)
        gone = "what the drop allows" if share == "auto" else f"{share:.0%}"
        gone = f"{reason}: {gone} of the {OF_WORDS[of]} went too"
        kept, aside = (other, best) if better else (best, other)
        notes = (*best.notes, gone if better else f"{gone}, which was no better and was put aside")
        best = replace(kept, before=(*best.before, aside), notes=notes)
        share = None if training.any else _next_share(share, other)
    return best


def tune_answer(
    question: Question, answer: Answer, progress: Progress
) -> tuple[Answer, Tuning | None]:
    """The answer's file trained with its rounding in the loop, where that was asked for."""
    training, thinned = answer.training, answer.thinned
    if not training.tunes:
        return answer, None
    found, tuning = tune_chosen(
        answer.bench,
        answer.found,
        answer.layers,
        question.simplified if thinned is None else thinned.teacher(question.simplified),
        training,
        pruned=thinned is not None,
        progress=progress,
    )
    return replace(answer, found=found), tuning


def _answer(
    question: Question,
    share: Share | None,
    training: Training,
    stack: ExitStack,
    progress: Progress,
    *,
    known: Answer | None = None,
    of: Of = "macs",
) -> Answer:
    """What is best with this share gone, and bits for what is left.

    known: another answer, which knows the budget in milliseconds. of: what the share is of.
    """
    given, drop = question.given, question.budget.max_drop
    samples, split = question.prepared.samples, question.prepared.split
    thinned = None
    # A recipe that asks for a search may say which channels stay, too.
    said = Recipe() if given is None or share is not None else given
    if share is not None or said.thins:
        named = () if given is None else (*dict(given.layers), *dict(given.pins))
        thinned = thin(
            question.simplified,
            samples,
            split,
            question.source.inputs,
            share=share,
            of=of,
            computes=None if known is None or of != "time" else known.chosen.recipe,
            channels=said.channels,
            removed=said.removed,
            ranks=said.ranks,
            whole=(*question.pin, *named),
            training=training,
            max_drop=drop,
            drop_of=None if samples.generated else question.drop_of,
            seed=question.seed,
            progress=progress,
        )
    graph = question.simplified if thinned is None else thinned.graph
    layers = tuple(find_layers(graph))
    bench = stack.enter_context(question.open_bench(graph, progress))
    if given is not None and not question.searches:
        check_choices(given, layers)
    if not question.searches or not samples.generated:
        static = [layer.name for layer in layers if not why_not(layer, "int8")]
        bench.calibrate(static, progress=progress)
    if known is None:
        budget, original_ms = _with_latency(question, bench)
    else:
        budget, original_ms = known.budget, known.original_ms
    if question.searches:
        found = _search(question, training, bench, graph, layers, budget, original_ms, progress)
    else:
        assert given is not None
        found = _given(bench, given)
    return Answer(bench, layers, thinned, training, found, budget, original_ms)


def _with_latency(question: Question, bench: Workbench) -> tuple[Budget, float | None]:
    """The budget with its latency, and the original's milliseconds where it has one."""
    if question.max_latency is None:
        return question.budget, None
    paths, feeds = [bench.model.source], bench.first_feeds()
    (original,) = rank_latencies(paths, feeds, seconds=2.0, engine=bench.device.latency)
    most = parse_latency(question.max_latency, original.ms)
    return replace(question.budget, max_latency_ms=most), original.ms


def _given(bench: Workbench, recipe: Recipe) -> Found:
    chosen = bench.evaluate(recipe, GIVEN)
    if chosen.failure:
        raise WrongUsage(f"The recipe gives a file that does not run: {chosen.failure}")
    return Found(chosen, tuple(bench.tried))


def _search(
    question: Question,
    training: Training,
    bench: Workbench,
    graph: Graph,
    layers: Sequence[Layer],
    budget: Budget,
    original_ms: float | None,
    progress: Progress,
) -> Found:
    """The bits of each layer: searched for, or as an interrupted run had chosen them."""
    given, folder, goal = question.given, training.folder, question.goal
    rules = read_rules(question.pin, question.forbid, given, layers)
    key = ""
    if folder is not None and training.tunes:
        settings = (budget, rules, given, question.metric, question.heal_minutes, question.seed)
        key = key_of_choice(bench, graph, (question.target, goal, *settings))
        recalled = recall_choice(bench, folder, key)
        if recalled is not None:
            return recalled
    found = search(
        bench,
        layers,
        limits_of(budget, bench.model.size_bytes, original_ms),
        goal=goal,
        rules=rules,
        given=given if given is not None and given.layers else None,
        download=budget.max_download_bytes,
        asked=question.limited,
        progress=progress,
    )
    if key and folder is not None:
        remember_choice(folder, key, found.chosen.recipe)
    return found


def _first_share(question: Question, found: Answer) -> Share | None:
    """What may go without having been asked for; None where nothing should."""
    if not question.may_thin:
        return None
    if found.beyond > 0:
        share = 1 - AIM / found.over if found.over > 1 else FURTHER
        return min(max(share, LEAST_SHARE), MOST_SHARE)
    return "auto" if question.goal.thins else None


def _next_share(share: Share, found: Answer) -> Share | None:
    """Another share, after what one led to; None where no other promises more."""
    if share == "auto" or found.beyond == 0:
        return None
    if found.over > 1:
        more = 1 - (1 - share) * AIM / found.over
        return more if share < more <= MOST_SHARE else None
    return share / 2 if share / 2 >= LEAST_SHARE else None


def _betters(other: Answer, best: Answer, goal: Goal) -> bool:
    """Whether an answer is better than another under the same budget."""
    if other.beyond != best.beyond:
        return other.beyond < best.beyond
    packed = goal.wish == "download" or best.budget.max_download_bytes is not None
    options = [option_of(best.chosen, packed=packed), option_of(other.chosen, packed=packed)]
    limits = limits_of(best.budget, best.bench.model.size_bytes, best.original_ms)
    limits = replace(limits, size=None) if packed else limits
    return choose(options, limits, smallest=packed, tie_latency=goal.tie_latency) == 1
