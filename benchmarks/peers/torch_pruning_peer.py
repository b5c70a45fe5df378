"""torch-pruning on an ONNX file of convolutions.

It cuts modules of PyTorch, and of a graph whose layers are functions it removes nothing. So each
convolution is made a `torch.nn.Conv2d` here, while all other nodes are computed as
`packlight.to_torch` computes them; what is left goes back into the ONNX graph.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch  # noqa: TID251
import torch_pruning  # type: ignore[import-not-found]

import packlight
from packlight.graph.coupling.groups import find_groups
from packlight.graph.coupling.shapes import infer_shapes
from packlight.graph.edit import store_array
from packlight.graph.model import load_model, save_model
from packlight.graph.rewrite.simplify import simplify
from packlight.graph.torch.build import nodes_to_run
from packlight.graph.torch.operators.convolution import find_windows, pad_space
from packlight.graph.torch.run import run_program
from packlight.graph.walk import constant_of, shape_of

HALVINGS = 10


class Convolution(torch.nn.Module):
    """A Conv node as PyTorch has it: what is added before and behind differs, where it does."""

    def __init__(self, node: ir.Node, size: Sequence[int]) -> None:
        super().__init__()
        weight, bias = (constant_of(value) for value in (*node.inputs, None)[1:3])
        given = {name: attribute.value for name, attribute in node.attributes.items()}
        windows = find_windows(
            tuple(size),
            tuple(shape_of(weight)[2:]),
            given.get("strides"),
            given.get("dilations"),
            given.get("pads"),
            given.get("auto_pad", "NOTSET"),
        )
        groups = given.get("group", 1)
        outputs, inputs, *kernel = shape_of(weight)
        self.before, self.behind = tuple(windows.begin), tuple(windows.end)
        self.inner = torch.nn.Conv2d(
            inputs * groups,
            outputs,
            tuple(kernel),
            windows.strides,
            dilation=windows.dilations,
            groups=groups,
            bias=bias is not None,
        )
        with torch.no_grad():
            self.inner.weight.copy_(torch.from_numpy(weight.numpy().copy()))
            if bias is not None:
                self.inner.bias.copy_(torch.from_numpy(bias.numpy().copy()))

    def forward(self, x: Any, *_: Any) -> Any:
        """The weights that a step hands over are those of before."""
        return self.inner(pad_space(x, self.before, self.behind))


class Network(torch.nn.Module):
    """The graph, its convolutions as modules."""

    def __init__(self, graph: ir.Model) -> None:
        super().__init__()
        whole = packlight.to_torch(graph)
        self.constants = [
            getattr(whole, key).detach() if kind else key for kind, key in whole._kept
        ]
        steps, self.layers = [], torch.nn.ModuleDict()
        for node, step in zip(nodes_to_run(graph.graph), whole._program.steps, strict=True):
            if node.op_type == "Conv":
                layer = Convolution(node, [int(n) for n in node.inputs[0].shape[2:]])
                self.layers[str(len(steps))] = layer
                step = step._replace(run=layer)
            steps.append(step)
        self.names = {node.name: at for at, node in enumerate(nodes_to_run(graph.graph))}
        self.steps, self.program = steps, whole._program

    def forward(self, x: Any) -> Any:
        """The graph's outputs for its one input."""
        steps = tuple(
            step._replace(run=self.layers[str(place)]) if str(place) in self.layers else step
            for place, step in enumerate(self.steps)
        )
        program = type(self.program)(
            steps, self.program.size, self.program.given, self.program.outputs
        )
        found = run_program(program, [x, *self.constants])
        return found[0] if len(found) == 1 else tuple(found)


def prune(source: Path, share: float, path: Path) -> float:
    """Write the file that torch-pruning's MagnitudePruner (L2) leaves; the share of MACs left.

    The ratio of channels is halved in on until that share of the multiply-accumulates is gone.
    """
    model = load_model(source)
    graph, _ = simplify(model.ir, check=None)
    infer_shapes(graph)
    example = torch.zeros(*(int(size) for size in model.inputs[0].shape))
    whole = Network(graph).eval()
    pinned = {
        member.node for group in find_groups(graph) if group.pinned for member in group.makers
    }
    before = _macs(whole, example)
    low, high, best = 0.0, 0.9, whole
    for _ in range(HALVINGS):
        ratio = (low + high) / 2
        network = copy.deepcopy(whole)
        ignored = [
            network.layers[str(place)].inner
            for name, place in network.names.items()
            if name in pinned and str(place) in network.layers
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch_pruning.pruner.MagnitudePruner(
                network,
                example,
                importance=torch_pruning.importance.MagnitudeImportance(p=2),
                pruning_ratio=ratio,
                ignored_layers=ignored,
            ).step()
        if 1 - _macs(network, example) / before >= share:
            high, best = ratio, network
        else:
            low = ratio
    for node in graph.graph:
        place = str(best.names[node.name])
        if place not in best.layers:
            continue
        layer = best.layers[place].inner
        for value, array in zip(node.inputs[1:], (layer.weight, layer.bias), strict=False):
            store_array(value, array.detach().numpy())
        if layer.groups > 1:
            node.attributes["group"] = ir.AttrInt64("group", layer.groups)
    infer_shapes(graph)
    save_model(graph, path, durable=False)
    return _macs(best, example) / before


def _macs(network: Network, example: Any) -> float:
    total = 0.0

    def count(layer: Any, _inputs: Any, output: Any) -> None:
        nonlocal total
        total += output.numel() * layer.weight[0].numel()

    hooks = [layer.inner.register_forward_hook(count) for layer in network.layers.values()]
    with torch.no_grad():
        network(example)
    for hook in hooks:
        hook.remove()
    return total
