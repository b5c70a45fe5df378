"""The targets, as data. What is fast is where the search begins; on a machine it is measured."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace

from packlight.errors import WrongUsage


@dataclass(frozen=True)
class Target:
    """A device and the runtime on it.

    static, dynamic: operators worth trying with 8-bit activations of either kind.
    blocks: operators with weights in blocks. accuracy_level: for MatMulNBits.
    pair_limit: weights must not saturate 16-bit sums (x86 without VNNI).
    fast, avoid: for people. measured_here: whether this machine can stand for the device.
    """

    name: str
    title: str
    runtime: str
    static: frozenset[str]
    dynamic: frozenset[str]
    blocks: frozenset[str]
    accuracy_level: int
    pair_limit: bool
    fast: tuple[str, ...]
    avoid: tuple[str, ...]
    measured_here: bool
    note: str = ""


_CONV = frozenset({"Conv", "Gemm", "MatMul"})
_TOKENS = frozenset({"MatMul", "Gemm", "LSTM"})
_BLOCKS = frozenset({"MatMul", "Gemm", "Gather"})

_ANDROID = Target(
    name="android",
    title="Android phone",
    runtime="onnxruntime CPU, ARM",
    static=_CONV,
    dynamic=_TOKENS,
    blocks=_BLOCKS,
    accuracy_level=4,
    pair_limit=False,
    fast=("static int8 with dot-product instructions", "dynamic int8 for MatMul"),
    avoid=("float16 storage for speed",),
    measured_here=False,
    note="the same file runs here, but latency on the device is not measured",
)

TARGETS: tuple[Target, ...] = (
    Target(
        name="laptop",
        title="Laptop, desktop or server processor",
        runtime="onnxruntime CPU",
        static=_CONV,
        dynamic=_TOKENS,
        blocks=_BLOCKS,
        accuracy_level=4,
        pair_limit=True,
        fast=(
            "static int8 for Conv: uint8 activations, int8 weights",
            "dynamic int8 for MatMul and Gemm",
            "4-bit blocks for MatMul with few rows",
        ),
        avoid=(
            "signed activations for Conv",
            "dynamic int8 for Conv",
            "float16 arithmetic",
        ),
        measured_here=True,
        note="int8 weights keep a pair limit, so that processors without VNNI do not saturate",
    ),
    Target(
        name="browser",
        title="Web page",
        runtime="onnxruntime-web, WASM",
        static=_CONV,
        dynamic=_TOKENS,
        blocks=_BLOCKS,
        accuracy_level=4,
        pair_limit=True,
        fast=("static int8", "8-bit and 4-bit weights for small downloads"),
        avoid=("dynamic int8 on WebGPU", "files above 2 GB"),
        measured_here=False,
        note="figures are measured with onnxruntime's CPU build, which runs the same operators",
    ),
    _ANDROID,
    replace(
        _ANDROID,
        name="raspberry-pi",
        title="Raspberry Pi and other ARM boards",
        avoid=("float16 storage for speed", "large activations: memory is small"),
    ),
)


def find_target(name: str) -> Target:
    """The target of that name. Raises WrongUsage with the nearest name otherwise."""
    for target in TARGETS:
        if target.name == name:
            return target
    names = [target.name for target in TARGETS]
    near = difflib.get_close_matches(name, names, 1, 0.5)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise WrongUsage(
        f"There is no target {name!r}{hint}: choose one of {', '.join(names)}; "
        "`packlight targets` says what they are."
    )
