"""Trains the demo model: a small convolutional classifier of handwritten digits.

    pip install torch==2.13.0 onnx scikit-learn
    python examples/train_digits.py

writes `digits/digits.onnx` and `digits/digits.npz` beside this script and prints
the accuracy on the held-out pictures. The data come with scikit-learn (1,797
scanned digits of 8 x 8 pixels): one half trains the model, the other half is
never seen in training and is shipped as samples. Nothing is chosen by looking at
the held-out half: the number of epochs is fixed beforehand and the last weights
are taken. Seeded; a few minutes on two cores.
"""

from __future__ import annotations

import argparse
import math
import warnings
from pathlib import Path

import numpy as np
import torch  # noqa: TID251  (training is not part of the package)
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn  # noqa: TID251
from torch.nn import functional  # noqa: TID251

HELD_OUT = 900


class Digits(nn.Module):
    """Five 3 x 3 convolutions with batch normalization, one residual sum, a linear head."""

    def __init__(self, *, side: int = 24, width: int = 48, features: int = 64) -> None:
        super().__init__()
        self.side = side
        self.stem = convolution(1, width)
        self.block = nn.Sequential(convolution(width, width), nn.ReLU(), convolution(width, width))
        self.down = convolution(width, features, stride=2)
        self.last = convolution(features, features)
        self.head = nn.Linear(features, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Turns pictures [batch, 1, 8, 8] in 0..1 into logits [batch, 10]."""
        x = functional.interpolate(image, size=(self.side, self.side), mode="bilinear")
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.block(x))
        x = torch.relu(self.down(x))
        x = torch.relu(self.last(x))
        return self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))


def convolution(inputs: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    """Returns a 3 x 3 convolution without bias, and its batch normalization."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
    )


def split_digits(seed: int) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Returns training pictures, held-out pictures ([n, 1, 8, 8] in 0..1), and their labels."""
    digits = load_digits()
    pictures = (digits.images / 16.0).astype(np.float32)[:, None]
    labels = digits.target.astype(np.int64)
    return tuple(
        train_test_split(pictures, labels, test_size=HELD_OUT, random_state=seed, stratify=labels)
    )


def jitter(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Rotates (12 degrees), scales (12 %), shears (10 %) and shifts (0.8 pixels) at random."""
    count = len(pictures)

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    angle = between(-12, 12) * math.pi / 180
    scale = between(0.88, 1.12)
    shear = between(-0.1, 0.1)
    affine = torch.zeros(count, 2, 3)
    affine[:, 0, 0] = scale * torch.cos(angle)
    affine[:, 0, 1] = scale * (shear - torch.sin(angle))
    affine[:, 1, 0] = scale * torch.sin(angle)
    affine[:, 1, 1] = scale * torch.cos(angle)
    affine[:, :, 2] = torch.stack([between(-0.2, 0.2), between(-0.2, 0.2)], dim=1)
    grid = functional.affine_grid(affine, list(pictures.shape), align_corners=False)
    return functional.grid_sample(pictures, grid, align_corners=False)


def train(pictures: Tensor, labels: Tensor, *, epochs: int, seed: int) -> Digits:
    """Trains with AdamW, a one-cycle learning rate and label smoothing; the last weights count."""
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    generator = torch.Generator().manual_seed(seed)
    model = Digits().train()
    batch = 64
    steps = math.ceil(len(pictures) / batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=4e-3, total_steps=epochs * steps
    )
    for epoch in range(epochs):
        total = 0.0
        for chosen in torch.randperm(len(pictures), generator=generator).split(batch):
            logits = model(jitter(pictures[chosen], generator))
            loss = functional.cross_entropy(logits, labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(chosen)
        print(f"epoch {epoch + 1:3d} of {epochs}: loss {total / len(pictures):.4f}", flush=True)
    return model.eval()


def export(model: Digits, path: Path) -> None:
    """Writes the model as ONNX, opset 17, as trained: batch normalization is not folded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter without onnxscript is marked as legacy
        torch.onnx.export(
            model,
            (torch.zeros(1, 1, 8, 8),),
            str(path),
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
            opset_version=17,
            training=torch.onnx.TrainingMode.PRESERVE,
            dynamo=False,
        )


def main() -> None:
    """Trains, states the held-out accuracy and writes the two files."""
    parser = argparse.ArgumentParser(description="Trains packlight's demo model.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "digits")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    train_pictures, held_pictures, train_labels, held_labels = split_digits(options.seed)
    model = train(
        torch.from_numpy(train_pictures),
        torch.from_numpy(train_labels),
        epochs=options.epochs,
        seed=options.seed,
    )
    with torch.inference_mode():
        predicted = model(torch.from_numpy(held_pictures)).argmax(1).numpy()
    right = int((predicted == held_labels).sum())

    options.out.mkdir(parents=True, exist_ok=True)
    export(model, options.out / "digits.onnx")
    np.savez_compressed(options.out / "digits.npz", image=held_pictures, labels=held_labels)
    print(
        f"held-out accuracy {right / len(held_labels):.2%} "
        f"({right} of {len(held_labels)} pictures; trained on {len(train_labels)})"
    )


if __name__ == "__main__":
    main()
