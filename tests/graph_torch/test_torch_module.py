"""The graph as a module: it computes what the runtime computes, and can be trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed (packlight[heal])")

import packlight  # noqa: E402


def test_resnet20_gives_what_the_runtime_gives_and_trains(real: Path) -> None:
    path = real / "cifar10" / "resnet20.onnx"
    module = packlight.to_torch(path)
    x = np.random.default_rng(0).standard_normal((8, 3, 32, 32)).astype(np.float32)
    session = onnxruntime.InferenceSession(path)
    expected = session.run(None, {session.get_inputs()[0].name: x})[0]
    with torch.no_grad():
        found = module(torch.from_numpy(x))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-4)
    labels = torch.arange(8)
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-5)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(module(torch.from_numpy(x)), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
