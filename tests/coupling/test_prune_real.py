"""Real models lose a quarter of the channels of every group, and still run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from coupling_oracle import check_partition, draw_channels, free, session_of, weigh

from packlight.graph.coupling.groups import find_groups
from packlight.graph.model import load_model
from packlight.graph.rewrite.prune import remove_channels
from packlight.graph.rewrite.simplify import simplify
from packlight.plan.prepare import prepare_samples
from packlight.samples import feeds_of

# How many groups can lose channels; none where states, or statistics over all channels, keep them.
SMALL = {
    "cifar10/resnet20": 12,
    "onnx/ad01_autoencoder": 9,
    "onnx/dscnn_kws": 5,
    "onnx/dtln_model_1": 0,
    "onnx/hand_gesture_point_history_classifier_lstm": 2,
    "onnx/mtcnn_onet": 5,
    "onnx/resnet8_cifar10": 6,
    "onnx/silero_vad": 0,
    "onnx/silero_vad_half": 4,
    "onnx/tiny_random_gpt2_past": 5,
    "onnx/vww_mobilenet_96": 14,
    "onnx/wakewords_computer_v2": 0,
    "onnx/whisper_dummy_decoder": 0,
}
LARGE = {
    "cifar10/resnet32": 18,
    "cifar10/resnet44": 24,
    "onnx/deeplab_v3_1_default_1": 27,
    "onnx/onnx_light_light_densenet121": 3,
    "onnx/onnx_light_light_squeezenet": 13,
    "onnx/pytorch_super_resolution": 3,
    "onnx/silero_vad_op18_ifless": 0,
    "onnx/ultraface_version-RFB-320": 25,
    "onnx/yolox_nano": 67,
}


def cases() -> list[object]:
    skip = pytest.mark.skipif(
        os.environ.get("PACKLIGHT_ALL") != "1",
        reason="takes up to a minute: set PACKLIGHT_ALL=1 to run the large models too",
    )
    return [*SMALL.items(), *(pytest.param(*item, marks=skip) for item in LARGE.items())]


@pytest.mark.parametrize(("name", "count"), cases())
def test_a_real_model_loses_channels_and_runs(real: Path, name: str, count: int):
    source = load_model(real / f"{name}.onnx")
    model, _ = simplify(source.ir, check=None)
    groups = find_groups(model)
    check_partition(groups)
    assert len(free(groups)) == count
    assert all(group.pinned for group in groups if group.size > 1 and group not in free(groups))
    removed = draw_channels(groups)
    pruned = remove_channels(model, removed)
    feeds = next(iter(feeds_of(prepare_samples(source, None).samples, (0,), source.inputs)))
    before = session_of(model).run(None, feeds)
    after = session_of(pruned).run(None, feeds)
    assert [array.shape for array in before] == [array.shape for array in after]
    assert [array.dtype for array in before] == [array.dtype for array in after]
    assert (weigh(pruned) < weigh(model)) == bool(count)
