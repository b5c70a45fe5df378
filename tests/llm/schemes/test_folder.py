"""Folders for vLLM: the weights that transformers finds in them, resuming, and what is refused."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folder_bench import llama_tensors, write_llama
from language_zoo import TEXT, make_model

from packlight.errors import UnusableOutput, WrongUsage
from packlight.llm.checkpoint import open_checkpoint
from packlight.llm.checkpoint.safetensors import read_shard
from packlight.llm.rounding import Settings
from packlight.llm.schemes import compress_folder, find_scheme, folder, plan_folder, shards
from packlight.llm.schemes.config import quantization_config
from packlight.llm.schemes.layouts import decode_parts, from_half
from packlight.llm.schemes.sources import outputs_of, to_folder_rows
from packlight.llm.text import open_tokenizer, read_windows

pytest.importorskip("torch")
pytest.importorskip("transformers")


def make(folder: Path, family: str, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_model(folder, family, **changes)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("models") / "llama", "llama")


def stored(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Type, shape and bytes of every tensor of a folder."""
    found = {}
    for file in sorted(path.glob("*.safetensors")):
        content = file.read_bytes()
        length = int.from_bytes(content[:8], "little")
        head = json.loads(content[8 : 8 + length])
        head.pop("__metadata__")
        for name, one in head.items():
            begin, end = (8 + length + at for at in one["data_offsets"])
            found[name] = (one["dtype"], tuple(one["shape"]), content[begin:end])
    return found


def dense(path: Path, model: Path, scheme: str) -> dict[str, np.ndarray]:
    """Every weight of a written folder as our own decoder reads it."""
    tensors, found = stored(path), {}
    checkpoint, kind = open_checkpoint(model), find_scheme(scheme)
    plan = plan_folder(checkpoint, kind)
    for name in checkpoint.tensors:
        for output in outputs_of(checkpoint, name):
            base = output.removesuffix(".weight")
            ends = [end for end in _ENDS if f"{base}.{end}" in tensors]
            if name in plan.rounded:
                parts = {end: _rows(*tensors[f"{base}.{end}"]) for end in ends}
                found[output] = decode_parts(kind, parts, plan.half)
            else:
                dtype, shape, data = tensors[output]
                flat = np.frombuffer(data, np.uint8)[None]
                found[output] = from_half(flat, dtype).reshape(shape)
    return found


_ENDS = ("weight", "weight_packed", "weight_scale", "weight_shape", "weight_global_scale")


def _rows(dtype: str, shape: tuple[int, ...], data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8).reshape(shape[0], -1)


@pytest.mark.parametrize(
    ("family", "scheme"),
    [
        ("llama", "w4a16"),
        ("llama-biases", "w8a8"),
        ("llama-tied", "fp8"),
        ("qwen3", "nvfp4"),
        ("phi3", "w8a16"),
        ("gemma2", "w4a16"),
        ("mistral", "2:4"),
    ],
)
def test_transformers_finds_the_weights_that_were_written(
    family: str, scheme: str, tmp_path: Path
) -> None:
    """Names, row order, layouts and config: all that stands between our bytes and a model."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModelForCausalLM

    model = make(tmp_path / "model", family)
    out = tmp_path / "out"
    made = compress_folder(open_checkpoint(model), out, find_scheme(scheme))
    assert made.size_bytes == sum(one.stat().st_size for one in out.glob("*.safetensors"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kind = torch.bfloat16 if scheme == "nvfp4" else torch.float32
        loaded = AutoModelForCausalLM.from_pretrained(out, dtype=kind).eval()
        with torch.no_grad():
            loaded(torch.arange(4, 20)[None])
    weights = {name: one.detach().float().numpy() for name, one in loaded.state_dict().items()}
    ours = dense(out, model, scheme)
    for name, one in ours.items():
        if "nvfp4" in scheme:  # compressed-tensors decompresses it to bfloat16
            one = torch.from_numpy(one).bfloat16().float().numpy()
        np.testing.assert_array_equal(weights[name], one, err_msg=name)
    error = np.mean([row.error for row in made.rows])
    assert 0 < error < (0.02 if scheme != "2:4" else 0.3)


def test_rows_of_queries_go_back_to_where_they_were(llama: Path, tmp_path: Path) -> None:
    """In 8 bits each row stays nearest to its own, not to its neighbour in llama.cpp's order."""
    out = tmp_path / "out"
    compress_folder(open_checkpoint(llama), out, find_scheme("w8a8"))
    original, found = stored(llama), dense(out, llama, "w8a8")
    for name, one in found.items():
        dtype, shape, data = original[name]
        assert dtype == "F32"
        np.testing.assert_allclose(one, np.frombuffer(data, "<f4").reshape(shape), atol=0.02)
    part = open_checkpoint(llama).parts["blk.0.attn_q.weight"]
    rows = np.arange(64)[:, None]
    assert not np.array_equal(to_folder_rows(part, rows), rows)


