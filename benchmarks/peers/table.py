"""Which quantizers are compared, in which configurations: one literal table each.

Olive is left out: its static quantization of ONNX files is a front end to
onnxruntime's `quantize_static`, which has rows of its own here.
"""

from __future__ import annotations

from peers import Peer
from peers.nncf_peer import NncfPeer
from peers.onnxruntime_peer import OnnxRuntimePeer
from peers.packlight_peer import PacklightPeer

PEERS: tuple[Peer, ...] = (
    *(
        OnnxRuntimePeer(activations, weights, calibrator, reduce_range=reduce_range)
        for activations, weights, reduce_range in (
            ("U8", "S8", False),
            ("U8", "S8", True),
            ("U8", "U8", False),
            ("S8", "S8", False),
        )
        for calibrator in ("MinMax", "Entropy", "Percentile")
    ),
    NncfPeer(),
    NncfPeer(overflow_fix=True),
    PacklightPeer(),
)

# What `--quick` runs: one row of each kind that matters on a CPU with or without VNNI.
QUICK = (
    "onnxruntime U8S8 MinMax",
    "onnxruntime U8S8 MinMax reduce_range",
    "onnxruntime U8U8 Percentile",
    "NNCF",
    "packlight",
)

# `fewbits.py`: those that give 4-bit weights to convolutions of an ONNX file, by its widths.
# NNCF 3.4 does so for none (its 4 bits are for MatMul and Gemm alone, and its quantization of
# ONNX files refuses `num_bits=4`); onnxruntime's MatMulNBits quantizer knows no convolutions.
FEW_BITS: dict[str, tuple[Peer, ...]] = {
    "W4A8": tuple(OnnxRuntimePeer("U8", "S4", each) for each in ("MinMax", "Percentile")),
    "W4A4": tuple(
        OnnxRuntimePeer("U4", "S4", each, float_ends=True) for each in ("MinMax", "Percentile")
    ),
}
