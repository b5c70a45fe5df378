"""A quantized graph as a module that is trained: rounding stays in the loop.

What is trained are the weights that the codes stand for, in floats (`latent`), the scales of
weights and activations, biases, and whatever the graph holds in floats. Each run rounds anew;
`return_codes` writes codes, scales and biases back, so that the graph computes what this does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from packlight.errors import UnusableModel
from packlight.graph.coupling.shapes import infer_shapes
from packlight.graph.model import copy_model
from packlight.graph.torch.code_sites import (
    BiasSite,
    CodeSite,
    constant_nodes,
    find_bias_sites,
    find_code_sites,
    is_scale_only,
    scales_of_activations,
    separate_biases,
)
from packlight.graph.torch.learned_steps import codes_of, gradient_factor, scale_of, with_value
from packlight.graph.torch.module import to_torch
from packlight.graph.torch.naming import constant_tensor, name_constants
from packlight.graph.torch.operators.quantized import pass_through, spread
from packlight.graph.torch.returning import put_constant
from packlight.graph.torch.values import Tensor, array_from, tensor_from
from packlight.maths.grids import IntegerGrid
from packlight.maths.rounding import limit_pairs

MOST_BIAS = 2**30
"""Codes of biases stay this far from 0, so that what is added to them has room in 32 bits."""


@dataclass(frozen=True)
class CodeRule:
    """Which codes a weight may have.

    low, high: the least and the largest. sparse: those that are 0 stay 0. pair_limit, layout:
    codes at neighbouring places of a row, layout [out, in] in the flattened weight, that have
    one sign add up to at most that much.
    """

    low: int
    high: int
    sparse: bool = False
    pair_limit: int | None = None
    layout: NDArray[np.intp] | None = None


class FakeQuantized(torch.nn.Module):
    """Computes what a quantized graph computes, with gradients for what its codes stand for.

    rules: by the name of a site's codes; sites without one keep their codes. frozen: names of
    nodes whose constants all stay as they are. sparse: nodes in whose float weights zeros stay.
    Raises UnsupportedOperator where PyTorch cannot compute the graph.
    """

    def __init__(
        self,
        model: ir.Model,
        rules: Mapping[str, CodeRule],
        *,
        frozen: Iterable[str] = (),
        sparse: Iterable[str] = (),
    ) -> None:
        super().__init__()
        self.graph = copy_model(model)
        separate_biases(self.graph)
        self.program = to_torch(self.graph)
        self.program.requires_grad_(False)
        self.outputs = self.program.outputs
        self._names = name_constants(self.graph)
        self._count = 0
        constant, decoding = constant_nodes(self.graph.graph)
        left = set(frozen)
        sites = find_code_sites(self.graph.graph, constant)
        biases, self._bound = find_bias_sites(self.graph.graph, sites)
        self._biases = [(self._keep_bias(bias), bias) for bias in biases]
        self._scales: dict[str, tuple[str, str, float]] = {}
        self._sites: list[tuple[str, str, CodeSite, CodeRule]] = []
        for site in sites:
            rule = rules.get(str(site.codes.name))
            if rule is not None:
                self._keep_site(site, rule)
        self._keep_activations()
        self._floats: list[tuple[str, str, str | None]] = []
        self._keep_floats(decoding, left, set(sparse))

    def _keep_bias(self, bias: BiasSite) -> str:
        codes, scale = (tensor_from(_tensor_of(value)) for value in (bias.codes, bias.scale))
        return self._parameter("bias", codes.to(torch.float32) * scale)

    def _keep_site(self, site: CodeSite, rule: CodeRule) -> None:
        codes = tensor_from(_tensor_of(site.codes)).to(torch.float32)
        scale = tensor_from(_tensor_of(site.scale)).to(torch.float32)
        wide = scale if site.axis is None else spread(scale, codes, site.axis, site.block)
        zero = self._zero(site, codes)
        latent = self._parameter("latent", (codes - zero) * wide)
        mask = self._buffer("mask", (codes != zero).float()) if rule.sparse else ""
        self._sites.append((latent, mask, site, rule))
        count = codes.numel() // max(scale.numel(), 1)
        self._keep_scale(site.scale, gradient_factor(count, rule.high))

    def _keep_activations(self) -> None:
        known = copy_model(self.graph)
        infer_shapes(known)
        shapes = {value.name: value.shape for node in known.graph for value in node.outputs}
        shapes |= {value.name: value.shape for value in known.graph.inputs}
        for scale, value in scales_of_activations(self.graph.graph).items():
            shape = shapes.get(value.name)
            sizes = [] if shape is None else [size for size in shape[1:] if isinstance(size, int)]
            self._keep_scale(scale, gradient_factor(math.prod(sizes), 255))

    def _keep_scale(self, value: ir.Value, factor: float) -> None:
        name = self._names[value]
        start = tensor_from(_tensor_of(value)).to(torch.float32)
        known = name in self._scales or value in self._bound or not is_scale_only(value)
        if known or not bool((start > 0).all()) or _tensor_of(value).dtype != ir.DataType.FLOAT:
            return
        logarithm = self._parameter("logarithm", torch.zeros_like(start))
        self._scales[name] = (logarithm, self._buffer("start", start), factor)

    def _keep_floats(self, decoding: set[ir.Node], left: set[str], sparse: set[str]) -> None:
        values = {name: value for value, name in self._names.items()}
        for name, parameter in self.program.parameters_by_name.items():
            uses = [use.node for use in values[name].uses()]
            stays = any(node in decoding or str(node.name) in left for node in uses)
            if name in self._scales or stays:
                continue
            kept = self._parameter("float", parameter.detach().to(torch.float32))
            mask = None
            if any(str(node.name) in sparse for node in uses):
                mask = self._buffer("mask", (parameter != 0).float())
            self._floats.append((name, kept, mask))

    def _zero(self, site: CodeSite, codes: Tensor) -> Tensor:
        tensor = constant_tensor(site.zero)
        if tensor is None:
            return torch.zeros(())
        zero = tensor_from(tensor).to(torch.float32)
        return zero if site.axis is None else spread(zero, codes, site.axis, site.block)

    def _parameter(self, kind: str, value: Tensor) -> str:
        self._count += 1
        name = f"{kind}_{self._count}"
        self.register_parameter(name, torch.nn.Parameter(value.clone()))
        return name

    def _buffer(self, kind: str, value: Tensor) -> str:
        self._count += 1
        name = f"{kind}_{self._count}"
        self.register_buffer(name, value.clone())
        return name

    @property
    def learns(self) -> bool:
        """Whether there are codes or scales that training may change."""
        return bool(self._sites or self._scales)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        """What is trained; the program's own constants are not."""
        for name, parameter in super().named_parameters(*args, **kwargs):
            if parameter.requires_grad:
                yield name, parameter

    def run(self, feeds: Mapping[str, Any], *, wanted: Iterable[str] = ()) -> dict[str, Any]:
        """The outputs by name, and the tensors named in `wanted`."""
        return self.program.run(feeds, weights=self.constants(), wanted=wanted)

    def constants(self) -> dict[str, Tensor]:
        """The graph's constants as they are learned, by name; codes are whole numbers in floats."""
        found: dict[str, Tensor] = {
            name: scale_of(getattr(self, logarithm), getattr(self, start), factor)
            for name, (logarithm, start, factor) in self._scales.items()
        }
        for latent, mask, site, rule in self._sites:
            found[self._names[site.codes]] = self._codes(latent, mask, site, rule, found)
        for name, bias in self._biases:
            with torch.no_grad():
                steps = self._value(bias.input_scale, found) * self._value(bias.weight_scale, found)
                found[self._names[bias.scale]] = steps
            codes = pass_through(torch.round, getattr(self, name) / steps)
            found[self._names[bias.codes]] = codes.clamp(-MOST_BIAS, MOST_BIAS)
        for name, kept, zeros in self._floats:
            value = getattr(self, kept).to(self.program.parameters_by_name[name].dtype)
            found[name] = value if zeros is None else value * getattr(self, zeros)
        return found

    def _codes(
        self, latent: str, mask: str, site: CodeSite, rule: CodeRule, found: Mapping[str, Tensor]
    ) -> Tensor:
        weight: Tensor = getattr(self, latent)
        scale = self._value(site.scale, found)
        wide = scale if site.axis is None else spread(scale, weight, site.axis, site.block)
        zero = self._zero(site, weight).to(weight.device)
        if mask:
            weight = weight * getattr(self, mask)
        codes = codes_of(weight, wide, rule.low, rule.high, zero=zero)
        if rule.pair_limit is not None and rule.layout is not None:
            with torch.no_grad():
                kept = keep_pairs(codes, weight / wide, rule)
            codes = with_value(codes, kept)
        return codes

    def _value(self, value: ir.Value, found: Mapping[str, Tensor]) -> Tensor:
        learned = found.get(self._names[value])
        if learned is not None:
            return learned
        device = next(iter(super().parameters())).device
        held: Tensor = tensor_from(_tensor_of(value)).to(device, torch.float32)
        return held

    def return_codes(self) -> ir.Model:
        """A copy of the graph with what was learned, in the graph's own types.

        Constants whose value is what it was keep their bytes. Raises UnusableModel where
        training left NaN or infinity.
        """
        copy = copy_model(self.graph)
        values = {name: value for value, name in name_constants(copy).items()}
        with torch.no_grad():
            for name, found in self.constants().items():
                tensor = _tensor_of(values[name])
                if not bool(torch.isfinite(found).all()):
                    raise UnusableModel(f"Training left NaN or infinity in {name!r}.")
                array = array_from(found.contiguous(), int(tensor.dtype))
                if array.tobytes() != tensor.tobytes():
                    put_constant(
                        values[name], ir.Tensor(array, dtype=tensor.dtype, name=tensor.name)
                    )
        return copy


def keep_pairs(codes: Tensor, target: Tensor, rule: CodeRule) -> Tensor:
    """Move neighbouring codes of a weight to the nearest that keep the rule's pair limit.

    codes, target: in the weight's shape, target weight / scale.
    """
    assert rule.layout is not None and rule.pair_limit is not None
    places = torch.from_numpy(rule.layout).to(codes.device)
    grid = IntegerGrid(bits=8, signed=True, symmetric=True, low=rule.low)
    flat, aims = codes.contiguous().reshape(-1), target.contiguous().reshape(-1)
    kept = limit_pairs(flat[places], aims[places], grid, pair_limit=rule.pair_limit)
    found = flat.clone()
    found[places.reshape(-1)] = kept.to(found.dtype).reshape(-1)
    return found.reshape(codes.shape)


def _tensor_of(value: ir.Value) -> ir.TensorProtocol:
    tensor = constant_tensor(value)
    if tensor is None:
        raise UnusableModel(f"Tensor {value.name!r} is read but nothing produces it.")
    return tensor
