"""A checkpoint without some of its blocks."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from language_zoo import make_model

from packlight.errors import UnusableModel
from packlight.llm.checkpoint import Checkpoint, open_checkpoint
from packlight.llm.checkpoint.shorten import check_alike, drop_blocks
from packlight.llm.gguf import plain_contents, write_gguf
from packlight.llm.gguf.values import value_of
from packlight.llm.storage import Stored

DOWN = "ffn_down.weight"


def zoo(folder: Path, family: str, layers: int = 4) -> Checkpoint:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_model(folder, family, num_hidden_layers=layers)
    return open_checkpoint(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return zoo(tmp_path_factory.mktemp("whole"), "llama")


def test_blocks_that_stay_are_numbered_anew_and_read_as_before(whole: Checkpoint) -> None:
    small = drop_blocks(whole, (2, 0))
    assert small.config.layers == 2 and small.gguf_metadata()["llama.block_count"].content == 2
    for new, old in enumerate((1, 3)):
        np.testing.assert_array_equal(
            small.read(f"blk.{new}.attn_q.weight"), whole.read(f"blk.{old}.attn_q.weight")
        )
        assert (
            small.tensors[f"blk.{new}.{DOWN}"].source == f"model.layers.{new}.mlp.down_proj.weight"
        )
    blocks = {small.block_of(name) for name in small.tensors}
    assert blocks == {None, 0, 1}
    assert small.size_bytes < whole.size_bytes
    assert small.fingerprint not in (whole.fingerprint, drop_blocks(whole, (0, 1)).fingerprint)
    assert small.fingerprint == drop_blocks(whole, (0, 2)).fingerprint


def test_lists_of_one_item_a_block_lose_those_that_went(whole: Checkpoint) -> None:
    pairs = {
        **whole.gguf_metadata(),
        "llama.attention.head_count_kv": value_of([5, 6, 7, 8]),
        "llama.other": value_of([True, False, False]),
        "tokenizer.of.four": value_of(["a", "b", "c", "d"]),
    }
    found = drop_blocks(replace(whole, metadata=pairs), (1,)).gguf_metadata()
    assert found["llama.attention.head_count_kv"].content == [5, 7, 8]
    assert found["llama.other"] == pairs["llama.other"]
    assert found["tokenizer.of.four"] == pairs["tokenizer.of.four"]
    assert drop_blocks(replace(whole, metadata=None), (1,)).metadata is None


def test_a_tensor_may_be_replaced_by_one_in_another_file(whole: Checkpoint, tmp_path: Path) -> None:
    shape = whole.tensors[f"blk.3.{DOWN}"].shape
    other = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    (tmp_path / "other").write_bytes(b"12345678" + other.tobytes())
    place = Stored("it", tmp_path / "other", "F32", shape, 8)
    small = drop_blocks(whole, (1, 2), replaced={f"blk.3.{DOWN}": place}, mark="one")
    np.testing.assert_array_equal(small.read(f"blk.1.{DOWN}"), other)
    again = drop_blocks(whole, (1, 2), replaced={f"blk.3.{DOWN}": place}, mark="two")
    assert again.fingerprint != small.fingerprint


def test_the_file_of_fewer_blocks_is_a_whole_model(whole: Checkpoint, tmp_path: Path) -> None:
    small = drop_blocks(whole, (1,))
    path = tmp_path / "small.gguf"
    write_gguf(path, small, plain_contents(small, "F16"))
    back = open_checkpoint(path)
    assert back.config.layers == 3
    assert {n: i.shape for n, i in back.tensors.items()} == {
        n: i.shape for n, i in small.tensors.items()
    }
    assert drop_blocks(back, (0,)).config.layers == 2  # a GGUF file comes in too


def test_blocks_that_are_not_alike_are_refused(whole: Checkpoint, tmp_path: Path) -> None:
    check_alike(whole)
    some = {name: info for name, info in whole.tensors.items() if name != f"blk.2.{DOWN}"}
    with pytest.raises(UnusableModel, match="block 2 has other tensors than block 0"):
        check_alike(replace(whole, tensors=some))
    unknown = replace(whole, config=replace(whole.config, known=False, model_type="mamba9"))
    with pytest.raises(UnusableModel, match="'mamba9', whose blocks cannot be computed"):
        check_alike(unknown)
    with pytest.raises(UnusableModel, match="only a window of the text"):
        check_alike(zoo(tmp_path, "gemma3", 7))
