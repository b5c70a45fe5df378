"""What turning a language model's channels brings to rounding under full second moments.

    pip install -e .[llamacpp,vllm,llm] -r benchmarks/requirements.txt
    python benchmarks/llm_rotation.py --real ../shared/real

prints one Markdown table. A Hadamard matrix behind random signs spreads outliers over all channels
(QuaRot, Ashkboos et al. 2024). It folds into weights, and costs nothing when the model runs, at two
places: between values and attention's output, head by head ("values"), and in the stream between
blocks, once the norms' scales are folded into what reads them ("stream", which unties embedding and
head: those rows are beside an untied original). The model is a Llama of 5.8 million weights.

Columns: mean KL divergence of the next token's probabilities, original || compressed, in nats, with
its 95 % interval (resampling windows); perplexity over the original's; same first choice. GGUF's
types in llama.cpp, schemes for vLLM in transformers, on a book that nobody trained on. Rows do not
make up for each other here.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from int8 import describe_processor
from llm_texts import calibration_windows, test_windows
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from packlight.llm.checkpoint import open_checkpoint
from packlight.llm.compress import compress_checkpoint, uniform_types
from packlight.llm.formats import FORMATS
from packlight.llm.gguf import plain_contents, write_gguf
from packlight.llm.rounding import Settings
from packlight.llm.schemes import compress_folder, find_scheme
from packlight.llm.text import Windows
from packlight.maths.rotation import random_rotation, rotate
from packlight.measure.language import Divergence
from packlight.measure.language_run import measure_divergences
from packlight.runtime.transformers import TRANSFORMERS

Weights = dict[str, NDArray[Any]]
SETTINGS = Settings(rows_make_up=False)
EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}


def untie(weights: Weights, config: dict[str, Any]) -> Weights:
    """A head of its own."""
    return {HEAD: weights[EMBEDDING], **weights}


def turn_values(weights: Weights, config: dict[str, Any]) -> Weights:
    """All heads of a block by one matrix, V and what reads the sum of values."""
    turned, size = dict(weights), config["head_dim"]
    for layer in range(config["num_hidden_layers"]):
        rotation = random_rotation(size, seed=layer)
        values, outputs = (
            f"model.layers.{layer}.self_attn.{one}_proj.weight" for one in ("v", "o")
        )
        across = weights[values].T
        turned[values] = (
            rotate(across.reshape(len(across), -1, size), rotation).reshape(across.shape).T
        )
        after = weights[outputs]
        turned[outputs] = rotate(after.reshape(len(after), -1, size), rotation).reshape(after.shape)
    return turned


def turn_stream(weights: Weights, config: dict[str, Any]) -> Weights:
    """The stream by one matrix: what writes to it, and what reads it through a norm."""
    turned = untie(weights, config)
    rotation = random_rotation(config["hidden_size"], seed=99)

    def fold(norm: str, readers: tuple[str, ...]) -> None:
        scale = turned[norm].astype(np.float64)
        for reader in readers:
            turned[reader] = rotate(turned[reader] * scale, rotation)
        turned[norm] = np.ones_like(scale)

    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}."
        for norm, readers in READERS.items():
            fold(f"{block}{norm}.weight", tuple(f"{block}{one}.weight" for one in readers))
        for writer in ("self_attn.o_proj", "mlp.down_proj"):
            name = f"{block}{writer}.weight"
            turned[name] = rotate(turned[name].T, rotation).T
    fold(NORM, (HEAD,))
    turned[EMBEDDING] = rotate(turned[EMBEDDING], rotation)
    return turned


CHANGES: dict[str, Callable[[Weights, dict[str, Any]], Weights]] = {
    "as it is": lambda weights, config: weights,
    "values turned": turn_values,
    "untied": untie,
    "untied, values and stream turned": lambda weights, config: turn_values(
        turn_stream(weights, config), config
    ),
}


def write_changed(source: Path, folder: Path, change: str) -> None:
    """The same function from other weights, in 32 bits."""
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, folder / name)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    weights = CHANGES[change](load_file(source / "model.safetensors"), config)
    config["tie_word_embeddings"] = HEAD not in weights
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    flat = {name: np.ascontiguousarray(one, np.float32) for name, one in weights.items()}
    save_file(flat, folder / "model.safetensors", metadata={"format": "pt"})


def compress(
    folder: Path, kind: str, windows: Windows, test: Any, originals: dict[str, Path], work: Path
) -> Divergence:
    """Rounds all weights to a type or under a scheme, and runs the result."""
    checkpoint, out = open_checkpoint(folder), work / "out"
    if kind not in FORMATS:
        shutil.rmtree(out, ignore_errors=True)
        scheme = find_scheme(kind)
        compress_folder(checkpoint, out, scheme, windows=windows, settings=SETTINGS)
        original, runtime = originals["folder"], {"runtime": TRANSFORMERS}
    else:
        out = work / "out.gguf"
        out.unlink(missing_ok=True)
        types = uniform_types(checkpoint, kind)
        compress_checkpoint(checkpoint, out, types, windows=windows, settings=SETTINGS)
        original, runtime = originals["file"], {}
    (far,) = measure_divergences(original, [out], test, threads=1, **runtime)
    return far


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real", type=Path, required=True, help="the folder of real models")
    parser.add_argument("--kinds", nargs="+", default=["w8a8", "Q2_K", "w4a16"])
    parser.add_argument("--sequences", type=int, default=8, help="of 1,024 calibration tokens")
    parser.add_argument("--tokens", type=int, default=10_240, help="of the test text")
    options = parser.parse_args()
    model = options.real / "novels-llama"
    checkpoint = open_checkpoint(model / "hf")
    windows = calibration_windows(model, options.sequences)
    test = test_windows(model, options.tokens, 256)
    print("# Channels turned before they are rounded\n")
    print(f"- {describe_processor()}; Python {platform.python_version()}")
    print(f"- {options.sequences} x 1,024 tokens of calibration, {options.tokens:,} of test\n")
    print("| | rounded to | mean KL (95 %) | perplexity | top |\n" + "|---" * 5 + "|")
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        originals = {"folder": model / "hf", "file": work / "original.gguf"}
        write_gguf(originals["file"], checkpoint, plain_contents(checkpoint, "F16"))
        for number, change in enumerate(CHANGES):
            folder = work / str(number)
            write_changed(model / "hf", folder, change)
            for kind in options.kinds:
                print(f"  {change}, {kind} ...", file=sys.stderr, flush=True)
                far = compress(folder, kind, windows, test, originals, work)
                low, high = far.mean_kl_interval_95
                cells = [change, kind, f"{far.mean_kl:.5f} ({low:.5f} to {high:.5f})"]
                cells += [f"{far.perplexity_ratio - 1:+.2%}", f"{far.top_agreement:.2%}"]
                print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