def test_the_folder_says_what_it_is(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = compress_folder(open_checkpoint(llama), out, find_scheme("w4a16"))
    config = json.loads((out / "config.json").read_text())
    assert config["dtype"] == "float16" and config["model_type"] == "llama"
    said = config["quantization_config"]
    assert said["quant_method"] == "compressed-tensors" and said["format"] == "pack-quantized"
    assert "lm_head" in said["ignore"] and len(said["config_groups"]) == 1
    assert said["config_groups"]["group_0"]["weights"]["group_size"] == 32  # rows of 64 and 96
    assert (out / "tokenizer.json").read_bytes() == (llama / "tokenizer.json").read_bytes()
    assert (out / "generation_config.json").exists()
    assert {row.type for row in made.rows} == {"w4a16"} and len(made.rows) == 14
    assert all("16 bits" in reason for reason in made.kept.values())
    read_shard(out / "model.safetensors")  # our own reader finds no hole, and nothing overlaps


def test_widths_that_do_not_divide_are_left_and_told(tmp_path: Path) -> None:
    model = make(tmp_path / "model", "llama", intermediate_size=100)
    checkpoint = open_checkpoint(model)
    plan = plan_folder(checkpoint, find_scheme("w4a16"))
    assert plan.kept["blk.0.ffn_down.weight"].startswith("its rows of 100 weights do not divide")
    assert "model.layers.0.mlp.down_proj" in quantization_config(checkpoint, plan)["ignore"]


def test_several_groups_name_their_layers(tmp_path: Path) -> None:
    model = make(tmp_path / "model", "llama", intermediate_size=128)
    checkpoint = open_checkpoint(model)
    groups = quantization_config(checkpoint, plan_folder(checkpoint, find_scheme("w4a16")))
    found = {
        one["weights"]["group_size"]: one["targets"] for one in groups["config_groups"].values()
    }
    assert found[128] == [f"model.layers.{layer}.mlp.down_proj" for layer in (0, 1)]
    assert "model.layers.1.self_attn.q_proj" in found[32] and len(found[32]) == 12


def test_large_folders_are_in_shards(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    compress_folder(open_checkpoint(llama), whole, find_scheme("w4a16"))
    monkeypatch.setattr(folder, "SHARD_BYTES", 40_000)
    compress_folder(open_checkpoint(llama), parts, find_scheme("w4a16"))
    names = sorted(one.name for one in parts.glob("*.safetensors"))
    assert len(names) > 2 and names[0] == f"model-00001-of-{len(names):05}.safetensors"
    index = json.loads((parts / "model.safetensors.index.json").read_text())
    assert stored(parts) == stored(whole) and set(index["weight_map"]) == set(stored(whole))
    open_shards = {one: read_shard(parts / one).tensors for one in names}
    assert all(tensor in open_shards[file] for tensor, file in index["weight_map"].items())


@pytest.mark.parametrize("stop", [3, 9])
@pytest.mark.parametrize("with_text", [False, True])
def test_a_killed_run_goes_on_to_the_same_bytes(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int, with_text: bool
) -> None:
    windows, checkpoint = None, open_checkpoint(llama)
    if with_text:
        text = tmp_path / "text.txt"
        text.write_text(TEXT * 40)
        windows = read_windows(text, open_tokenizer(llama), vocabulary=384, length=64, begin=None)
    options: dict[str, Any] = {
        "windows": windows,
        "settings": Settings(rows_make_up=False),
    }
    scheme = find_scheme("w8a8")
    compress_folder(checkpoint, tmp_path / "whole", scheme, **options)
    method = "take" if with_text else "_write_pieces"  # a tensor at a time
    whole, done = getattr(folder.FolderRun, method), []

    def counted(run: Any, name: str, *rest: Any, **named: Any) -> Any:
        if len(done) == stop:
            raise KeyboardInterrupt
        done.append(name)
        return whole(run, name, *rest, **named)

    monkeypatch.setattr(folder.FolderRun, method, counted)
    with pytest.raises(KeyboardInterrupt):
        compress_folder(checkpoint, tmp_path / "out", scheme, **options)
    assert not (tmp_path / "out").exists()
    first, done[:] = set(done), [""] * 20
    compress_folder(checkpoint, tmp_path / "out", scheme, **options)
    assert not first & set(done) and len(done) == 20 + 14 - stop
    files = {one.name: one.read_bytes() for one in (tmp_path / "whole").iterdir()}
    assert {one.name: one.read_bytes() for one in (tmp_path / "out").iterdir()} == files
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("name", "factor", "half"),
    [
        ("model.norm.weight", 1, "F16"),
        ("model.norm.weight", 1e6, "BF16"),  # beyond the largest
        ("model.layers.1.mlp.up_proj.weight", 1e-5, "BF16"),  # whose scales lose digits
        ("model.norm.weight", 1e-5, "F16"),
        ("vision_tower.patches.weight", 1e6, "BF16"),  # of no part of the model, but written too
    ],
)
def test_the_floats_that_hold_the_most_are_taken(
    tmp_path: Path, name: str, factor: float, half: str
) -> None:
    tensors = {**llama_tensors(), "vision_tower.patches.weight": np.ones((2, 3), np.float32)}
    tensors[name] *= np.float32(factor)
    checkpoint = open_checkpoint(write_llama(tmp_path / "model", tensors))
    assert folder.find_half(checkpoint) == half
    # Of 16 bits already, a checkpoint keeps its own.
    halves: dict[str, Any] = {"F16": np.float16, "BF16": np.uint16}
    own = {one: array.astype(halves[half]) for one, array in llama_tensors().items()}
    assert folder.find_half(open_checkpoint(write_llama(tmp_path / "half", own))) == half


def test_another_scheme_begins_anew(llama: Path, tmp_path: Path) -> None:
    partial = tmp_path / ".out.partial"
    partial.mkdir()
    (partial / "model-00001-of-00009.safetensors").write_bytes(b"old")
    compress_folder(open_checkpoint(llama), tmp_path / "out", find_scheme("w8a8"))
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 1
    with pytest.raises(UnusableOutput, match="exists"):
        compress_folder(open_checkpoint(llama), tmp_path / "out", find_scheme("w8a8"))


def test_a_full_disk_leaves_nothing_under_the_final_name(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object, entry: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards.Journal, "add", full)
    with pytest.raises(UnusableOutput, match="No space left on device"):
        compress_folder(open_checkpoint(llama), tmp_path / "out", find_scheme("w8a8"))
    assert not (tmp_path / "out").exists()


def test_layers_that_are_no_linear_ones_are_refused(tmp_path: Path) -> None:
    model = make(tmp_path / "model", "gpt2")
    with pytest.raises(WrongUsage, match=r"transposed.*Use --target llama\.cpp"):
        compress_folder(open_checkpoint(model), tmp_path / "out", find_scheme("w4a16"))
