"""An ONNX graph as a PyTorch module, with its weights as parameters under their own names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from packlight.errors import UnusableModel, WrongUsage
from packlight.graph.model import Model, load_model
from packlight.graph.torch.build import Surroundings, build_program, nodes_to_run
from packlight.graph.torch.naming import constant_tensor, name_constants
from packlight.graph.torch.run import run_program
from packlight.graph.torch.trainable import is_read_by_python, is_weight
from packlight.graph.torch.values import Tensor, is_host_constant, tensor_from


class GraphModule(torch.nn.Module):
    """Computes what an ONNX graph computes, with gradients.

    Float constants that layers multiply with, add or look up in are parameters; all others
    are buffers, and short integer ones (shapes, axes) stay on the CPU. ONNX names may hold dots
    and slashes, which attributes cannot: `parameters_by_name` has them as they are. Normalization
    and dropout compute as in inference, unless the graph says otherwise, whatever `train()` says.
    """

    def __init__(self, model: ir.Model, *, learn_scales: bool = False) -> None:
        """Raise UnsupportedOperator where a node's operator is not known.

        learn_scales: those of QuantizeLinear and DequantizeLinear are parameters too.
        """
        super().__init__()
        graph = model.graph
        self.inputs = tuple(str(value.name) for value in graph.inputs if not value.is_initializer())
        self.outputs = tuple(str(value.name) for value in graph.outputs)
        around = Surroundings(dict(model.functions), dict(model.opset_imports))
        given = [value for value in graph.inputs if not value.is_initializer()]
        try:
            self._program, captured = build_program(graph, given, graph.outputs, around)
        except RecursionError as error:
            raise UnusableModel(
                "The graph's functions call themselves, or its graphs lie too deep in each other: "
                "export the model again."
            ) from error
        self._attributes: dict[str, str] = {}  # by ONNX name
        self._names: list[str] = []  # of what is captured, in order
        self._kept: list[tuple[str, Any]] = []  # ("parameter" | "buffer", name) or ("", value)
        names = name_constants(model)
        for number, value in enumerate(captured):
            name = names.get(value, f"constant {number} of a function")
            trainable = value in names and is_weight(value, scales=learn_scales)
            self._keep(value, name, trainable=trainable)
        self._places = {
            str(value.name): place for value, place in zip(given, self._program.given, strict=False)
        }
        self._places.update(zip(self._names, self._program.given[len(given) :], strict=True))
        for node, step in zip(nodes_to_run(graph), self._program.steps, strict=True):
            outputs = [str(value.name) for value in node.outputs]
            self._places.update(zip(outputs, step.outputs, strict=False))

    def _keep(self, value: ir.Value, name: str, *, trainable: bool) -> None:
        """Keep a constant as parameter, buffer, or where Python reads it."""
        constant = constant_tensor(value)
        if constant is None:
            raise UnusableModel(
                f"Tensor {value.name!r} is read but nothing produces it: the graph is incomplete."
            )
        self._names.append(name)
        tensor = tensor_from(constant)
        if is_host_constant(tensor) or is_read_by_python(value):
            self._kept.append(("", tensor))
            return
        attribute = re.sub(r"\W", "_", name) or "constant"
        while attribute in self._attributes.values() or hasattr(self, attribute):
            attribute += "_"
        self._attributes[name] = attribute
        trained = (
            trainable
            and tensor.is_floating_point()
            and tensor.element_size() > 1
            and bool(torch.isfinite(tensor).all())
        )
        if trained:
            self.register_parameter(attribute, torch.nn.Parameter(tensor))
        else:
            self.register_buffer(attribute, tensor)
        self._kept.append(("parameter" if trained else "buffer", attribute))

    @property
    def parameters_by_name(self) -> dict[str, torch.nn.Parameter]:
        """The parameters by their ONNX names, in the order in which the graph reads them."""
        return {
            name: parameter
            for name, attribute in self._attributes.items()
            if (parameter := self._parameters.get(attribute)) is not None
        }

    def forward(self, *inputs: Any) -> Any:
        """The graph's outputs for its inputs in their order: one value, or a tuple of several."""
        results = self._run(inputs, {}, {})
        return results[0] if len(results) == 1 else tuple(results)

    def run(
        self,
        feeds: Mapping[str, Any],
        *,
        weights: Mapping[str, Tensor] | None = None,
        through: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
        wanted: Iterable[str] = (),
    ) -> dict[str, Any]:
        """The outputs by name, and the tensors of the main graph named in `wanted`.

        weights: by ONNX name, what to compute with in place of a constant (a parameter rounded,
        say). through: by tensor, a function that the tensor goes through where it is produced.
        Raises WrongUsage for a name that the graph does not have.
        """
        seen: dict[str, Any] = {}

        def look(name: str, function: Callable[[Any], Any] | None) -> Callable[[Any], Any]:
            def run(value: Any) -> Any:
                seen[name] = value if function is None else function(value)
                return seen[name]

            return run

        hooks: dict[str, Callable[[Any], Any]] = dict(through or {})
        hooks |= {name: look(name, hooks.get(name)) for name in wanted}
        for name in [*hooks, *(weights or {})]:
            if name not in self._places:
                raise WrongUsage(f"The graph has no tensor {name!r}.")
        missing = [name for name in self.inputs if name not in feeds]
        if missing:
            raise WrongUsage(f"The graph's input {missing[0]!r} is not among the feeds.")
        results = self._run(
            [feeds[name] for name in self.inputs],
            weights or {},
            {self._places[name]: function for name, function in hooks.items()},
        )
        return {**dict(zip(self.outputs, results, strict=True)), **seen}

    def _run(
        self,
        inputs: Sequence[Any],
        weights: Mapping[str, Tensor],
        through: Mapping[int, Callable[[Any], Any]],
    ) -> list[Any]:
        if len(inputs) != len(self.inputs):
            raise WrongUsage(
                f"The graph takes {len(self.inputs)} inputs ({', '.join(self.inputs)}), "
                f"not {len(inputs)}."
            )
        held: dict[str, Any] = {
            "parameter": self._parameters,
            "buffer": self._buffers,
        }
        constants = [held[kind][key] if kind else key for kind, key in self._kept]
        if weights:
            start = len(self.inputs)
            order = {place: index for index, place in enumerate(self._program.given[start:])}
            for name, value in weights.items():
                constants[order[self._places[name]]] = value
        return run_program(self._program, [*inputs, *constants], through)


def to_torch(model: Model | ir.Model | Path | str, *, learn_scales: bool = False) -> GraphModule:
    """The graph of `model` (loaded, or a path) as a module; the model itself is not changed.

    learn_scales: those of QuantizeLinear and DequantizeLinear are parameters too.
    Raises UnsupportedOperator where an operator is not known, UnusableModel for a broken file.
    """
    if isinstance(model, Path | str):
        model = load_model(model)
    return GraphModule(model.ir if isinstance(model, Model) else model, learn_scales=learn_scales)
