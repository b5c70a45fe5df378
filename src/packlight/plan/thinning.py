"""The graph without the channels that are missed least, fitted or trained towards the original.

Layers may also become two of low rank each, once channels have gone.

How many channels go is asked for as a share of the multiply-accumulates, said group by group in a
recipe, or found: the largest share whose loss leaves room for what comes after.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from packlight.errors import UnsupportedOperator, UnusableRecipe, WrongUsage
from packlight.graph.anatomy import count_macs
from packlight.graph.model import Graph
from packlight.graph.torch.enter import check_torch
from packlight.measure.evidence import ChannelEvidence, RankEvidence, Thinning
from packlight.nearest import did_you_mean
from packlight.plan.channels import (
    Ground,
    RankOption,
    Removal,
    macs_left,
    measure_gains,
    prepare_ground,
    total_macs,
)
from packlight.plan.ranks import offer_ranks
from packlight.plan.removal import carry_out, choose_removal
from packlight.progress import SILENT, Progress
from packlight.ranks import Rank
from packlight.recipe import Recipe
from packlight.runtime import Process
from packlight.samples import Samples, Split
from packlight.tensors import TensorSpec

MOST_REMOVED = 0.95
"""Share of the multiply-accumulates that may be asked for."""

SHARES = (0.6, 0.45, 0.3, 0.2, 0.1)
"""What is tried where nobody says how much: the largest first."""

ROOM = 0.5
"""Share of the drop that channels may take up: rounding needs the rest."""

REGAINED = 4.0
"""So many times smaller training makes the drop: resnet20 without half of its multiplications lost
5.8 points before and 1.2 after 12 minutes."""

Share: TypeAlias = float | Literal["auto"]


@dataclass(frozen=True)
class Thinned:
    """A graph without some channels, its layers fitted to what the original gives.

    channels: (group, channels kept) of the groups that lost some. ranks: (layer, rank) of those
    taken apart. heal_steps: of training.
    """

    graph: Graph
    channels: tuple[tuple[str, int], ...]
    ranks: tuple[tuple[str, Rank], ...]
    heal_steps: int
    evidence: Thinning

    def note_in(self, recipe: Recipe) -> Recipe:
        """The recipe that says this too, so that it can be done again."""
        return replace(recipe, channels=self.channels, ranks=self.ranks, heal_steps=self.heal_steps)


def thin(
    graph: Graph,
    samples: Samples,
    split: Split,
    inputs: Sequence[TensorSpec],
    *,
    share: Share | None = None,
    channels: Sequence[tuple[str, int]] = (),
    ranks: Sequence[tuple[str, Rank]] = (),
    whole: Collection[str] = (),
    heal_minutes: float = 0.0,
    heal_steps: int = 0,
    max_drop: float | None = None,
    drop_of: Callable[[Graph], float] | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Thinned:
    """Remove channels from a simplified graph, and fit or train what is left to its outputs.

    share: of the multiply-accumulates to remove (0 to 0.95), or "auto"; or channels: (group,
    kept) and ranks: (layer, rank) as a recipe says. whole: layers that are not to be taken apart.
    heal_minutes: train for so long, or for exactly heal_steps.
    max_drop, drop_of: for "auto", the drop that is allowed, and what it is on search samples.
    Raises WrongUsage where so much cannot be removed, UnusableRecipe for a group or layer that is
    not there or a number that it cannot keep, MissingExtra where healing needs PyTorch.
    """
    heals = heal_minutes > 0 or heal_steps > 0
    if heals:
        check_torch()
    with Process() as process:
        ground = prepare_ground(graph, samples, split, tuple(inputs), process, seed, progress)
        if share == "auto":
            room = ROOM * (REGAINED if heals else 1.0) * (0.01 if max_drop is None else max_drop)
            removal, fitted = _largest_within(ground, room, drop_of, whole, progress)
        else:
            removal = Removal(_checked(channels, ground), dict(ranks))
            if share is not None:
                gains, offers = _measured(ground, whole, progress)
                removal = choose_removal(ground, share, gains, offers, progress)
            fitted = carry_out(ground, removal, progress)
        steps = 0
        notes: list[str] = []
        loss: tuple[float, float] | None = None
        removed = bool(removal.keep or removal.ranks)
        if heals and removed:
            try:
                fitted, steps, loss, notes = _heal(
                    ground, fitted, heal_minutes, heal_steps, progress
                )
            except UnsupportedOperator as error:
                notes = [f"not healed: {error}"]
        if not removed:
            notes.append("no channels could go within the loss that is allowed")
        evidence = _evidence(ground, removal, steps, loss, notes)
    kept = tuple(sorted(removal.keep.items()))
    return Thinned(fitted, kept, tuple(sorted(removal.ranks.items())), steps, evidence)


def parse_share(value: str | float) -> Share:
    """The share of the multiply-accumulates to remove: "30%" and 0.3 are 0.3; or "auto".

    Raises WrongUsage for what is neither that word nor a share from 0 to 95 %.
    """
    text = str(value).strip()
    if text == "auto":
        return "auto"
    try:
        number = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        number = float("nan")
    if not 0 < number <= MOST_REMOVED:
        raise WrongUsage(
            f"--prune {value}: give the share of the multiply-accumulates to remove, above 0 "
            f"and up to {MOST_REMOVED:.0%}, such as 30% or 0.3, or the word auto."
        )
    return number


def _largest_within(
    ground: Ground,
    room: float,
    drop_of: Callable[[Graph], float] | None,
    whole: Collection[str],
    progress: Progress,
) -> tuple[Removal, Graph]:
    """The largest of `SHARES` that loses no more than `room`; nothing where none does."""
    if drop_of is None:
        raise WrongUsage("--prune auto needs samples, which tell how much may go: give --data.")
    try:
        gains, offers = _measured(ground, whole, progress)
    except WrongUsage:
        return Removal(), ground.graph  # there are no channels to remove
    for share in SHARES:
        try:
            removal = choose_removal(ground, share, gains, offers, progress)
        except WrongUsage:
            continue  # so much cannot go, whatever it costs
        fitted = carry_out(ground, removal, progress)
        if drop_of(fitted) <= room:
            return removal, fitted
    return Removal(), ground.graph


def _measured(
    ground: Ground, whole: Collection[str], progress: Progress
) -> tuple[dict[str, float], dict[str, tuple[RankOption, ...]]]:
    """The gains of groups of channels, and the ranks that are offered.

    Raises WrongUsage where there are neither.
    """
    offers = offer_ranks(ground, progress, whole=whole)
    try:
        return measure_gains(ground, progress), offers
    except WrongUsage:
        if not offers:
            raise
        return {}, offers


def _checked(channels: Sequence[tuple[str, int]], ground: Ground) -> dict[str, int]:
    """The channels of a recipe, held against the groups that there are."""
    groups = {group.name: group for group in ground.groups}
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
    return dict(channels)


def _heal(
    ground: Ground, fitted: Graph, minutes: float, steps: int, progress: Progress
) -> tuple[Graph, int, tuple[float, float], list[str]]:
    from packlight.graph.torch.heal import heal

    time: dict[str, Any] = {"steps": steps} if steps else {"minutes": minutes}
    healed = heal(
        ground.graph,
        fitted,
        ground.samples,
        ground.split.calibration,
        ground.inputs,
        process=ground.process,
        seed=ground.seed,
        progress=progress,
        **time,
    )
    # Steps after the last are part of the plan: the rate falls along all of them.
    return healed.model, healed.planned, (healed.before, healed.after), list(healed.notes)


def _evidence(
    ground: Ground,
    removal: Removal,
    steps: int,
    loss: tuple[float, float] | None,
    notes: Sequence[str],
) -> Thinning:
    before = total_macs(count_macs(ground.graph))
    after = macs_left(ground, removal)
    listed = []
    for group in ground.groups:
        reason = group.pinned
        if not reason and group.name not in ground.orders:
            reason = "no layer that can be fitted again reads them"
        kept = removal.keep.get(group.name, group.size)
        listed.append(ChannelEvidence(group.name, group.size, kept, reason))
    apart = tuple(
        RankEvidence(name, rank.kind, rank.rank) for name, rank in sorted(removal.ranks.items())
    )
    first, last = loss if loss is not None else (None, None)
    return Thinning(before, after, tuple(listed), steps, first, last, tuple(notes), apart)
