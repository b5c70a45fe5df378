"""Which quantizers are compared, in which configurations: one literal table.

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
