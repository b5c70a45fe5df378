"""Tokenizers as GGUF metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folder_bench import field, sentencepiece_bytes, write_bytes_tokenizer, write_llama

from packlight.errors import UnusableModel
from packlight.llm.checkpoint import open_checkpoint
from packlight.llm.gguf import begin_gguf
from packlight.llm.gguf.values import value_of
from packlight.llm.vocabulary.pretokenizers import name_pretokenizer
from packlight.llm.vocabulary.sentencepiece import parse_sentencepiece
from packlight.llm.vocabulary.tokens import scores_of_merges


def pairs_of(folder: Path) -> dict[str, Any]:
    checkpoint = open_checkpoint(folder)
    assert not checkpoint.trouble
    return {
        key.removeprefix("tokenizer."): value.content
        for key, value in checkpoint.gguf_metadata().items()
        if key.startswith("tokenizer.")
    }


def trouble_of(folder: Path) -> str:
    return open_checkpoint(folder).trouble


def pieces_of(words: list[str]) -> list[tuple[str, float, int]]:
    """<unk>, BOS, EOS, all bytes, then words, each worth less than the one before."""
    made = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    made += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    return made + [(word, -float(rank), 1) for rank, word in enumerate(words)]


def test_a_byte_level_tokenizer(tmp_path: Path):
    found = pairs_of(write_llama(tmp_path))
    assert (found["ggml.model"], found["ggml.pre"]) == ("gpt2", "gpt-2")
    assert len(found["ggml.tokens"]) == len(found["ggml.token_type"]) == 300
    assert found["ggml.token_type"][:3] == [3, 3, 1]
    assert found["ggml.tokens"][256:260] == ["th", "the", "[PAD258]", "[PAD259]"]
    assert found["ggml.token_type"][257:259] == [1, 5]
    assert found["ggml.merges"] == ["t h", "th e"]
    assert (found["ggml.bos_token_id"], found["ggml.eos_token_id"]) == (0, 1)
    assert found["ggml.add_bos_token"] is False
    assert found["chat_template"] == "{% for m in messages %}{{ m }}{% endfor %}"


def test_a_template_that_puts_bos_in_front(tmp_path: Path):
    folder = write_llama(tmp_path)
    single = [{"SpecialToken": {"id": "<|bos|>", "type_id": 0}}, {"Sequence": {"id": "A"}}]
    processor = {"type": "TemplateProcessing", "single": single, "pair": []}
    write_bytes_tokenizer(folder, post_processor={"type": "Sequence", "processors": [processor]})
    found = pairs_of(folder)
    assert found["ggml.add_bos_token"] is True and found["ggml.add_eos_token"] is False


def test_older_files_join_merges_by_a_space(tmp_path: Path):
    folder = write_llama(tmp_path)
    vocab = {"a": 0, "b": 1, "ab": 2}
    write_bytes_tokenizer(folder, model={"type": "BPE", "vocab": vocab, "merges": ["a b"]})
    assert pairs_of(folder)["ggml.merges"] == ["a b"]


def test_a_missing_tokenizer_is_one_sentence(tmp_path: Path):
    folder = write_llama(tmp_path / "model", tokenizer=False)
    checkpoint = open_checkpoint(folder)
    assert "has no tokenizer (tokenizer.json or tokenizer.model)" in checkpoint.trouble
    with (
        pytest.raises(UnusableModel, match="has no tokenizer"),
        begin_gguf(tmp_path / "out.gguf", checkpoint),
    ):
        pass
    assert list(tmp_path.iterdir()) == [folder]


def test_a_tokenizer_in_an_older_form_has_a_way_out(tmp_path: Path):
    folder = write_llama(tmp_path, tokenizer=False)
    (folder / "vocab.json").write_text("{}")
    assert "save it as tokenizer.json" in trouble_of(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"type": "WordPiece", "vocab": {}}}, "type 'WordPiece'; BPE and Unigram"),
        ({"model": None}, "describes no model"),
        ({"model": {"type": "BPE", "vocab": {}}}, "has no vocabulary"),
        ({"model": {"type": "BPE", "vocab": {"a": -1}}}, "not all whole numbers"),
        ({"model": {"type": "BPE", "vocab": {"a": 0, "b": 0}}}, "one number to several"),
        ({"model": {"type": "BPE", "vocab": {"a": 900}}}, "token 900, and the model's vocabulary"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a"]]}}, "no pair of texts"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "cuts words in a way"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "a space in front"),
        ({"model": {"type": "Unigram", "vocab": [["a", "b"]]}}, "no list of texts and scores"),
        ({"normalizer": {"type": "Lowercase"}}, "changes a text before cutting it"),
        ({"added_tokens": [{"id": "x"}]}, "an added token without"),
    ],
)
def test_a_tokenizer_that_llama_cpp_has_not_is_trouble_and_no_crash(
    tmp_path: Path, changes: dict[str, Any], message: str
):
    folder = write_llama(tmp_path)
    write_bytes_tokenizer(folder, **changes)
    assert message in trouble_of(folder)


def test_a_composed_text_is_noted(tmp_path: Path):
    folder = write_llama(tmp_path)
    write_bytes_tokenizer(folder, normalizer={"type": "NFC"})
    assert "composes characters" in open_checkpoint(folder).notes[0]


def test_half_a_character_does_no_harm(tmp_path: Path):
    folder = write_llama(tmp_path)
    vocab = {"<|bos|>": 0, "<|eos|>": 1, "a": 2, "\ud800": 3}
    single = [{"SpecialToken": {"id": "\ud801"}}, {"Sequence": {"id": "A"}}]
    write_bytes_tokenizer(
        folder,
        model={"type": "BPE", "vocab": vocab, "merges": [["a", "\ud800"]]},
        post_processor={"type": "TemplateProcessing", "single": single},
    )
    settings = {"chat_template": "\udfff", "eos_token": "\ud802"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert pairs_of(folder)["ggml.eos_token_id"] == 1


def test_named_chat_templates_are_all_kept(tmp_path: Path):
    folder = write_llama(tmp_path)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = [
        {"name": "default", "template": "{{ a }}"},
        {"name": "tool_use", "template": "{{ b }}"},
    ]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    found = pairs_of(folder)
    assert found["chat_template"] == "{{ a }}"
    assert found["chat_template.tool_use"] == "{{ b }}"
    assert found["chat_templates"] == ["tool_use"]
    (folder / "chat_template.jinja").write_bytes(b"{{ jinja \xff }}")
    assert open_checkpoint(folder).gguf_metadata()["tokenizer.chat_template"] == value_of(
        b"{{ jinja \xff }}"
    )


def test_a_sentencepiece_model(tmp_path: Path):
    folder = write_llama(tmp_path, tokenizer=False)
    (folder / "tokenizer.model").write_bytes(sentencepiece_bytes(pieces_of(["▁the", "▁a", "he"])))
    found = pairs_of(folder)
    assert (found["ggml.model"], found["ggml.pre"]) == ("llama", "default")
    assert found["ggml.tokens"][:4] == ["<unk>", "<s>", "</s>", "<0x00>"]
    assert found["ggml.token_type"][:4] == [2, 3, 3, 6]
    assert found["ggml.scores"][259:262] == [0.0, -1.0, -2.0]
    assert found["ggml.add_bos_token"] is True and found["ggml.add_space_prefix"] is True
    assert found["ggml.unknown_token_id"] == 0 and "ggml.padding_token_id" not in found
    assert found["ggml.token_type"][262:] == [5] * (300 - 262)


def test_a_unigram_model_is_of_another_kind(tmp_path: Path):
    folder = write_llama(tmp_path, tokenizer=False)
    (folder / "tokenizer.model").write_bytes(sentencepiece_bytes(pieces_of(["▁a"]), model_type=1))
    assert pairs_of(folder)["ggml.model"] == "t5"


def test_added_tokens_stand_beside_sentencepieces(tmp_path: Path):
    folder = write_llama(tmp_path, tokenizer=False)
    (folder / "tokenizer.model").write_bytes(sentencepiece_bytes(pieces_of(["▁the", "▁a"])))
    decoder = {
        "0": {"content": "<unk>", "special": True},
        "1": {"content": "<s>", "special": True},
        "261": {"content": "<|im_start|>", "special": False},
        "262": {"content": "▁word", "special": False},
    }
    settings = {"added_tokens_decoder": decoder, "eos_token": "<|im_start|>", "pad_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    found = pairs_of(folder)
    assert found["ggml.tokens"][261:263] == ["<|im_start|>", " word"]
    assert found["ggml.token_type"][261:263] == [3, 4]
    assert (found["ggml.eos_token_id"], found["ggml.padding_token_id"]) == (261, 0)
    assert found["ggml.token_type"][0] == 2


def test_bytes_that_are_no_sentencepiece_model(tmp_path: Path):
    folder = write_llama(tmp_path, tokenizer=False)
    path = folder / "tokenizer.model"
    whole = sentencepiece_bytes(pieces_of(["▁the"]))
    for content in (b"", b"IQ== 0\nIg== 1\n", whole[:-5], field(1, b"\x80" * 12), b"\x0f"):
        path.write_bytes(content)
        assert "is not a SentencePiece model" in trouble_of(folder)
    draw = np.random.default_rng(0)
    for _ in range(200):
        wrong = bytearray(whole)
        wrong[int(draw.integers(len(wrong)))] = int(draw.integers(256))
        try:
            parse_sentencepiece(bytes(wrong), "it")
        except UnusableModel as error:
            assert "it is not a SentencePiece model" in str(error)


def test_another_file_of_that_name_gives_way_to_tokenizer_json(tmp_path: Path):
    folder = write_llama(tmp_path)
    (folder / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    assert pairs_of(folder)["ggml.model"] == "gpt2"


def test_scores_follow_the_merges():
    vocab = {"<unk>": 0, "a": 1, "b": 2, "ab": 3, "aab": 4, "ba": 5}
    scores = scores_of_merges(vocab, [("a", "b"), ("b", "a"), ("a", "ab"), ("aa", "b")])
    assert scores["ab"] == 0 and scores["ba"] == -1 and scores["aab"] == -2
    assert scores["a"] == scores["<unk>"] == -1000


def test_a_sequence_of_byte_level_steps_cuts_once():
    split = {"type": "Split", "pattern": {"Regex": "x"}, "behavior": "Isolated", "invert": False}
    for steps in ([split], [split, split], [{"type": "Sequence", "pretokenizers": [split]}]):
        with pytest.raises(UnusableModel, match="cuts words in a way"):
            name_pretokenizer({"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}, "it")
