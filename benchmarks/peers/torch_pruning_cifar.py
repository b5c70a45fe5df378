"""torch-pruning on the CIFAR networks: the inner layers of all blocks, by their L2 norms."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from packlight.graph.layers import find_layers
from packlight.graph.model import Graph
from packlight.graph.walk import constant_of

Floats = NDArray[np.float32]


def thin_by_magnitude(
    graph: Graph, pictures: Floats, share: float, folder: Path
) -> list[tuple[str, Path, float]]:
    """What it was, the ONNX file and the seconds: as it is, and with means corrected on pictures.

    graph: a simplified CIFAR network, of which the share goes from every block's inner layer.
    """
    import torch  # noqa: TID251
    import torch_pruning  # type: ignore[import-not-found]

    began = time.perf_counter()
    net = _resnet(graph)
    inner = [block.first for stage in net.stages for block in stage]
    ignored = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    ignored = [module for module in ignored if module not in inner]
    pruner = torch_pruning.pruner.MagnitudePruner(
        net,
        torch.zeros(1, 3, 32, 32),
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=share,
        ignored_layers=ignored,
    )
    pruner.step()
    rows = []
    for corrected in (False, True):
        if corrected:
            _correct_means(net, _resnet(graph), pictures)
        label = "torch-pruning, means corrected" if corrected else "torch-pruning"
        path = folder / f"peer-{share:g}-{corrected:d}.onnx"
        torch.onnx.export(
            net.eval(), (torch.zeros(2, 3, 32, 32),), path, dynamo=False, opset_version=17,
            input_names=["image"], output_names=["logits"],
            dynamic_axes={"image": {0: "n"}, "logits": {0: "n"}},
        )  # fmt: skip
        rows.append((label, path, time.perf_counter() - began))
    return rows


def _resnet(graph: Graph) -> Any:
    """The network in PyTorch, with the weights of the simplified graph."""
    import torch  # noqa: TID251
    from torch import nn  # noqa: TID251
    from torch.nn import functional  # noqa: TID251

    layers = find_layers(graph)
    depth = (len(layers) - 2) // 6

    class Block(nn.Module):  # type: ignore[misc]
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.stride = 1 if inputs == outputs else 2
            self.first = nn.Conv2d(inputs, outputs, 3, self.stride, 1)
            self.second = nn.Conv2d(outputs, outputs, 3, 1, 1)
            self.more = (outputs - inputs) // 2

        def forward(self, x: Any) -> Any:
            y = self.second(functional.relu(self.first(x)))
            if self.stride == 2:
                x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.more, self.more))
            return functional.relu(x + y)

    class ResNet(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 16, 3, 1, 1)
            widths = [(16, 16), (16, 32), (32, 64)]
            self.stages = nn.ModuleList(
                nn.Sequential(Block(a, b), *(Block(b, b) for _ in range(depth - 1)))
                for a, b in widths
            )
            self.head = nn.Linear(64, 10)

        def forward(self, x: Any) -> Any:
            x = functional.relu(self.stem(x))
            for stage in self.stages:
                x = stage(x)
            return self.head(x.mean((2, 3)))

    net = ResNet()
    modules = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        for module, layer in zip(modules, layers, strict=True):
            weight, bias = constant_of(layer.weight), constant_of(layer.bias)
            assert weight is not None and bias is not None
            array = weight.numpy()
            array = array.T if layer.kind == "Gemm" and layer.out_axis == 1 else array
            module.weight.copy_(torch.from_numpy(array.copy()))
            module.bias.copy_(torch.from_numpy(bias.numpy().copy()))
    return net.eval()


def _correct_means(net: Any, original: Any, pictures: Floats) -> None:
    """Move the biases of second layers, in order, so that blocks give the original's means."""
    import torch  # noqa: TID251

    with torch.no_grad():
        x = torch.from_numpy(np.ascontiguousarray(pictures))
        for mine, theirs in zip(net.stages, original.stages, strict=True):
            for block, other in zip(mine, theirs, strict=True):
                means = []
                for whole, one in ((net, block), (original, other)):
                    seen: list[Any] = []
                    hook = one.second.register_forward_hook(
                        lambda _m, _i, out, seen=seen: seen.append(out.mean((0, 2, 3)))
                    )
                    for start in range(0, len(x), 256):
                        whole(x[start : start + 256])
                    hook.remove()
                    means.append(torch.stack(seen).mean(0))
                block.second.bias += means[1] - means[0]
