"""A run as it could have been: resnet20 in 8 bits, 25 layers, 12 trials."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from packlight.measure.evidence import (
    Budget,
    Evidence,
    LatencyEvidence,
    LayerEvidence,
    MetricEvidence,
    Pair,
    Skipped,
    Trial,
)


def resnet_layers() -> tuple[LayerEvidence, ...]:
    layers = [LayerEvidence("conv1", "Conv", "int8", 44.1, "", 1792, 560, 0.031, 0.018)]
    for stage, (width, ms) in enumerate([(16, 0.024), (32, 0.021), (64, 0.019)], start=1):
        for block in range(3):
            for conv in (1, 2):
                ins = width // 2 if stage > 1 and block == 0 and conv == 1 else width
                size = 4 * (9 * ins * width + width)
                kept = (stage, block, conv) == (3, 2, 2)
                layers.append(
                    LayerEvidence(
                        name=f"layer{stage}.{block}.conv{conv}/Conv",
                        op="Conv",
                        choice="float32" if kept else "int8",
                        error_db=38.0 - 2.1 * stage - 1.3 * block + 0.9 * conv,
                        reason="its 8 bits alone cost 0.3 % of agreement" if kept else "",
                        bytes_original=size,
                        bytes_compressed=size if kept else size // 4 + 8 * width,
                        ms_original=ms,
                        ms_compressed=ms if kept else ms * 0.44,
                    )
                )
    for stage in (2, 3):
        width = 16 * 2 ** (stage - 1)
        size = 4 * (width * width // 2 + width)
        layers.append(
            LayerEvidence(
                f"layer{stage}.0.downsample.0/Conv", "Conv", "int8", 41.0, "", size, size // 4 + 64
            )
        )
    layers.append(
        LayerEvidence("avgpool", "GlobalAveragePool", "int8", 51.0, "", 0, 0, 0.004, 0.003)
    )
    layers.append(
        LayerEvidence(
            "fc/Gemm",
            "Gemm",
            "float32",
            None,
            "too small to gain from 8 bits",
            2600,
            2600,
            0.003,
            0.003,
        )
    )
    layers += [
        LayerEvidence("relu_out/Add", "Add", "int8", 47.5, "", 0, 0, 0.006, 0.002),
        LayerEvidence(
            "norm/Mul", "Mul", "float32", None, "no int8 kernel on this target", 256, 256
        ),
    ]
    return tuple(layers)


def resnet_trials() -> tuple[Trial, ...]:
    return (
        Trial("simplified only", 1_071_300, 0.0, 118.0, 0.97, note="BatchNorm folded"),
        Trial("float16 storage", 551_200, 0.0, 71.2, 1.02),
        Trial("int8, min-max", 331_900, 0.0098, 28.3, 0.47),
        Trial("int8, percentile", 331_900, 0.0117, 27.6, 0.47),
        Trial("int8, squared error", 331_950, 0.0078, 30.4, 0.47),
        Trial("int8, equalized", 332_400, 0.0059, 31.8, 0.47),
        Trial("int8, equalized, bias corrected", 332_400, 0.0049, 32.5, 0.47),
        Trial("same, fc in float", 334_100, 0.0039, 33.0, 0.48),
        Trial("same, last conv in float", 443_000, 0.002, 34.9, 0.53, chosen=True),
        Trial("same, first conv in 16 bits", 446_000, 0.002, 35.2, 0.71, note="slower"),
        Trial("weights int4", 198_000, 0.117, 14.8, 1.31, note="outside the budget, and slower"),
        Trial("weights int8", 329_800, 0.002, 37.9, 1.04, note="not faster"),
    )


def build_evidence(**changes: object) -> Evidence:
    evidence = Evidence(
        verdict="met",
        reason="Proven to be within the budget, and of those that are it is the fastest.",
        model="resnet20.onnx",
        target="laptop",
        budget=Budget(max_drop=0.01),
        size_bytes=Pair(1_094_689, 331_702),
        metric=MetricEvidence(
            name="top-1 agreement",
            samples=2000,
            original=1.0,
            compressed=0.994,
            drop=0.006,
            drop_interval_95=(0.0031, 0.0098),
            proven=True,
            noise_db=33.1,
            agreement=0.994,
        ),
        latency_ms=LatencyEvidence(
            "onnxruntime 1.32.0 CPU", 1, 0.481, 0.301, 0.626, (0.611, 0.639)
        ),
        latency_all_threads_ms=LatencyEvidence(
            "onnxruntime 1.32.0 CPU", 2, 0.291, 0.196, 0.674, (0.633, 0.712)
        ),
        peak_memory_bytes=Pair(61_300_000, 58_900_000),
        layers=resnet_layers(),
        not_compressed=(
            Skipped("layer3.2.conv2/Conv", "its 8 bits alone cost 0.3 % of agreement"),
            Skipped("fc/Gemm", "too small to gain from 8 bits"),
            Skipped("norm/Mul", "no int8 kernel on this target"),
            *(Skipped(f"relu_{i}", "fused into the convolution before it") for i in range(19)),
        ),
        trials=resnet_trials(),
        notes=(
            "This processor has no VNNI: weights use 7 bits, since 8 would saturate.",
            "Sample values lie between 0 and 1, taken as they are.",
        ),
        inputs=("input: float32[batch, 3, 32, 32]",),
        samples="3,024 pictures from cifar10/: 512 to calibrate, 512 to search, 2,000 to prove",
        environment={
            "packlight": "0.1.0",
            "onnxruntime": "1.32.0",
            "processor": "AMD EPYC 7763, 2 cores, AVX2, no VNNI",
            "system": "Linux 6.1, Python 3.11.7",
        },
        seed=0,
        seconds=47.3,
    )
    return replace(evidence, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def make_evidence() -> Callable[..., Evidence]:
    """Builds the run with some fields changed."""
    return build_evidence


@pytest.fixture
def evidence() -> Evidence:
    """The run as it is."""
    return build_evidence()
