"""The graph computes what the blocks compute, whole or token by token, for every architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

torch = pytest.importorskip("torch", reason="blocks are computed with PyTorch")
pytest.importorskip("transformers", reason="it makes the models")

from language_zoo import FAMILIES, VOCABULARY, make_model  # noqa: E402

from packlight.errors import UnusableModel, WrongUsage  # noqa: E402
from packlight.llm.blocks import embed_tokens, head_inputs, head_logits, run_block  # noqa: E402
from packlight.llm.blocks_wiring import read_wiring  # noqa: E402
from packlight.llm.checkpoint import Checkpoint, open_checkpoint  # noqa: E402
from packlight.llm.compress import Compressed, uniform_types  # noqa: E402
from packlight.llm.compress_blocks import load_weights  # noqa: E402
from packlight.llm.onnx.companions import companion_files, end_tokens  # noqa: E402
from packlight.llm.onnx.compress import compress_decoder  # noqa: E402
from packlight.llm.onnx.formats import ONNX, decode  # noqa: E402
from packlight.llm.onnx.support import context_of  # noqa: E402

# Windows that are shorter than the text, and heads whose size is not the width over their number.
CHANGES: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 12, "head_dim": 16},
    "phi3": {"partial_rotary_factor": 0.5, "head_dim": 32},
}
REFUSED = ("mixtral", "qwen2-moe", "qwen3-moe", "gemma", "gemma2", "gemma3", "gpt2")
WRITTEN = [family for family in FAMILIES if family not in REFUSED]

pytestmark = pytest.mark.filterwarnings("ignore")


def write(folder: Path, family: str, kind: str, **changes: Any) -> tuple[Checkpoint, Compressed]:
    make_model(folder, family, **{**CHANGES.get(family, {}), **changes})
    checkpoint = open_checkpoint(folder)
    types = uniform_types(checkpoint, kind, ONNX)
    return checkpoint, compress_decoder(checkpoint, folder / "model.onnx", types, accuracy_level=1)


def expected_logits(checkpoint: Checkpoint, weights: Any, tokens: Any) -> Any:
    """The blocks in PyTorch; weights(layer): those of a block, or outside of blocks."""
    wiring = read_wiring(checkpoint)
    outer = weights(None)
    with torch.no_grad():
        x = embed_tokens(outer, wiring, torch.from_numpy(tokens))
        for layer in range(wiring.layers):
            x = run_block(weights(layer), wiring, layer, x)
        return head_logits(outer, wiring, head_inputs(outer, wiring, x)).numpy()


class Runner:
    """A decoder in onnxruntime with its cache, one text after another."""

    def __init__(self, path: Path) -> None:
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.caches = {
            one.name: one.shape for one in self.session.get_inputs() if "past" in one.name
        }
        self.past: dict[str, Any] = {}

    def read(self, tokens: np.ndarray, *, begin: bool = False) -> np.ndarray:
        batch = len(tokens)
        if begin:
            self.past = {
                name: np.zeros((batch, shape[1], 0, shape[3]), np.float32)
                for name, shape in self.caches.items()
            }
        used = next(iter(self.past.values())).shape[2]
        mask = np.ones((batch, used + tokens.shape[1]), np.int64)
        feeds = {"input_ids": tokens, "attention_mask": mask, **self.past}
        names = [name.replace("past_key_values", "present") for name in self.past]
        logits, *present = self.session.run(["logits", *names], feeds)
        self.past = dict(zip(self.past, present, strict=True))
        return logits


def draw(shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(1).integers(0, VOCABULARY, shape)


@pytest.mark.parametrize("family", WRITTEN)
def test_logits_are_those_of_the_blocks(family: str, tmp_path: Path) -> None:
    checkpoint, made = write(tmp_path, family, "float32")
    tokens = draw((2, 40))
    expected = expected_logits(checkpoint, lambda layer: load_weights(checkpoint, layer), tokens)
    runner = Runner(made.path)
    found = runner.read(tokens, begin=True)
    assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max()
    pieces = [runner.read(tokens[:, :25], begin=True)]
    pieces += [runner.read(tokens[:, at : at + 1]) for at in range(25, 40)]
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), found, atol=1e-4)


@pytest.mark.parametrize("kind", ["int4-32", "int4-64", "int8-32"])
@pytest.mark.parametrize("family", ["llama-tied", "qwen2"])
def test_weights_in_blocks_are_read_as_they_are_meant(
    family: str, kind: str, tmp_path: Path
) -> None:
    checkpoint, made = write(tmp_path, family, kind)
    tokens = draw((1, 40))
    files = stored_weights(made.path, int(kind[3]))

    def weights(layer: int | None) -> dict[str, Any]:
        prefix = "" if layer is None else f"blk.{layer}."
        found = {}
        for name in checkpoint.tensors:
            if checkpoint.block_of(name) == layer:
                value = files[name].reshape(checkpoint.tensors[name].shape)
                found[name.removeprefix(prefix)] = torch.from_numpy(value)
        return found

    expected = expected_logits(checkpoint, weights, tokens)
    found = Runner(made.path).read(tokens, begin=True)
    assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max()
    original = expected_logits(checkpoint, lambda layer: load_weights(checkpoint, layer), tokens)
    assert np.abs(original - expected).max() > 1e-3 * np.abs(expected).max()


def stored_weights(path: Path, bits: int) -> dict[str, np.ndarray]:
    """What the initializers stand for, read with ONNX alone and decoded by the formula."""
    model = onnx.load(path)
    arrays = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    found = {
        name.removesuffix(".values"): array
        for name, array in arrays.items()
        if name.endswith(".values")
    }
    for name, scale in arrays.items():
        if not name.endswith(".scale"):
            continue
        tensor = name.removesuffix(".scale")
        rows, blocks = scale.shape
        # A table that is no output head too has its codes flat only.
        codes = arrays.get(f"{tensor}.codes", arrays.get(f"{tensor}.codes_flat"))
        codes = codes.reshape(rows, blocks, -1)
        zero = arrays[f"{tensor}.zero_point"]
        if bits == 4:  # two a byte
            codes, zero = (
                np.stack([one & 15, one >> 4], axis=-1).reshape(*one.shape[:-1], -1)
                for one in (codes, zero)
            )
        steps = codes.astype(np.float32) - zero[:, :blocks, None]
        found[tensor] = (steps * scale.astype(np.float32)[:, :, None]).reshape(rows, -1)
    return found


def test_a_tied_embedding_lies_in_the_file_once(tmp_path: Path) -> None:
    checkpoint, made = write(tmp_path, "llama-tied", "int4-32")
    weights = sum(info.weights for info in checkpoint.tensors.values() if len(info.shape) > 1)
    data = made.path.with_name("model.onnx.data").stat().st_size
    assert weights * 4.625 / 8 < data < weights * 4.625 / 8 + 4096


def test_positions_end_where_other_factors_would_begin(tmp_path: Path) -> None:
    checkpoint, made = write(
        tmp_path, "phi3-longrope", "float32", original_max_position_embeddings=64
    )
    assert context_of(checkpoint) == 64
    assert any("64 positions" in note for note in made.notes)


@pytest.mark.parametrize("family", REFUSED)
def test_what_does_not_fit_is_refused_by_name(family: str, tmp_path: Path) -> None:
    with pytest.raises(UnusableModel, match=r"of the type '\w+', which cannot be .*llama\.cpp"):
        write(tmp_path, family, "float32")
    assert not list(tmp_path.glob("*.onnx*"))


def test_heads_that_the_attention_does_not_take_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableModel, match=r"heads of 24 numbers.* multiple of 16"):
        write(tmp_path, "llama", "float32", head_dim=24)


def test_the_tokenizer_goes_along(tmp_path: Path) -> None:
    make_model(tmp_path, "qwen2")
    checkpoint = open_checkpoint(tmp_path)
    found = companion_files(checkpoint, "model.onnx")
    assert found["tokenizer.json"] == (tmp_path / "tokenizer.json").read_bytes()
    assert b'"filename": "model.onnx"' in found["genai_config.json"]
    assert "model.safetensors" not in found
    assert end_tokens(checkpoint) == (1,)
    gguf = tmp_path / "model.gguf"
    gguf.touch()
    from dataclasses import replace

    with pytest.raises(WrongUsage, match="Hugging Face folder that it was made from"):
        companion_files(replace(checkpoint, path=gguf), "model.onnx")


def test_formats_decode_what_they_encode() -> None:
    from packlight.llm.onnx.formats import FORMATS, quantize, row_bytes

    weight = np.random.default_rng(0).standard_normal((5, 384)).astype(np.float32)
    for name, one in FORMATS.items():
        data = quantize(name, weight)
        assert data.shape == (5, row_bytes(name, 384))
        gap = np.sqrt(np.mean((decode(name, data) - weight) ** 2))
        assert gap == 0 if not one.coded else 0 < gap < 4 / 2**one.bits
