from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="blocks are computed with PyTorch")
pytest.importorskip("transformers", reason="its models are the oracle")

from language_zoo import FAMILIES, VOCABULARY, make_model  # noqa: E402

from packlight.errors import UnusableModel  # noqa: E402
from packlight.llm.blocks import (  # noqa: E402
    embed_tokens,
    head_inputs,
    head_logits,
    run_block,
    walk_block,
)
from packlight.llm.blocks_wiring import wiring_of  # noqa: E402
from packlight.llm.checkpoint import open_checkpoint  # noqa: E402
from packlight.llm.compress import compress_checkpoint, uniform_types  # noqa: E402
from packlight.llm.compress_blocks import load_weights, read_wiring  # noqa: E402

# Windows that are shorter than the text, and heads whose size is not the width over their number.
CHANGES: dict[str, dict[str, Any]] = {"mistral": {"sliding_window": 12, "head_dim": 16}}


def run_all(checkpoint: Any, tokens: Any) -> Any:
    wiring = read_wiring(checkpoint)
    outer = load_weights(checkpoint, None)
    x = embed_tokens(outer, wiring, tokens)
    for layer in range(wiring.layers):
        x = run_block(load_weights(checkpoint, layer), wiring, layer, x)
    return head_logits(outer, wiring, head_inputs(outer, wiring, x))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore")
def test_logits_are_those_of_transformers(family: str, tmp_path: Path):
    model = make_model(tmp_path, family, **CHANGES.get(family, {}))
    tokens = torch.from_numpy(np.random.default_rng(1).integers(0, VOCABULARY, (2, 40)))
    with torch.no_grad():
        expected = model(tokens).logits
        found = run_all(open_checkpoint(tmp_path), tokens)
    assert float(expected.std()) > 0.1
    assert float((found - expected).abs().max()) < 1e-4 * float(expected.abs().max())


def test_a_weight_replaced_at_its_site_is_used(tmp_path: Path):
    make_model(tmp_path, "llama")
    checkpoint = open_checkpoint(tmp_path)
    wiring, weights = read_wiring(checkpoint), load_weights(checkpoint, 0)
    x = torch.randn((1, 5, 64), generator=torch.Generator().manual_seed(0))
    walk = walk_block(weights, wiring, 0, x)
    names = []
    while True:
        try:
            site = next(walk)
        except StopIteration as end:
            outputs = end.value
            break
        names.append(site.names)
        for name in site.names:
            weights[name] = torch.zeros_like(weights[name])
    assert names == [
        ("attn_q.weight", "attn_k.weight", "attn_v.weight"),
        ("attn_output.weight",),
        ("ffn_gate.weight", "ffn_up.weight"),
        ("ffn_down.weight",),
    ]
    assert torch.equal(outputs, x)


def test_factors_of_rotation_that_do_not_fit_are_refused(tmp_path: Path):
    make_model(tmp_path, "llama")
    with pytest.raises(UnusableModel, match="3 factors of rotation were found for 8"):
        wiring_of(open_checkpoint(tmp_path).config, [1.0, 2.0, 3.0])


@pytest.mark.parametrize("family", ["llama-3.1", "mixtral", "qwen2-yarn", "gemma3", "gpt2"])
@pytest.mark.filterwarnings("ignore")
def test_a_gguf_file_gives_the_logits_of_its_folder(family: str, tmp_path: Path):
    make_model(tmp_path, family)
    folder = open_checkpoint(tmp_path)
    compress_checkpoint(folder, tmp_path / "m.gguf", uniform_types(folder, "F32"))
    tokens = torch.from_numpy(np.random.default_rng(1).integers(0, VOCABULARY, (2, 40)))
    with torch.no_grad():
        expected = run_all(folder, tokens)
        found = run_all(open_checkpoint(tmp_path / "m.gguf"), tokens)
    assert float((found - expected).abs().max()) < 1e-4 * float(expected.abs().max())
