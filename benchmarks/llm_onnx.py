"""Compares 4-bit decoders for onnxruntime of one language model: same text, same runtime.

    pip install -e .[llm] -r benchmarks/requirements.txt
    python benchmarks/llm_onnx.py --real ../shared/real

prints one Markdown table, and packlight's mean KL as a share of each peer's. The model is a Llama
of 5.8 million weights; its decoder with a key/value cache in 32 bits is the original. All files
are run by onnxruntime on the first tokens of a book that nobody trained on or calibrated with.
Every matrix has 4 bits in blocks of 32, with a scale and a zero point a block.

Rows:
- packlight: all layers so, with a text (block by block, full second moments, rows that make up for
  each other) and without; and its own choice of formats, at no more bytes than onnxruntime's files;
- onnxruntime: its quantizer's nearest rounding (Default), its HQQ and its k-quant search, on the
  same decoder. Its embeddings and its head are apart (packlight's share one matrix); both are
  quantized in both.

Columns: bytes of the folder's model; mean KL divergence of the next token's probabilities,
original || file, in nats, with its 95 % interval (resampling windows); top = share of positions
whose most probable token is the original's; perplexity with its ratio to the original's; seconds.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from int8 import describe_processor
from llm_texts import calibration_windows, test_windows
from onnx import numpy_helper

import packlight
from packlight.llm.checkpoint import Checkpoint, open_checkpoint
from packlight.llm.compress import uniform_types
from packlight.llm.onnx.compress import compress_decoder
from packlight.llm.onnx.formats import FLOAT, ONNX
from packlight.llm.text import Windows
from packlight.measure.language import Divergence
from packlight.measure.language_run import measure_divergences
from packlight.runtime.onnx_text import MODEL, ONNX_TEXT

BLOCK = 32
PEERS = ("Default", "HQQ", "KQuant")


@dataclass(frozen=True)
class Row:
    """A folder with a decoder, and what it is worth."""

    name: str
    path: Path
    seconds: float = 0.0
    divergence: Divergence | None = None

    @property
    def size_bytes(self) -> int:
        """Of the graph and its weights."""
        return sum(path.stat().st_size for path in self.path.glob(f"{MODEL}*"))


def make_ours(
    checkpoint: Checkpoint, kind: str, folder: Path, windows: Windows | None
) -> tuple[Path, float]:
    """All layers in one format."""
    began = time.perf_counter()
    folder.mkdir()
    types = uniform_types(checkpoint, kind, ONNX)
    compress_decoder(checkpoint, folder / MODEL, types, windows=windows)
    return folder, time.perf_counter() - began


def make_planned(folder: Path, text: Path, out: Path, size_bytes: int) -> tuple[Path, float]:
    """What one call of packlight makes for a size."""
    began = time.perf_counter()
    result = packlight.compress(folder, target="onnxruntime", data=text, max_size=size_bytes)
    result.save(out)
    return out, time.perf_counter() - began


def make_peer(name: str, original: Path, folder: Path) -> tuple[Path, float]:
    """What onnxruntime's quantizer makes of the original."""
    from onnxruntime.quantization import matmul_nbits_quantizer as quantizer

    model = with_turned_weights(onnx.load(str(original / MODEL)))
    settings: dict[str, Any] = {} if name == "KQuant" else {"block_size": BLOCK}
    both = ("MatMul", "Gather") if name == "Default" else ("MatMul",)
    config = getattr(quantizer, f"{name}WeightOnlyQuantConfig")(
        **settings, op_types_to_quantize=both
    )
    began = time.perf_counter()
    made = quantizer.MatMulNBitsQuantizer(
        model, 4, BLOCK, False, 4, op_types_to_quantize=both, algo_config=config
    )
    made.process()
    seconds = time.perf_counter() - began
    if "Gather" not in both:  # these leave the embeddings as they are: they get the default's
        rest = quantizer.DefaultWeightOnlyQuantConfig(
            block_size=BLOCK, op_types_to_quantize=("Gather",)
        )
        made = quantizer.MatMulNBitsQuantizer(
            made.model.model,
            4,
            BLOCK,
            False,
            4,
            op_types_to_quantize=("Gather",),
            algo_config=rest,
        )
        made.process()
    folder.mkdir()
    made.model.save_model_to_file(str(folder / MODEL), False)
    for path in original.iterdir():
        if not path.name.startswith(MODEL):
            shutil.copyfile(path, folder / path.name)
    return folder, seconds


