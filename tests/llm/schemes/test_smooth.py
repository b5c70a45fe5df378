"""Norms that are divided by powers of two, and the layers that read them multiplied by them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folder_bench import llama_tensors, write_llama
from language_zoo import make_model

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from packlight.errors import UnusableModel  # noqa: E402
from packlight.llm import smooth  # noqa: E402
from packlight.llm.blocks import run_block, walk_block  # noqa: E402
from packlight.llm.blocks_wiring import read_wiring  # noqa: E402
from packlight.llm.checkpoint import Checkpoint, open_checkpoint  # noqa: E402
from packlight.llm.checkpoint.parts import Scales  # noqa: E402
from packlight.llm.checkpoint.safetensors import read_shard  # noqa: E402
from packlight.llm.checkpoint.scaled import scale_tensors  # noqa: E402
from packlight.llm.checkpoint.stored import read_rows  # noqa: E402
from packlight.llm.compress_blocks import load_weights  # noqa: E402
from packlight.llm.rounding import Settings  # noqa: E402
from packlight.llm.schemes import compress_folder, find_scheme  # noqa: E402
from packlight.llm.schemes.sources import to_folder_rows  # noqa: E402
from packlight.llm.text import Windows  # noqa: E402
from packlight.maths.balance import Smoothing  # noqa: E402

FAR = 5  # the input that is far above the others


def drawn(count: int = 24) -> Windows:
    tokens = np.random.default_rng(0).integers(0, 290, (count, 32)).astype(np.int32)
    return Windows("drawn", tokens[:-2], tokens[-2:-1], tokens[-1:], tokens.size)


def with_outlier(folder: Path) -> Path:
    """A Llama whose first attention's norm makes one input 200 times as large, as LLMs' do."""
    tensors = llama_tensors()
    first = "model.layers.0."
    tensors[f"{first}input_layernorm.weight"][FAR] = 200
    for name in "qkv":
        tensors[f"{first}self_attn.{name}_proj.weight"][:, FAR] /= 200
    return write_llama(folder, tensors)


def reaches(checkpoint: Checkpoint, layer: int) -> Any:
    """What reaches the attention of a block, from random states; and its weights."""
    states = torch.randn((4, 16, 64), generator=torch.Generator().manual_seed(0))
    weights, wiring = load_weights(checkpoint, layer), read_wiring(checkpoint)
    with torch.no_grad():
        site = next(walk_block(weights, wiring, layer, states))
    return site.inputs.flatten(0, -2).numpy(), weights["attn_q.weight"].numpy()


def rounded(array: Any) -> Any:
    step = np.abs(array).max(axis=1, keepdims=True) / 127
    return np.round(array / step) * step


def test_an_input_far_above_the_others_no_longer_takes_their_digits(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(with_outlier(tmp_path / "model"))
    found = smooth.smooth_inputs(checkpoint, drawn(), scratch=tmp_path)
    assert found.fingerprint != checkpoint.fingerprint
    assert "SmoothQuant" in found.notes[-1] and found.notes[:-1] == checkpoint.notes
    view = found.parts["blk.0.attn_q.weight"].scales
    assert view is not None and view.inputs is not None and view.outputs is None
    scales = view.inputs
    assert scales[FAR] == scales.max() >= 16 * np.median(scales)
    np.testing.assert_array_equal(np.log2(scales), np.round(np.log2(scales)))
    np.testing.assert_array_equal(
        found.read("blk.0.attn_norm.weight") * scales, checkpoint.read("blk.0.attn_norm.weight")
    )
    errors = []
    for one in (checkpoint, found):
        x, weight = reaches(one, 0)
        exact = x @ weight.T
        errors.append(((rounded(x) @ rounded(weight).T - exact) ** 2).sum() / (exact**2).sum())
    assert errors[1] < 0.05 * errors[0]
    assert not [*tmp_path.glob("states-*")]


@pytest.mark.parametrize(
    ("family", "norms", "layers"),
    [
        *(("llama-biases", 4, 2), ("mixtral", 4, 0), ("qwen2-moe", 4, 0), ("qwen3", 4, 2)),
        *(("phi3", 4, 2), ("gpt2", 4, 0), ("gemma2", 0, 3)),
    ],
)
def test_every_architecture_still_does_what_it_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, norms: int, layers: int
) -> None:
    """With any powers of two: whatever reads a norm is known, or the block would be left alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_model(tmp_path / "model", family)
    checkpoint = open_checkpoint(tmp_path / "model")

    def drawn_scales(weights: Any, activations: Any) -> Smoothing:
        draw = np.random.default_rng(len(activations))
        return Smoothing(2.0 ** draw.integers(-3, 4, activations.shape[1]), "ranges", 1, 0, 1)

    monkeypatch.setattr(smooth, "search_token_smoothing", drawn_scales)
    found = smooth.smooth_inputs(checkpoint, drawn(), scratch=tmp_path)
    changed = [name for name, part in found.parts.items() if part.scales is not None]
    assert len([name for name in changed if name.endswith("_norm.weight")]) == norms
    assert len([name for name in changed if name.endswith("ffn_down.weight")]) == layers
    wiring = read_wiring(checkpoint)
    states = torch.randn((2, 16, wiring.width), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for layer in range(wiring.layers):
            before, after = (
                run_block(load_weights(one, layer), wiring, layer, states)
                for one in (checkpoint, found)
            )
            torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def test_a_block_that_would_do_something_else_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(with_outlier(tmp_path / "model"))
    monkeypatch.setitem(smooth.READERS, "attn_norm", ("attn_q", "attn_k"))
    found = smooth.smooth_inputs(checkpoint, drawn(), scratch=tmp_path)
    assert all(
        part.scales is None for name, part in found.parts.items() if name.startswith("blk.0.")
    )


def test_the_folder_holds_norms_and_weights_that_belong_together(tmp_path: Path) -> None:
    model = with_outlier(tmp_path / "model")
    (model / "tokenizer.json").write_text("{}")
    checkpoint = open_checkpoint(model)
    settings = Settings(curvature_tokens=256)
    made = compress_folder(
        checkpoint, tmp_path / "out", find_scheme("w8a8"), windows=drawn(), settings=settings
    )
    assert any("SmoothQuant" in note for note in made.notes)
    (shard,) = (tmp_path / "out").glob("*.safetensors")
    tensors = read_shard(shard).tensors
    found = smooth.smooth_inputs(checkpoint, drawn(), scratch=tmp_path)
    for name, source in (
        ("blk.0.attn_norm.weight", "model.layers.0.input_layernorm.weight"),
        ("blk.1.ffn_norm.weight", "model.layers.1.post_attention_layernorm.weight"),
    ):
        written = read_rows(tensors[source], 0, 1)[0]
        np.testing.assert_allclose(written, found.read(name), rtol=2**-8)
    content = shard.read_bytes()
    for name, source in (
        ("blk.0.attn_q.weight", "model.layers.0.self_attn.q_proj"),
        ("blk.1.ffn_up.weight", "model.layers.1.mlp.up_proj"),
        ("blk.1.ffn_down.weight", "model.layers.1.mlp.down_proj"),
    ):
        codes, step = tensors[f"{source}.weight"], tensors[f"{source}.weight_scale"]
        data = content[codes.offset : codes.offset + codes.size_bytes]
        rows = np.frombuffer(data, np.int8).reshape(codes.shape) * read_rows(step, 0, step.rows)
        weight = to_folder_rows(found.parts[name], found.read(name))
        assert np.abs(rows - weight).mean() < 0.02 * np.abs(weight).mean()
    plain = compress_folder(
        checkpoint,
        tmp_path / "plain",
        find_scheme("w8a8"),
        windows=drawn(),
        settings=Settings(curvature_tokens=256, smoothing=False),
    )
    assert not any("SmoothQuant" in note for note in plain.notes)


def test_what_is_not_finite_is_named(tmp_path: Path) -> None:
    tensors = llama_tensors()
    tensors["model.layers.0.mlp.down_proj.weight"] *= 1e37  # the second block gets infinity
    checkpoint = open_checkpoint(write_llama(tmp_path / "model", tensors))
    with pytest.raises(UnusableModel, match=r"block 1: what reaches attn_k\.weight, .*finite"):
        smooth.smooth_inputs(checkpoint, drawn(), scratch=tmp_path)
    assert not [*tmp_path.glob("states-*")]


def test_scales_of_another_width_are_refused(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_llama(tmp_path / "model"))
    with pytest.raises(ValueError, match=r"of shape \[64\] cannot be scaled by \(3,\)"):
        scale_tensors(checkpoint, {"output_norm.weight": Scales(np.ones(3, np.float32))}, "")
