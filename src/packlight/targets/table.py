"""The targets, as data. What is fast is where the search begins; on a machine it is measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from packlight.errors import WrongUsage
from packlight.nearest import did_you_mean

Measured = Literal["onnxruntime", "openvino", "browser", "predicted"]
"""How latency is got: in which runtime here, or not on the device at all."""


@dataclass(frozen=True)
class Target:
    """A device and the runtime on it.

    measured: the runtime that latency is measured in; "predicted": the figure is that of this
        machine's processor in onnxruntime, and not the device's.
    static, dynamic: operators that gain from 8-bit activations of either kind.
    blocks: operators with weights in blocks that the runtime accepts, of block_bits bits each.
    activation_bits: widths of static activations that the runtime accepts.
    float16: whether it takes weights in 16-bit floats.
    accuracy_level: for MatMulNBits.
    pair_limit: weights must not saturate 16-bit sums (x86 without VNNI).
    own_file: the runtime has a format of its own, which is written beside model.onnx.
    fast, avoid: for people.
    """

    name: str
    title: str
    runtime: str
    measured: Measured
    fast: tuple[str, ...]
    avoid: tuple[str, ...]
    note: str = ""
    static: frozenset[str] = frozenset({"Conv", "Gemm", "MatMul"})
    dynamic: frozenset[str] = frozenset({"MatMul", "Gemm", "LSTM"})
    blocks: frozenset[str] = frozenset({"MatMul", "Gemm", "Gather"})
    activation_bits: frozenset[int] = frozenset({4, 8, 16})
    block_bits: frozenset[int] = frozenset({2, 4, 8})
    float16: bool = True
    accuracy_level: int = 4
    pair_limit: bool = False
    own_file: bool = False

    @property
    def measured_here(self) -> bool:
        """Whether latency is the target runtime's own, and not predicted."""
        return self.measured != "predicted"


_NOTHING: frozenset[str] = frozenset()
_PREDICTED = "latency is that of this machine's processor, not of the device"

_LAPTOP = Target(
    name="laptop",
    title="Laptop, desktop or server processor",
    runtime="onnxruntime CPU",
    measured="onnxruntime",
    fast=(
        "static int8 for Conv: uint8 activations, int8 weights",
        "dynamic int8 for MatMul and Gemm",
        "4-bit blocks for MatMul with few rows",
    ),
    avoid=("signed activations for Conv", "dynamic int8 for Conv", "float16 arithmetic"),
    note="int8 weights keep a pair limit, so that processors without VNNI do not saturate",
    pair_limit=True,
)
_ANDROID = replace(
    _LAPTOP,
    name="android",
    title="Android phone",
    runtime="onnxruntime CPU, ARM",
    measured="predicted",
    fast=("static int8 with dot-product instructions", "dynamic int8 for MatMul"),
    avoid=("float16 storage for speed",),
    note=f"the same file runs here, but {_PREDICTED}",
    pair_limit=False,
)

_CONVERTED = replace(
    _ANDROID,
    fast=("static int8: signed activations, int8 weights, one scale a channel",),
    avoid=(
        "dynamic int8 and blocks: they are given no form there",
        "weights below 8 bits: they take 8 there",
    ),
    dynamic=_NOTHING,
    blocks=_NOTHING,
    block_bits=frozenset(),
    activation_bits=frozenset({8}),
    own_file=True,
)
"""What is made of model.onnx for another runtime, from static int8, stored int8 and floats."""

TARGETS: tuple[Target, ...] = (
    _LAPTOP,
    replace(
        _LAPTOP,
        name="openvino",
        title="Intel and AMD processors with OpenVINO",
        runtime="OpenVINO CPU",
        measured="openvino",
        fast=(
            "static int8 for Conv; for MatMul too on processors with VNNI",
            "8-bit weights, 4-bit blocks and dynamic int8 for MatMul with few rows",
        ),
        # Measured with 2026.4: a QuantizeLinear to 16 bits does not load, or gives noise.
        avoid=("16-bit activations: refused, or computed wrong",),
        note="needs `pip install packlight[openvino]`; computes in float32, not bfloat16",
        activation_bits=frozenset({4, 8}),
        own_file=True,
    ),
    replace(
        _LAPTOP,
        name="browser",
        title="Web page",
        runtime="onnxruntime-web, WASM, one thread",
        measured="browser",
        fast=("static and dynamic int8", "8-bit and 4-bit weights for small downloads"),
        avoid=(
            "blocks for MatMul: 3 to 13 times slower than float in WASM",
            "16-bit activations",
            "dynamic int8 on WebGPU",
            "files above 2 GB",
        ),
        note="latency needs Chromium and `npm install onnxruntime-web`; accuracy is measured with "
        "onnxruntime's CPU build, which runs the same operators",
        blocks=frozenset({"Gather"}),
    ),
    _ANDROID,
    replace(
        _ANDROID,
        name="raspberry-pi",
        title="Raspberry Pi and other ARM boards",
        avoid=("float16 storage for speed", "large activations: memory is small"),
    ),
    replace(
        _CONVERTED,
        name="litert",
        title="Android phones and boards with LiteRT",
        runtime="LiteRT (once TensorFlow Lite), on the processor",
        note=f"model.tflite lies beside model.onnx and is measured in LiteRT here, with "
        f"`pip install packlight[litert]`; while searching {_PREDICTED}",
    ),
    replace(
        _CONVERTED,
        name="executorch",
        title="Phones and boards with ExecuTorch",
        runtime="ExecuTorch with XNNPACK, on the processor",
        note="model.pte lies beside model.onnx and is measured in ExecuTorch here, with "
        f"`pip install packlight[executorch]`; while searching {_PREDICTED}",
    ),
    replace(
        _CONVERTED,
        name="coreml",
        title="iPhone, iPad and Mac with Core ML",
        runtime="Core ML, iOS 17 or macOS 14 and later",
        note="model.mlpackage.zip lies beside model.onnx, with `pip install packlight[coreml]`; it "
        f"runs on Apple's devices only and is not measured here: {_PREDICTED}",
    ),
    replace(
        _ANDROID,
        name="nvidia",
        title="NVIDIA graphics card",
        runtime="onnxruntime CUDA",
        fast=("4-bit and 8-bit blocks for MatMul", "float16"),
        avoid=(
            "static int8 with uint8 activations: no CUDA kernel, and TensorRT wants signed ones",
            "dynamic int8: it falls back to the processor",
        ),
        note=f"the same file runs here on the processor, but {_PREDICTED}",
        static=_NOTHING,
        dynamic=_NOTHING,
        block_bits=frozenset({4, 8}),
    ),
    replace(
        _ANDROID,
        name="microcontroller",
        title="Microcontroller",
        runtime="TensorFlow Lite Micro or the like, after conversion of the file",
        fast=("static int8: all layers, so that nothing is computed in float",),
        avoid=("float anywhere: often there is no unit for it", "dynamic int8", "blocks"),
        note=f"it does not read ONNX: size and accuracy are those of this file, and {_PREDICTED}",
        dynamic=_NOTHING,
        blocks=_NOTHING,
        block_bits=frozenset(),
        activation_bits=frozenset({8, 16}),
        float16=False,
    ),
)


def find_target(name: str) -> Target:
    """The target of that name. Raises WrongUsage with the nearest name otherwise."""
    for target in TARGETS:
        if target.name == name:
            return target
    names = [target.name for target in TARGETS]
    raise WrongUsage(
        f"There is no target {name!r}{did_you_mean(name, names)}: choose one of "
        f"{', '.join(names)}; `packlight targets` says what they are."
    )