def with_turned_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same with weights stored as the operators want them, which is all that they find."""
    weights = {one.name: one for one in model.graph.initializer}
    turned = {}
    for node in list(model.graph.node):
        if node.op_type == "Transpose" and node.input[0] in weights:
            array = numpy_helper.to_array(weights[node.input[0]]).T
            turned[node.output[0]] = numpy_helper.from_array(
                np.ascontiguousarray(array), node.output[0]
            )
            model.graph.node.remove(node)
    model.graph.initializer.extend(turned.values())
    used = {name for node in model.graph.node for name in node.input}
    for one in list(model.graph.initializer):
        if one.name not in used:
            model.graph.initializer.remove(one)
    return model


def make_all(options: argparse.Namespace, work: Path) -> Iterator[Row]:
    """Yields every row with its folder; the first is the original."""
    model = options.real / "novels-llama"
    text = model / "text" / "train_sample.txt"
    checkpoint = open_checkpoint(model / "hf")
    original, _ = make_ours(checkpoint, FLOAT, work / "original", None)
    yield Row("original, float32", original)
    least = 0
    for name in PEERS:
        print(f"  onnxruntime {name} ...", file=sys.stderr, flush=True)
        row = Row(f"onnxruntime {name}", *make_peer(name, original, work / name))
        least = min(least or row.size_bytes, row.size_bytes)
        yield row
    windows = calibration_windows(model, options.sequences)
    for name, seen in (("without a text", None), ("with a text", windows)):
        print(f"  packlight {name} ...", file=sys.stderr, flush=True)
        found = make_ours(checkpoint, f"int4-{BLOCK}", work / name.replace(" ", "-"), seen)
        yield Row(f"packlight, {name}", *found)
    if options.planned:
        print("  packlight, its own formats ...", file=sys.stderr, flush=True)
        found = make_planned(model / "hf", text, work / "planned", least)
        yield Row("packlight, its own formats", *found)


def measure(rows: list[Row], options: argparse.Namespace) -> list[Row]:
    """Runs all folders on the test text."""
    model = options.real / "novels-llama"
    windows = test_windows(model, options.tokens, options.window)
    print("  running ...", file=sys.stderr, flush=True)
    paths = [row.path for row in rows]
    far = measure_divergences(paths[0], paths, windows, threads=1, runtime=ONNX_TEXT)
    return [replace(row, divergence=one) for row, one in zip(rows, far, strict=True)]


def show_row(row: Row) -> str:
    """Returns a row as Markdown."""
    far = row.divergence
    assert far is not None
    low, high = far.mean_kl_interval_95
    cells = [
        f"{row.size_bytes:,}",
        f"{far.mean_kl:.5f} ({low:.5f} to {high:.5f})",
        f"{far.top_agreement:.2%}",
        f"{far.perplexity_compressed:.2f} ({far.perplexity_ratio - 1:+.2%})",
        f"{row.seconds:.0f}" if row.seconds else "",
    ]
    return f"| {row.name} | " + " | ".join(cells) + " |"


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real", type=Path, required=True, help="the folder of real models")
    parser.add_argument("--sequences", type=int, default=128, help="of 1,024 calibration tokens")
    parser.add_argument("--tokens", type=int, default=10_240, help="of the test text")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--no-planned", dest="planned", action="store_false")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        rows = measure(list(make_all(options, Path(scratch))), options)
        print("# Decoders for onnxruntime compared\n")
        print(f"- {datetime.datetime.now(datetime.UTC):%Y-%m-%d}; {describe_processor()}")
        print(f"- load average {os.getloadavg()[0]:.1f}; Python {platform.python_version()}")
        print(f"- {ONNX_TEXT.name()}; {options.tokens:,} tokens of test\n")
        heads = ("", "bytes", "mean KL (95 %)", "top", "perplexity", "s")
        print("| " + " | ".join(heads) + " |")
        print("|---" * len(heads) + "|")
        for row in rows:
            print(show_row(row))
        print()
        for ours in rows[1 + len(PEERS) :]:
            for peer in rows[1 : 1 + len(PEERS)]:
                share = ours.divergence.mean_kl / peer.divergence.mean_kl
                print(f"- {ours.name}: {share:.2f} of the mean KL of {peer.name}")


if __name__ == "__main__":
    main()
