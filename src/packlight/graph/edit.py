"""Small edits that all rewrites of a graph make: add constants and nodes under unused names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from packlight.graph.layers import Layer
from packlight.graph.walk import constant_of, walk_graphs

CONTRIB = "com.microsoft"


class Editor:
    """Adds to one model, in place; equal constants are stored once."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self._taken: set[str] = set()
        for _, graph in walk_graphs(model):
            if isinstance(graph, ir.Graph):
                self._taken.update(graph.initializers)
                self._taken.update(str(value.name) for value in graph.inputs)
            for node in graph:
                self._taken.add(str(node.name))
                self._taken.update(str(value.name) for value in node.outputs)
        self._constants: dict[tuple[int, str, tuple[int, ...], bytes], ir.Value] = {}

    def unused(self, name: str) -> str:
        """`name`, or with a number behind it where it is taken; reserved from now on."""
        found, number = name, 2
        while found in self._taken:
            found, number = f"{name}_{number}", number + 1
        self._taken.add(found)
        return found

    def constant(
        self,
        graph: ir.Graph,
        array: NDArray[Any],
        name: str,
        *,
        dtype: ir.DataType | None = None,
    ) -> ir.Value:
        """An initializer; equal arrays of one type share it."""
        array = np.ascontiguousarray(array) if array.ndim else array
        digest = hashlib.sha256(array.tobytes()).digest()
        key = (id(graph), str(dtype or array.dtype), array.shape, digest)
        found = self._constants.get(key)
        if found is not None:
            return found
        name = self.unused(name)
        tensor = ir.Tensor(array, dtype=dtype, name=name)
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor
        )
        graph.register_initializer(value)
        self._constants[key] = value
        return value

    def node(
        self,
        operator: str,
        inputs: list[ir.Value | None],
        name: str,
        *,
        attributes: dict[str, Any] | None = None,
        domain: str = "",
        outputs: int = 1,
        dtype: ir.DataType | None = None,
    ) -> ir.Node:
        """A node under an unused name, its outputs named after it; not yet in a graph."""
        name = self.unused(name)
        node = ir.node(
            operator,
            inputs,
            attributes=attributes or {},
            domain=domain,
            num_outputs=outputs,
            name=name,
        )
        for index, value in enumerate(node.outputs):
            value.name = self.unused(f"{name}_out{index or ''}")
            if dtype is not None:
                value.type = ir.TensorType(dtype)
        if domain and domain not in self.model.opset_imports:
            self.model.opset_imports[domain] = 1
        return node


def in_function(layer: Layer) -> bool:
    """Whether a layer lies in a function, which holds no weights and serves many callers."""
    return bool(layer.graph_path) and layer.graph_path[0].startswith("function ")


def graph_of(layer: Layer) -> ir.Graph:
    """The graph in which a layer's node lies."""
    graph = layer.node.graph
    if not isinstance(graph, ir.Graph) or in_function(layer):
        raise ValueError(f"layer {layer.name!r} lies in a function, which is not rewritten")
    return graph


def home_of(weight: ir.Value, layer: Layer) -> ir.Graph:
    """The graph that holds a weight: that of the layer, or one around it."""
    return weight.graph if isinstance(weight.graph, ir.Graph) else graph_of(layer)


def store_array(value: ir.Value, array: NDArray[Any]) -> None:
    """Put other numbers into a constant, in the element type that it has."""
    held = constant_of(value)
    assert held is not None
    value.const_value = ir.Tensor(array.astype(held.numpy().dtype), name=value.name)


def drop_unused(values: Iterable[ir.Value]) -> None:
    """Remove initializers and Constant nodes that nothing reads any more."""
    for value in values:
        if value.uses() or value.is_graph_output():
            continue
        producer = value.producer()
        if producer is not None and producer.graph is not None:
            producer.graph.remove(producer, safe=True)
        elif value.is_initializer() and isinstance(value.graph, ir.Graph) and value.name:
            value.graph.initializers.pop(value.name, None)
