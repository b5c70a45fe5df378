"""What goes from a model: channels of groups, whole residual branches, ranks of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from packlight.errors import WrongUsage
from packlight.graph.coupling.cost import macs_without, shapes_without
from packlight.graph.coupling.groups import CoupledGroup
from packlight.graph.layers import Layer, find_layers
from packlight.graph.model import Graph
from packlight.graph.rewrite.branches import Branch, find_branches, remove_part
from packlight.graph.rewrite.factorize import factorize, largest_rank, part_names, share_of_rank
from packlight.graph.rewrite.prune import remove_channels
from packlight.graph.thin import gone_of
from packlight.maths.channels import ChannelOrder
from packlight.ranks import Rank

_BEFORE = 2
"""Layers before a branch that may stand for its sum."""


@dataclass(frozen=True)
class Cuts:
    """keep: (group, channels kept) of the groups that lose some. removed: branches, by name.

    ranks: (layer, how it is taken apart in two) once those are gone. A group or a layer that lies
    in a removed branch is not named.
    """

    keep: tuple[tuple[str, int], ...] = ()
    removed: tuple[str, ...] = ()
    ranks: tuple[tuple[str, Rank], ...] = ()

    def __or__(self, other: Cuts) -> Cuts:
        """Both together."""
        return Cuts(
            tuple(sorted({*self.keep, *other.keep})),
            tuple(sorted({*self.removed, *other.removed})),
            tuple(sorted({*self.ranks, *other.ranks})),
        )

    @property
    def whole(self) -> Cuts:
        """The same with no layer taken apart."""
        return replace(self, ranks=())


def without(graph: Graph, orders: Mapping[str, ChannelOrder], cuts: Cuts) -> Graph:
    """A copy of the graph without what goes; what is left is as it was.

    Raises WrongUsage for groups and branches that it does not have or that cannot go, and
    UnusableRecipe for layers that cannot be taken apart so.
    """
    pruned = remove_channels(graph, gone_of(orders, dict(cuts.keep)))
    pruned = remove_part(pruned, cuts.removed) if cuts.removed else pruned
    return factorize(pruned, dict(cuts.ranks), {}) if cuts.ranks else pruned


def count_left(
    graph: Graph,
    groups: Sequence[CoupledGroup],
    orders: Mapping[str, ChannelOrder],
    branches: Sequence[Branch],
    macs: Mapping[str, int | None],
    cuts: Cuts,
) -> int:
    """Multiply-accumulates for one sample that are left of `macs`, which are by layer.

    What is not known counts as none.
    """
    gone = {layer for one in branches if one.name in cuts.removed for layer in one.layers}
    found = macs_without(graph, groups, gone_of(orders, dict(cuts.keep)), macs)
    layers = _layers_left(graph, groups, orders, cuts)
    for name, rank in cuts.ranks:
        found[name] = round((found[name] or 0) * min(share_of_rank(layers[name], rank), 1.0))
    return sum(count or 0 for name, count in found.items() if name not in gone)


def possible(
    graph: Graph,
    groups: Sequence[CoupledGroup],
    orders: Mapping[str, ChannelOrder],
    branches: Sequence[Branch],
    cuts: Cuts,
) -> Cuts:
    """The same without ranks that save nothing: in layers that lose channels too, or go."""
    gone = {layer for one in branches if one.name in cuts.removed for layer in one.layers}
    layers = _layers_left(graph, groups, orders, cuts)
    ranks = tuple(
        (name, rank)
        for name, rank in cuts.ranks
        if name not in gone and rank.rank <= largest_rank(layers[name], rank.kind)
    )
    return replace(cuts, ranks=ranks)


def _layers_left(
    graph: Graph, groups: Sequence[CoupledGroup], orders: Mapping[str, ChannelOrder], cuts: Cuts
) -> dict[str, Layer]:
    """The layers that are to be taken apart, with the shapes that they have by then."""
    if not cuts.ranks:
        return {}
    shapes = shapes_without(graph, groups, gone_of(orders, dict(cuts.keep)))
    found = {}
    for layer in find_layers(graph):
        if layer.name in dict(cuts.ranks):
            known = shapes.get(layer.name, {})  # nothing goes from layers in subgraphs
            shape = known.get(layer.node.inputs.index(layer.weight), layer.weight_shape)
            found[layer.name] = replace(layer, weight_shape=tuple(shape))
    return found


def removable_branches(graph: Graph) -> tuple[Branch, ...]:
    """The residual branches that can go, none inside another: the smaller ones are taken."""
    found: list[Branch] = []
    taken: set[str] = set()
    branches = find_branches(graph)
    for branch in sorted(branches, key=lambda one: len(one.nodes)):
        if not taken.isdisjoint(branch.nodes):
            continue
        try:
            remove_part(graph, [branch.name])
        except WrongUsage:
            continue  # its sum is an output of the model
        found.append(branch)
        taken.update(branch.nodes)
    return tuple(branch for branch in branches if branch in found)


def groups_inside(branch: Branch, groups: Sequence[CoupledGroup]) -> tuple[CoupledGroup, ...]:
    """The groups of channels that go with a branch: no layer outside makes or reads them."""
    inside = set(branch.nodes)
    return tuple(
        group for group in groups if all(member.node in inside for member in group.members)
    )


def layers_behind(
    graph: Graph,
    groups: Sequence[CoupledGroup],
    branches: Sequence[Branch],
    cuts: Cuts,
    reach: int,
) -> set[str]:
    """The layers that notice first what went: readers of channels, and what stands for a branch.

    reach: so many layers behind each in graph order as well. Earlier ones give what they gave.
    What stands for a branch is the last layer before it, or a little ahead of that where a
    projection was computed between. Of a layer that is two the second part is named.
    """
    names = [layer.name for layer in find_layers(graph) if not layer.graph_path]
    place = {name: number for number, name in enumerate(names)}
    spans = [
        (place[member.node], place[member.node])
        for group in groups
        if group.name in dict(cuts.keep)
        for member in group.readers
        if member.node in place
    ]
    spans += [
        (max(place[one.layers[0]] - _BEFORE, 0), place[one.layers[-1]])
        for one in branches
        if one.name in cuts.removed
    ]
    spans += [(place[name], place[name]) for name, _ in cuts.ranks if name in place]
    apart = {name: part_names(name)[1] for name, _ in cuts.ranks}
    found = {name for first, last in spans for name in names[first : last + 1 + reach]}
    return {apart.get(name, name) for name in found}
