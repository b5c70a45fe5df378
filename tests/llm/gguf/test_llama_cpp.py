"""llama.cpp computes on our files what transformers computes on the originals, and reads texts
as the models' own tokenizers do.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folder_bench import llama_tensors, sentencepiece_bytes, write_llama
from language_zoo import (
    CUTS,
    FAMILIES,
    LAYER_KINDS,
    TEXT,
    VOCABULARY,
    make_model,
    write_fallback_tokenizer,
    write_tokenizer,
    write_unigram_tokenizer,
)
from llama_oracle import run_llama, run_llama_on
from numpy.typing import NDArray

from packlight.errors import UnusableModel
from packlight.llm.checkpoint import Checkpoint, open_checkpoint
from packlight.llm.compress import compress_checkpoint
from packlight.llm.compress_forecast import rounded_names
from packlight.llm.formats.codebooks import LAYOUTS
from packlight.llm.gguf import write_gguf
from packlight.llm.vocabulary.tokens import scores_of_merges

# llama.cpp looks GELU up in a table of 16-bit floats; everything else is float32.
TOLERANCES = {"gemma": 1e-2, "gemma2": 1e-2, "gemma3": 1e-2, "gpt2": 1e-2}
TOKENS = np.random.default_rng(0).integers(2, 380, 60).tolist()
NO_TOKENIZER = {"tokenizer.ggml.model": "none"}


@dataclass(frozen=True)
class Animal:
    """A model, its checkpoint, what transformers computes of TOKENS and what llama.cpp."""

    model: Any
    checkpoint: Checkpoint
    path: Path
    asked: NDArray[np.float32]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Animal]:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    made = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for family in FAMILIES:
            folder = tmp_path_factory.mktemp(family)
            kinds = {"layer_types": LAYER_KINDS[family]} if family in LAYER_KINDS else {}
            model = make_model(folder, family, **kinds)
            checkpoint = open_checkpoint(folder)
            path = write(checkpoint, folder / "m.gguf")
            made[family] = Animal(model, checkpoint, path, logits_of(model, TOKENS))
    return made


@pytest.fixture(scope="module")
def found(zoo: dict[str, Animal]) -> dict[str, NDArray[np.float32]]:
    """What llama.cpp computes of TOKENS, all in one process."""
    logits = run_llama_on([(animal.path, TOKENS) for animal in zoo.values()])
    return dict(zip(zoo, logits, strict=True))


def write(checkpoint: Checkpoint, path: Path, **options: Any) -> Path:
    contents = ((name, "F32", checkpoint.read(name)) for name in checkpoint.tensors)
    write_gguf(path, checkpoint, contents, **options)
    return path


def logits_of(model: Any, tokens: list[int]) -> NDArray[np.float32]:
    import torch

    with torch.no_grad():
        found: NDArray[np.float32] = model(torch.tensor([tokens])).logits[0].float().numpy()
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_computes_the_same(
    family: str, zoo: dict[str, Animal], found: dict[str, NDArray[np.float32]]
):
    asked = zoo[family].asked
    error = float(np.abs(found[family] - asked).max() / asked.std())
    assert error < TOLERANCES.get(family, 2e-4), f"{family}: {error}"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_weights_of_every_family_come_back(family: str, zoo: dict[str, Animal]):
    checkpoint, back = zoo[family].checkpoint, open_checkpoint(zoo[family].path)
    assert checkpoint.config.known and not checkpoint.trouble
    assert back.roles == checkpoint.roles
    for name in checkpoint.tensors:
        assert np.array_equal(back.read(name), checkpoint.read(name))
    for field in ("layers", "width", "heads", "kv_heads", "head_width", "experts", "tied"):
        assert getattr(back.config, field) == getattr(checkpoint.config, field), field
    assert back.config.architecture == checkpoint.config.architecture
    assert back.config.sliding_layers == checkpoint.config.sliding_layers
    counted = sum(parameter.numel() for parameter in zoo[family].model.parameters())
    extra = sum(checkpoint.tensors[name].weights for name in checkpoint.with_role("rope"))
    assert sum(info.weights for info in checkpoint.tensors.values()) - extra == counted


def test_every_way_to_cut_words_gives_the_same_tokens(tmp_path: Path):
    tokenizers = pytest.importorskip("tokenizers")
    asked, jobs = {}, []
    marked = f"<|bos|>{TEXT}<|eos|>and after it"
    for kind in CUTS:
        folder = write_llama(tmp_path / kind, vocab_size=VOCABULARY, tensors=embedded(VOCABULARY))
        write_tokenizer(folder, kind)
        checkpoint = open_checkpoint(folder)
        assert checkpoint.gguf_metadata()["tokenizer.ggml.pre"].content == kind
        jobs.append((write(checkpoint, folder / "m.gguf"), marked))
        asked[kind] = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode(marked)
    for kind, tokens in zip(CUTS, run_llama_on(jobs), strict=True):
        assert tokens.tolist() == asked[kind].ids, kind


def embedded(vocabulary: int) -> dict[str, NDArray[np.float32]]:
    """The tensors of a tiny Llama with so many tokens."""
    rows = np.random.default_rng(3).standard_normal((vocabulary, 64)).astype(np.float32)
    ends = {"model.embed_tokens.weight": rows, "lm_head.weight": rows}
    return {**llama_tensors(), **ends}


def test_sentencepieces_give_the_same_tokens_from_either_file(tmp_path: Path):
    """tokenizer.model, and the same as BPE in tokenizer.json, against the tokenizers library."""
    tokenizers = pytest.importorskip("tokenizers")
    changes = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2}
    sentencepiece, fallback = (
        write_llama(tmp_path / name, embedded(VOCABULARY), tokenizer=False, **changes)
        for name in ("a", "b")
    )
    merges = write_fallback_tokenizer(fallback)
    asked = tokenizers.Tokenizer.from_file(str(fallback / "tokenizer.json")).encode(TEXT).ids
    vocab = json.loads((fallback / "tokenizer.json").read_text())["model"]["vocab"]
    scores = scores_of_merges(vocab, merges)
    kinds = {"<unk>": 2, "<s>": 3, "</s>": 3}
    pieces = [
        (text, scores[text], 6 if text.startswith("<0x") else kinds.get(text, 1)) for text in vocab
    ]
    (sentencepiece / "tokenizer.model").write_bytes(sentencepiece_bytes(pieces))
    jobs = []
    for folder in (sentencepiece, fallback):
        checkpoint = open_checkpoint(folder)
        assert checkpoint.gguf_metadata()["tokenizer.ggml.model"].content == "llama"
        jobs.append((write(checkpoint, folder / "m.gguf"), TEXT))
    for tokens in run_llama_on(jobs):
        assert tokens.tolist() == [1, *asked]


def test_a_unigram_tokenizer_gives_the_same_tokens(tmp_path: Path):
    tokenizers = pytest.importorskip("tokenizers")
    folder = write_llama(tmp_path, tokenizer=False, bos_token_id=1, eos_token_id=2)
    line = " ".join(TEXT.split())
    write_unigram_tokenizer(folder, line)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.gguf_metadata()["tokenizer.ggml.model"].content == "t5"
    asked = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode(line).ids
    path = write(checkpoint, tmp_path / "m.gguf")
    assert run_llama(path, line.replace(" ", "  ")).tolist() == asked


def test_a_head_of_its_own_is_written_where_llama_cpp_wants_one(tmp_path: Path):
    pytest.importorskip("transformers")
    model = make_model(tmp_path, "qwen2-moe", tie_word_embeddings=True)
    checkpoint = open_checkpoint(tmp_path)
    assert np.array_equal(checkpoint.read("output.weight"), checkpoint.read("token_embd.weight"))
    found = run_llama(write(checkpoint, tmp_path / "m.gguf"), [5, 9, 300])
    assert np.abs(found - logits_of(model, [5, 9, 300])).max() < 1e-3


def test_settings_that_llama_cpp_computes_otherwise_are_refused(tmp_path: Path):
    pytest.importorskip("transformers")
    make_model(tmp_path / "a", "qwen3-moe", norm_topk_prob=False)
    with pytest.raises(UnusableModel, match="norm_topk_prob = False, and llama"):
        open_checkpoint(tmp_path / "a")
    make_model(tmp_path / "b", "gemma2", query_pre_attn_scalar=64)
    with pytest.raises(UnusableModel, match="query_pre_attn_scalar = 64"):
        open_checkpoint(tmp_path / "b")


def test_the_real_model_computes_the_same(real: Path, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    folder = real / "novels-llama" / "hf"
    checkpoint = open_checkpoint(folder)
    path = write(checkpoint, tmp_path / "m.gguf")
    text = (real / "novels-llama" / "text" / "test.txt").read_text(encoding="utf-8")[:40_000]
    tokenizers = pytest.importorskip("tokenizers")
    asked = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    assert run_llama(path, text).tolist() == asked
    model = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
    expected, found = logits_of(model, asked[:200]), run_llama(path, asked[:200])
    assert np.abs(found - expected).max() / expected.std() < 2e-4


def test_a_model_without_a_tokenizer_computes_the_same(real: Path, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    folder = real / "stories260k" / "hf"
    checkpoint = open_checkpoint(folder)
    path = write(checkpoint, tmp_path / "m.gguf", metadata=NO_TOKENIZER)
    model = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
    tokens = np.random.default_rng(0).integers(3, 500, 100).tolist()
    expected, found = logits_of(model, tokens), run_llama(path, tokens)
    assert np.abs(found - expected).max() / expected.std() < 2e-4


def test_codebooks_are_computed_with_as_they_are_read(tmp_path: Path):
    """Each tensor in another type, against a file with the same weights in 32 bits.

    llama.cpp rounds what it multiplies such weights by to 8 bits, so that the two agree but for
    that; of a wrong layout nothing would agree.
    """
    pytest.importorskip("transformers")
    pytest.importorskip("gguf", reason="codebooks are read from the gguf package")
    shape = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4}
    make_model(tmp_path, "llama", **shape, num_key_value_heads=4, head_dim=64)
    checkpoint = open_checkpoint(tmp_path)
    kinds = ("IQ3_S", *LAYOUTS)
    types = {name: kinds[i % 6] for i, name in enumerate(rounded_names(checkpoint))}
    packed = compress_checkpoint(checkpoint, tmp_path / "packed.gguf", types)
    assert {row.type for row in packed.rows} == set(LAYOUTS)
    back = open_checkpoint(packed.path)
    plain = write(back, tmp_path / "plain.gguf")
    found, expected = run_llama_on([(packed.path, TOKENS), (plain, TOKENS)])
    error = float(np.abs(found - expected).mean())
    original = run_llama(write(checkpoint, tmp_path / "m.gguf"), TOKENS)
    assert error < 0.1 * expected.std()
    assert error < 0.3 * np.abs(original - expected).mean()
