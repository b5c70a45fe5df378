"""Checkpoints against their configuration: shapes, roles, order of rows, unknown architectures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folder_bench import llama_tensors, write_llama
from numpy.typing import NDArray

from packlight.errors import UnusableModel
from packlight.llm.checkpoint import open_checkpoint

Q = "model.layers.1.self_attn.q_proj.weight"


def test_tensors_have_gguf_names_roles_and_blocks(tmp_path: Path):
    checkpoint = open_checkpoint(write_llama(tmp_path))
    assert len(checkpoint.tensors) == 3 + 2 * 9
    info = checkpoint.tensors["blk.1.attn_k.weight"]
    assert (info.shape, info.dtype, info.role) == ((32, 64), "F32", "linear")
    assert info.source == "model.layers.1.self_attn.k_proj.weight"
    assert checkpoint.block_of("blk.1.attn_k.weight") == 1
    assert checkpoint.block_of("token_embd.weight") is None
    assert checkpoint.with_role("embedding", "output") == ("token_embd.weight", "output.weight")
    assert len(checkpoint.with_role("linear")) == 14
    assert len(checkpoint.with_role("norm")) == 5
    assert checkpoint.config.layers == 2 and checkpoint.config.kv_heads == 2
    assert checkpoint.size_bytes == 4 * sum(info.weights for info in checkpoint.tensors.values())


def rotate_halves(x: NDArray[np.floating], angle: NDArray[np.floating]) -> NDArray[np.floating]:
    """transformers: number j of a head turns with number j + width / 2."""
    a, b = np.split(x, 2)
    return np.concatenate(
        [a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)]
    )


def rotate_pairs(x: NDArray[np.floating], angle: NDArray[np.floating]) -> NDArray[np.floating]:
    """llama.cpp: number 2 j of a head turns with number 2 j + 1."""
    out = np.empty_like(x)
    out[0::2] = x[0::2] * np.cos(angle) - x[1::2] * np.sin(angle)
    out[1::2] = x[1::2] * np.cos(angle) + x[0::2] * np.sin(angle)
    return out


def test_rows_of_q_and_k_are_in_the_order_that_llama_cpp_rotates(tmp_path: Path):
    checkpoint = open_checkpoint(write_llama(tmp_path))
    stored, x = llama_tensors(), np.random.default_rng(1).standard_normal(64)
    angles = [np.linspace(0.1, 3, 8), np.linspace(2, -1, 8)]
    query, key = stored[Q] @ x, stored[Q.replace("q_proj", "k_proj")] @ x
    ours_q = checkpoint.read("blk.1.attn_q.weight") @ x
    ours_k = checkpoint.read("blk.1.attn_k.weight") @ x
    for head in range(4):
        q, k = slice(16 * head, 16 * head + 16), slice(16 * (head // 2), 16 * (head // 2) + 16)
        asked = rotate_halves(query[q], angles[0]) @ rotate_halves(key[k], angles[1])
        found = rotate_pairs(ours_q[q], angles[0]) @ rotate_pairs(ours_k[k], angles[1])
        assert np.isclose(asked, found)


def test_rows_are_those_of_the_whole(tmp_path: Path):
    checkpoint = open_checkpoint(write_llama(tmp_path))
    draw = np.random.default_rng(2)
    for name, info in checkpoint.tensors.items():
        whole = checkpoint.read(name).reshape(-1, info.shape[-1])
        for _ in range(4):
            begin, end = sorted(draw.integers(0, len(whole) + 1, 2))
            assert np.array_equal(checkpoint.read_rows(name, begin, end), whole[begin:end]), name


def test_a_shape_that_the_config_does_not_ask_for_is_named(tmp_path: Path):
    tensors = llama_tensors()
    tensors[Q] = tensors[Q][:48]
    with pytest.raises(
        UnusableModel, match=r"layers\.1\.self_attn\.q_proj\.weight of .*\[48, 64\].*\[64, 64\]"
    ):
        open_checkpoint(write_llama(tmp_path, tensors))


def test_a_missing_tensor_is_named(tmp_path: Path):
    tensors = llama_tensors()
    del tensors[Q]
    with pytest.raises(UnusableModel, match=r"no tensor model\.layers\.1\.self_attn\.q_proj"):
        open_checkpoint(write_llama(tmp_path, tensors))


def test_a_tensor_without_a_place_is_named(tmp_path: Path):
    tensors = llama_tensors()
    with pytest.raises(UnusableModel, match=r"layers\.1\..* has no place in llama.cpp's llama"):
        open_checkpoint(write_llama(tmp_path, tensors, num_hidden_layers=1))
    tensors["model.layers.0.adapter.weight"] = np.ones((2, 2), np.float32)
    with pytest.raises(UnusableModel, match=r"adapter\.weight, for which"):
        open_checkpoint(write_llama(tmp_path, tensors))


def test_whole_numbers_are_no_weights(tmp_path: Path):
    tensors: dict[str, NDArray[Any]] = dict(llama_tensors())
    tensors[Q] = np.ones((64, 64), np.int8)
    with pytest.raises(UnusableModel, match="is stored as I8, and weights must be"):
        open_checkpoint(write_llama(tmp_path, tensors))


def test_nan_is_found_when_it_is_read_and_named(tmp_path: Path):
    tensors = llama_tensors()
    tensors[Q][5, 5] = np.nan
    checkpoint = open_checkpoint(write_llama(tmp_path, tensors))
    checkpoint.read("blk.0.attn_q.weight")
    with pytest.raises(UnusableModel, match=r"layers\.1\.self_attn\.q_proj\.weight in .* NaN"):
        checkpoint.read("blk.1.attn_q.weight")


def test_tied_embeddings_have_no_output(tmp_path: Path):
    tensors = llama_tensors()
    tied = open_checkpoint(write_llama(tmp_path / "a", tensors, tie_word_embeddings=True))
    assert tied.config.tied and "output.weight" not in tied.tensors
    del tensors["lm_head.weight"]
    without = open_checkpoint(write_llama(tmp_path / "b", tensors, tie_word_embeddings=True))
    assert without.tensors == tied.tensors
    with pytest.raises(UnusableModel, match=r"no tensor lm_head\.weight"):
        open_checkpoint(write_llama(tmp_path / "c", tensors))


def test_names_with_the_prefix_of_a_model_that_sees(tmp_path: Path):
    tensors = {f"language_model.{name}": array for name, array in llama_tensors().items()}
    tensors["vision_tower.patch.weight"] = np.ones((2, 2), np.float32)
    checkpoint = open_checkpoint(write_llama(tmp_path, tensors))
    assert np.array_equal(
        checkpoint.read("token_embd.weight"), llama_tensors()["model.embed_tokens.weight"]
    )
    assert len(checkpoint.tensors) == 21


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 1 << 40}, "hidden_size = 1099511627776, which must be a whole number"),
        ({"hidden_size": "64"}, "hidden_size = 64, which must be"),
        ({"hidden_size": True}, "hidden_size = True, which must be"),
        ({"num_hidden_layers": 100000}, "num_hidden_layers = 100000.* to 512"),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0"),
        ({"num_key_value_heads": 3}, "4 heads that share 3 keys"),
        ({"vocab_size": None}, "lacks vocab_size"),
        ({"rms_norm_eps": -1}, "rms_norm_eps = -1, no number"),
        ({"hidden_act": "relu"}, "hidden_act = relu, and llama.cpp computes .* with silu only"),
        ({"model_type": 7}, "names no model_type"),
        ({"rope_scaling": {"rope_type": "dynamic"}}, "rotation 'dynamic'; llama.cpp knows"),
        ({"rope_scaling": [1]}, "no JSON object"),
        ({"quantization_config": {"bits": 4}}, "quantized already"),
    ],
)
def test_a_config_out_of_its_limits_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
):
    with pytest.raises(UnusableModel, match=message):
        open_checkpoint(write_llama(tmp_path, **changes))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "holds no JSON object"),
        ('{"a": 1, "a": 2}', "'a' is there twice"),
        ('{"a": Infinity}', "Infinity is no number"),
        ("{" + " " * (1 << 22) + "}", "has more than 4194304 bytes"),
        ('{"a": ' + "[" * 100_000, "nested too deep"),
        ("{'a': 1}", "not the JSON it should be"),
    ],
)
def test_a_config_that_is_no_plain_json_is_refused(tmp_path: Path, content: str, message: str):
    folder = write_llama(tmp_path)
    (folder / "config.json").write_text(content)
    with pytest.raises(UnusableModel, match=message):
        open_checkpoint(folder)


def test_an_unknown_architecture_is_opened_with_guessed_roles(tmp_path: Path):
    folder = write_llama(
        tmp_path, model_type="novel", auto_map={"AutoModelForCausalLM": "modeling_novel.Novel"}
    )
    (folder / "modeling_novel.py").write_text("raise SystemExit('code of a stranger was run')")
    checkpoint = open_checkpoint(folder)
    assert not checkpoint.config.known
    assert checkpoint.roles[Q] == "linear" and checkpoint.block_of(Q) == 1
    assert checkpoint.roles["model.embed_tokens.weight"] == "embedding"
    assert checkpoint.roles["lm_head.weight"] == "output"
    assert checkpoint.roles["model.norm.weight"] == "norm"
    assert np.array_equal(checkpoint.read(Q), llama_tensors()[Q])
    assert "novel is not a known architecture" in checkpoint.notes[0]
    with pytest.raises(UnusableModel, match=r"type 'novel', which .* known are: gemma, .*qwen3"):
        checkpoint.gguf_metadata()


def test_an_unknown_architecture_needs_no_fields(tmp_path: Path):
    folder = write_llama(tmp_path)
    (folder / "config.json").write_text(json.dumps({"model_type": "novel"}))
    assert len(open_checkpoint(folder).tensors) == 21


def test_the_fingerprint_changes_with_the_weights_and_the_config(tmp_path: Path):
    first = open_checkpoint(write_llama(tmp_path / "a")).fingerprint
    assert open_checkpoint(write_llama(tmp_path / "b")).fingerprint == first
    other = open_checkpoint(write_llama(tmp_path / "c", llama_tensors(seed=1))).fingerprint
    longer = open_checkpoint(write_llama(tmp_path / "d", max_position_embeddings=64)).fingerprint
    bare = open_checkpoint(write_llama(tmp_path / "e", tokenizer=False)).fingerprint
    assert len({first, other, longer, bare}) == 4


def test_llama_3_stretches_long_waves(tmp_path: Path):
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    checkpoint = open_checkpoint(write_llama(tmp_path, rope_scaling=scaling))
    factors = checkpoint.read("rope_freqs.weight")
    assert checkpoint.roles["rope_freqs.weight"] == "rope"
    assert factors.shape == (8,) and factors[0] == 1 and factors[-1] == 8
    assert (np.diff(factors) >= 0).all() and ((factors > 1) & (factors < 8)).any()
