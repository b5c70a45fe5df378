"""The graph without what is missed least, fitted or trained towards the original.

Channels go, and whole residual branches; layers become two of low rank. How much is asked for as
a share of the multiply-accumulates or of the weights, said one by one in a recipe, or found: the
largest share whose loss leaves room for what comes after.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from packlight.errors import UnsupportedOperator, UnusableRecipe, WrongUsage
from packlight.graph.model import Graph
from packlight.graph.rewrite.branches import with_stand_ins
from packlight.measure.evidence import ChannelEvidence, RankEvidence, Thinning
from packlight.nearest import did_you_mean
from packlight.plan.allocation import Part
from packlight.plan.channels import measure_parts
from packlight.plan.cuts import Cuts, groups_inside
from packlight.plan.ground import Ground, Of, prepare_ground
from packlight.plan.proposals import by_time, choose_cuts, know_time
from packlight.plan.ranks import measure_ranks
from packlight.plan.training import NO_TRAINING, Training
from packlight.progress import SILENT, Progress
from packlight.ranks import Rank
from packlight.recipe import Recipe
from packlight.runtime import Process
from packlight.samples import Samples, Split, hold_out
from packlight.tensors import TensorSpec

MOST_REMOVED = 0.95
"""Share of the multiply-accumulates that may be asked for."""

SHARES = (0.6, 0.45, 0.3, 0.2, 0.1)
"""What is tried where nobody says how much: the largest first."""

QUICK = 3
"""Proposals that are measured of each of them."""

ROOM = 0.5
"""Share of the drop that channels may take up: rounding needs the rest."""

REGAINED = 4.0
"""So many times smaller training makes the drop: resnet20 without half of its multiplications lost
5.8 points before and 1.2 after 12 minutes."""

Share: TypeAlias = float | Literal["auto"]


@dataclass(frozen=True)
class Thinned:
    """A graph without some channels and branches, its layers fitted to what the original gives.

    channels: (group, channels kept) of the groups that lost some. removed: residual branches that
    are gone. ranks: (layer, how it was taken apart). heal_steps: of training.
    """

    graph: Graph
    channels: tuple[tuple[str, int], ...]
    removed: tuple[str, ...]
    ranks: tuple[tuple[str, Rank], ...]
    heal_steps: int
    evidence: Thinning

    def teacher(self, original: Graph) -> Graph:
        """The original with what should stand for the sums of removed branches."""
        return with_stand_ins(original, self.removed)

    def note_in(self, recipe: Recipe) -> Recipe:
        """The recipe that says this too, so that it can be done again."""
        return replace(
            recipe,
            channels=self.channels,
            removed=self.removed,
            ranks=self.ranks,
            heal_steps=self.heal_steps,
        )


def thin(
    graph: Graph,
    samples: Samples,
    split: Split,
    inputs: Sequence[TensorSpec],
    *,
    share: Share | None = None,
    of: Of = "macs",
    computes: Recipe | None = None,
    channels: Sequence[tuple[str, int]] = (),
    removed: Sequence[str] = (),
    ranks: Sequence[tuple[str, Rank]] = (),
    whole: Collection[str] = (),
    training: Training = NO_TRAINING,
    max_drop: float | None = None,
    drop_of: Callable[[Graph], float] | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Thinned:
    """Remove channels and branches of a simplified graph, take layers apart, and fit the rest.

    share: to remove (0 to 0.95) of what `of` says, or "auto"; computes: how layers will compute,
        by which they are timed. Or as a recipe says
    channels: (group, kept), removed: residual branches, and ranks: (layer, rank). whole: layers
    that are not to be taken apart for a share. training: how long what is left is healed.
    max_drop, drop_of: for "auto", the drop that is allowed, and what it is on search samples.
    Raises WrongUsage where so much cannot be removed, UnusableRecipe for a group, branch or
    layer that is not there or a number that it cannot keep.
    """
    heals = training.heals
    notes: list[str] = []
    with Process() as process:
        ground = prepare_ground(
            graph, samples, split, tuple(inputs), process, seed, progress, of, computes
        )
        if heals:  # by the others healing tells whether it still gains
            ground = replace(ground, fitted_on=hold_out(split.calibration, seed=seed)[1])
        if share == "auto":
            room = ROOM * (REGAINED if heals else 1.0) * (0.01 if max_drop is None else max_drop)
            cuts, fitted = _largest_within(ground, room, drop_of, whole, notes, progress)
        else:
            cuts = replace(_checked(channels, removed, ground), ranks=tuple(sorted(ranks)))
            if share is not None:
                ground, parts = _measured(ground, whole, notes, progress)
                cuts = choose_cuts(ground, parts, share, progress)
            fitted = ground.fitted(cuts, progress=progress)
        steps = 0
        loss: tuple[float, float] | None = None
        if heals and cuts != Cuts():
            try:
                fitted, steps, loss, more = _heal(ground, fitted, cuts, training, progress)
                notes += more
            except UnsupportedOperator as error:
                notes.append(f"not healed: {error}")
        if cuts == Cuts():
            notes.append("no channels could go within the loss that is allowed")
        evidence = _evidence(ground, cuts, steps, loss, notes)
    return Thinned(fitted, cuts.keep, cuts.removed, cuts.ranks, steps, evidence)


def parse_share(value: str | float) -> Share:
    """The share of the multiply-accumulates to remove: "30%" and 0.3 are 0.3; or "auto".

    Raises WrongUsage for what is neither that word nor a share from 0, for nothing, to 95 %.
    """
    text = str(value).strip()
    if text == "auto":
        return "auto"
    try:
        number = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        number = float("nan")
    if not 0 <= number <= MOST_REMOVED:
        raise WrongUsage(
            f"--prune {value}: give the share of the multiply-accumulates to remove, from 0 "
            f"up to {MOST_REMOVED:.0%}, such as 30% or 0.3, or the word auto."
        )
    return number


def _largest_within(
    ground: Ground,
    room: float,
    drop_of: Callable[[Graph], float] | None,
    whole: Collection[str],
    notes: list[str],
    progress: Progress,
) -> tuple[Cuts, Graph]:
    """The largest of `SHARES` that loses no more than `room`; nothing where none does."""
    if drop_of is None:
        raise WrongUsage("--prune auto needs samples, which tell how much may go: give --data.")
    try:
        ground, parts = _measured(ground, whole, notes, progress)
    except WrongUsage:
        return Cuts(), ground.graph  # there is nothing to remove
    for share in SHARES:
        try:
            cuts = choose_cuts(ground, parts, share, progress, rounds=QUICK)
        except WrongUsage:
            continue  # so much cannot go, whatever it costs
        fitted = ground.fitted(cuts, progress=progress)
        if drop_of(fitted) <= room:
            return cuts, fitted
    return Cuts(), ground.graph


def _measured(
    ground: Ground, whole: Collection[str], notes: list[str], progress: Progress
) -> tuple[Ground, tuple[Part, ...]]:
    """What may go or be taken apart, and the ground. Raises WrongUsage where nothing may.

    Where times cannot be told, a share of the time is one of the multiply-accumulates.
    """
    parts = measure_parts(ground, progress, measure_ranks(ground, progress, whole=whole))
    if not know_time(parts):
        notes.append(
            "what goes was chosen without regard to time, since a run takes too long, or too "
            "little, to time the model without each part"
        )
        return (replace(ground, of="macs") if ground.of == "time" else ground), parts
    return ground, by_time(parts) if ground.of == "time" else parts


def _checked(channels: Sequence[tuple[str, int]], removed: Sequence[str], ground: Ground) -> Cuts:
    """What a recipe says, held against the groups and branches that there are."""
    groups = {group.name: group for group in ground.groups}
    branches = {branch.name: branch for branch in ground.branches}
    for name in removed:
        if name not in branches:
            raise UnusableRecipe(
                f"The recipe removes the residual branch {name!r}, which the model does not have "
                f"or cannot do without{did_you_mean(name, branches)}."
            )
    for name, count in channels:
        group = groups.get(name)
        if group is None:
            raise UnusableRecipe(
                f"The recipe keeps channels of {name!r}, which the model does not have"
                f"{did_you_mean(name, groups)}."
            )
        if group.pinned or name not in ground.orders:
            reason = group.pinned or "no layer that can be fitted again reads them"
            raise UnusableRecipe(f"The channels of {name!r} cannot be removed: {reason}.")
        if not 1 <= count <= group.size:
            raise UnusableRecipe(
                f"The recipe keeps {count} channels of {name!r}: it has 1 to {group.size}."
            )
    return Cuts(tuple(sorted(channels)), tuple(sorted(set(removed))))


def _heal(
    ground: Ground, fitted: Graph, cuts: Cuts, training: Training, progress: Progress
) -> tuple[Graph, int, tuple[float, float], list[str]]:
    from packlight.graph.torch.distill import Lessons
    from packlight.graph.torch.heal import heal

    lessons = Lessons(
        ground.samples,
        ground.split.calibration,
        ground.inputs,
        ground.process,
        steps=training.heal_steps or None,
        minutes=None if training.heal_steps else training.heal_minutes,
        seed=ground.seed,
        checkpoint=training.healed,
        progress=progress,
    )
    healed = heal(with_stand_ins(ground.graph, cuts.removed), fitted, lessons)
    went = healed.training
    # Steps after the last are part of the plan: the rate falls along all of them.
    return healed.model, went.planned, (went.before, went.after), list(went.notes)


def _evidence(
    ground: Ground,
    cuts: Cuts,
    steps: int,
    loss: tuple[float, float] | None,
    notes: Sequence[str],
) -> Thinning:
    keep = dict(cuts.keep)
    inside = {
        group.name
        for branch in ground.branches
        if branch.name in cuts.removed
        for group in groups_inside(branch, ground.groups)
    }
    listed = []
    for group in ground.groups:
        reason = group.pinned
        if not reason and group.name not in ground.orders:
            reason = "no layer that can be fitted again reads them"
        kept = 0 if group.name in inside else keep.get(group.name, group.size)
        listed.append(ChannelEvidence(group.name, group.size, kept, reason))
    first, last = loss if loss is not None else (None, None)
    return Thinning(
        ground.total_macs,
        ground.macs_left(cuts),
        tuple(listed),
        steps,
        first,
        last,
        tuple(notes),
        cuts.removed,
        tuple(RankEvidence(name, rank.kind, rank.rank) for name, rank in cuts.ranks),
    )
