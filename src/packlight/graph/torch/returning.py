"""Trained parameters, put back into a copy of the graph under their own names."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import onnx_ir as ir
import torch

from packlight.errors import UnusableModel, WrongUsage
from packlight.graph.model import Model
from packlight.graph.save import copy_model
from packlight.graph.torch.module import GraphModule
from packlight.graph.torch.naming import constant_tensor, name_constants
from packlight.graph.torch.values import array_from

AnyModel = TypeVar("AnyModel", Model, ir.Model)


def return_parameters(module: GraphModule, model: AnyModel) -> AnyModel:
    """A copy of `model` with the parameters of `module`, under their names, in the graph's types.

    model: the one that the module was made of. A constant whose value is what it was keeps its
    bytes. Raises UnusableModel where training left NaN or infinity, WrongUsage where a parameter
    is not in the model or has another shape.
    """
    if isinstance(model, Model):
        return replace(model, ir=return_parameters(module, model.ir))
    copy = copy_model(model)
    values = {name: value for value, name in name_constants(copy).items()}
    for name, parameter in module.parameters_by_name.items():
        value = values.get(name)
        constant = constant_tensor(value)
        if value is None or constant is None:
            raise WrongUsage(
                f"The model has no constant {name!r}: give the model that the module was made of."
            )
        shape = tuple(constant.shape.numpy())
        if shape != tuple(parameter.shape):
            raise WrongUsage(
                f"Parameter {name!r} has shape {list(parameter.shape)}, the model's has "
                f"{list(shape)}: give the model that the module was made of."
            )
        if not bool(torch.isfinite(parameter).all()):
            raise UnusableModel(
                f"Training left NaN or infinity in {name!r}: take a smaller learning rate."
            )
        array = array_from(parameter, int(constant.dtype))
        if array.tobytes() != constant.tobytes():
            put_constant(value, ir.Tensor(array, dtype=constant.dtype, name=constant.name))
    return copy


def put_constant(value: ir.Value, tensor: ir.TensorProtocol) -> None:
    """Make a constant, an initializer or a Constant node's output, another tensor."""
    producer = value.producer()
    if producer is None:
        value.const_value = tensor
        return
    producer.attributes.clear()
    producer.attributes["value"] = ir.AttrTensor("value", tensor)
