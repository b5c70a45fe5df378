"""LeNet-300-100 and LeNet-5 (as Caffe has it), trained on MNIST in the ordinary way.

Stochastic gradient descent with momentum 0.9 and weight decay 0.0005 as in Caffe's example,
falling to 0 along a cosine, batches of 64, no augmentation. The last 5,000 training
images are left out: a compression may look at them, without labels, as at images the
network has never seen.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Arrays = dict[str, NDArray[Any]]

TRAINED_ON = 55_000
BATCH = 64
EPOCHS = {"lenet-300-100": 20, "lenet-5": 10}
RATE = {"lenet-300-100": 0.05, "lenet-5": 0.02}
WEIGHT_DECAY = 5e-4


def read_mnist(real: Path) -> Arrays:
    """Returns images, float32 [n, 1, 28, 28] in 0..1, and labels, int64 [n]; train and test."""
    with np.load(real / "mnist" / "mnist.npz", allow_pickle=False) as archive:
        found = {name: archive[name] for name in ("x_train", "y_train", "x_test", "y_test")}
    return {
        name: array.reshape(-1).astype(np.int64)
        if name.startswith("y")
        else (array.reshape(-1, 1, 28, 28) / np.float32(255)).astype(np.float32)
        for name, array in found.items()
    }


def train_lenet(name: str, real: Path, work: Path, seed: int = 0) -> Path:
    """Trains a network once and writes it as ONNX. Returns the file, which is kept in `work`."""
    path = work / f"{name}.onnx"
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        weights = _train(name, read_mnist(real), seed)
        onnx.save(_write(name, weights), path)
    return path


def _train(name: str, data: Arrays, seed: int) -> list[NDArray[np.float32]]:
    import torch  # noqa: TID251
    from torch import nn  # noqa: TID251

    torch.manual_seed(seed)
    dense = name == "lenet-300-100"
    layers: list[Any]
    if dense:
        layers = [nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU()]
        layers.append(nn.Linear(100, 10))
    else:
        layers = [nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2)]
        layers += [nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10)]
    model = nn.Sequential(*layers)
    x = torch.from_numpy(data["x_train"][:TRAINED_ON])
    y = torch.from_numpy(data["y_train"][:TRAINED_ON])
    optimizer = torch.optim.SGD(
        model.parameters(), RATE[name], momentum=0.9, weight_decay=WEIGHT_DECAY
    )
    steps = EPOCHS[name] * (len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(EPOCHS[name]):
        order = torch.randperm(len(x))
        for start in range(0, len(x) - BATCH + 1, BATCH):
            batch = order[start : start + BATCH]
            loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return [parameter.detach().numpy() for parameter in model.parameters()]


def _write(name: str, weights: list[NDArray[np.float32]]) -> onnx.ModelProto:
    """The network in ONNX, with names as PyTorch's exporter gives them."""
    nodes, tensors = [], []
    value, left = "image", iter(range(len(weights) // 2))

    def add(operator: str, *names: str, **attributes: Any) -> None:
        nonlocal value
        made = f"{operator.lower()}_{len(nodes)}"
        nodes.append(
            helper.make_node(operator, [value, *names], [made], name=f"node_{made}", **attributes)
        )
        value = made

    def add_layer(operator: str, **attributes: Any) -> None:
        number = next(left)
        names = [f"layer{number}.weight", f"layer{number}.bias"]
        for tensor, own in zip(weights[2 * number : 2 * number + 2], names, strict=True):
            tensors.append(numpy_helper.from_array(tensor, own))
        add(operator, *names, **attributes)

    if name == "lenet-5":
        for _ in range(2):
            add_layer("Conv")
            add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    add("Flatten")
    while len(tensors) < len(weights):
        add_layer("Gemm", transB=1)
        if len(tensors) < len(weights):
            add("Relu")
    graph = helper.make_graph(
        nodes,
        name.replace("-", "_"),
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 28, 28])],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, ["batch", 10])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model
