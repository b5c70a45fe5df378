"""llmcompressor on one language model, in a Python environment of its own.

    python -m venv .llmc && .llmc/bin/pip install llmcompressor==0.14.0.1 torch==2.13.0
    .llmc/bin/python benchmarks/peers/llmcompressor_peer.py HF_FOLDER TOKENS.npy SCHEME OUT

TOKENS.npy: windows of calibration tokens [n, length]. SCHEME: one of SCHEMES, with its usual
settings: GPTQ in order of activation for 4 bits, nearest for the others. Writes a
compressed-tensors folder. It wants another version of transformers than packlight's measuring
does, hence the environment of its own.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

SCHEMES = {
    "w4a16": "W4A16",
    "w8a16": "W8A16",
    "w8a8": "W8A8",
    "fp8": "FP8_DYNAMIC",
}


def main(folder: str, tokens: str, scheme: str, out: str) -> None:
    """Compresses the folder."""
    import torch  # noqa: TID251
    from datasets import Dataset  # type: ignore[import-not-found]
    from llmcompressor import oneshot  # type: ignore[import-not-found]
    from llmcompressor.modifiers.quantization import (  # type: ignore[import-not-found]
        GPTQModifier,
        QuantizationModifier,
    )
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    windows = np.load(tokens, allow_pickle=False)
    length = windows.shape[1]
    rows = {"input_ids": windows.tolist(), "attention_mask": np.ones_like(windows).tolist()}
    settings: dict[str, Any] = {
        "targets": "Linear",
        "ignore": ["lm_head"],
        "scheme": SCHEMES[scheme],
    }
    modifier = GPTQModifier if scheme == "w4a16" else QuantizationModifier
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    oneshot(
        model=model,
        dataset=Dataset.from_dict(rows),
        recipe=modifier(**settings),
        max_seq_length=length,
        num_calibration_samples=len(windows),
    )
    model.save_pretrained(out, save_compressed=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
