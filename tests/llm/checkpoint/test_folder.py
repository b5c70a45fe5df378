"""Which files of a folder are read, and which never."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from folder_bench import (
    llama_tensors,
    safetensors_bytes,
    write_index,
    write_llama,
    write_shards,
)

from packlight.errors import UnusableModel
from packlight.llm.checkpoint import open_checkpoint


def test_shards_are_one_model(tmp_path: Path):
    write_shards(tmp_path / "shards")
    whole = open_checkpoint(write_llama(tmp_path / "whole"))
    shards = open_checkpoint(tmp_path / "shards")
    assert shards.tensors == whole.tensors
    for name in whole.tensors:
        assert np.array_equal(shards.read(name), whole.read(name))


def test_a_missing_shard_is_named(tmp_path: Path):
    write_shards(tmp_path)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UnusableModel, match=r"lacks 1 of the 3 files .*model-00002-of-00003"):
        open_checkpoint(tmp_path)


def test_a_tensor_that_its_shard_has_not_is_named(tmp_path: Path):
    index = write_shards(tmp_path)
    index["model.norm.weight"], moved = (
        "model-00001-of-00003.safetensors",
        index["model.norm.weight"],
    )
    if moved == index["model.norm.weight"]:
        index["model.norm.weight"] = "model-00002-of-00003.safetensors"
    write_index(tmp_path, index)
    with pytest.raises(UnusableModel, match=r"model\.norm\.weight is in .*, and it is not"):
        open_checkpoint(tmp_path)


def test_a_tensor_that_the_index_has_not_is_named(tmp_path: Path):
    index = write_shards(tmp_path)
    del index["model.norm.weight"]
    write_index(tmp_path, index)
    with pytest.raises(UnusableModel, match=r"holds model\.norm\.weight, which .* does not place"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_an_index_without_a_map_is_refused(tmp_path: Path, content: str):
    write_shards(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(UnusableModel, match="has no weight_map"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["../secret.safetensors", "/etc/passwd", "a/../../x", "sub/x", "..", "a\\b", "C:x", "a\0b"],
)
def test_an_index_never_leads_out_of_the_folder(tmp_path: Path, name: str):
    (tmp_path / "secret.safetensors").write_bytes(safetensors_bytes(llama_tensors()))
    folder = tmp_path / "model"
    index = write_shards(folder)
    write_index(folder, dict.fromkeys(index, name))
    with pytest.raises(UnusableModel, match="not a plain name"):
        open_checkpoint(folder)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path):
    write_llama(tmp_path / "elsewhere")
    folder = write_llama(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(tmp_path / "elsewhere" / "model.safetensors")
    with pytest.raises(UnusableModel, match="a link out of the model's folder"):
        open_checkpoint(folder)


def test_a_config_that_is_a_link_out_is_refused(tmp_path: Path):
    (tmp_path / "secret.json").write_text("{}")
    folder = write_llama(tmp_path / "model")
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(UnusableModel, match="a link out of the model's folder"):
        open_checkpoint(folder)


def test_a_pipe_is_not_waited_for(tmp_path: Path):
    folder = write_llama(tmp_path / "model")
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(UnusableModel, match=r"config\.json"):
        open_checkpoint(folder)


def test_a_hugging_face_cache_is_read_through_its_links(tmp_path: Path):
    plain = write_llama(tmp_path / "plain")
    repository = tmp_path / "models--someone--tiny"
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, path in enumerate(sorted(plain.iterdir())):
        blob = repository / "blobs" / f"{number:064x}"
        blob.write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(Path("../../blobs") / blob.name)
    found = open_checkpoint(snapshot)
    assert found.tensors == open_checkpoint(plain).tensors
    assert found.fingerprint == open_checkpoint(plain).fingerprint
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(plain / "model.safetensors")
    with pytest.raises(UnusableModel, match="a link out of the model's folder"):
        open_checkpoint(snapshot)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickles_are_refused_with_a_way_out(tmp_path: Path, name: str):
    folder = write_llama(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(UnusableModel, match=r"a pickle that can run code .*save_pretrained"):
        open_checkpoint(folder)
    with pytest.raises(UnusableModel, match=r"is a pickle.*save_pretrained"):
        open_checkpoint(folder / name)


def test_what_is_no_model_is_said(tmp_path: Path):
    with pytest.raises(UnusableModel, match="There is no"):
        open_checkpoint(tmp_path / "nothing")
    with pytest.raises(UnusableModel, match=r"has no config\.json: name a folder"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(UnusableModel, match="lacks hidden_size"):
        open_checkpoint(tmp_path)
    folder = write_llama(tmp_path / "model")
    with pytest.raises(UnusableModel, match="name the folder that it lies in"):
        open_checkpoint(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UnusableModel, match=r"holds no model\.safetensors"):
        open_checkpoint(folder)
