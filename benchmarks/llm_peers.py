"""llama.cpp's own way from a Hugging Face folder to a quantized GGUF file, for benchmarks/llm.py.

The 16-bit file is written with llama.cpp's `gguf` package and knows nothing of packlight's
reader. `llama_model_quantize` makes the others, in a process of its own:

    python llm_peers.py ORIGINAL.gguf OUT.gguf TYPE THREADS [IMPORTANCE.npz]

prints the seconds that it took. The importance matrix (the mean of each input's square) is what
`llama-imatrix` collects, for the same tensors; it is handed over in memory, as an array of
structures that ends with an empty one (llama-cpp-python 0.3.36).
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K", "IQ4_XS", "IQ3_S")
FEW = ("IQ3_XXS", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S")
"""Most of them llama.cpp only makes with an importance matrix, of all tensors in the last."""

# Names of a Llama's tensors in a GGUF file.
_BLOCK = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_OTHERS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def name_in_gguf(name: str) -> str:
    """Returns the GGUF name of a tensor of a Hugging Face Llama."""
    if name in _OTHERS:
        return _OTHERS[name]
    _, _, number, rest = name.split(".", 3)
    module, _, kind = rest.rpartition(".")
    return f"blk.{number}.{_BLOCK[module]}.{kind}"


def write_original(folder: Path, out: Path, *, half: bool) -> None:
    """Writes a Hugging Face Llama with a byte-level tokenizer as GGUF, in 16 or 32 bits."""
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head = config.get("head_dim") or config["hidden_size"] // heads
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_name(folder.parent.name)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(1 if half else 0)
    _add_tokenizer(writer, tokenizer, config)
    for name, tensor in sorted(load_file(folder / "model.safetensors").items()):
        array = tensor.astype(np.float32)
        for part, count in ((".q_proj.", heads), (".k_proj.", kv_heads)):
            if part in name:
                array = _interleave(array, count)
        if half and array.ndim > 1:
            array = array.astype(np.float16)
        writer.add_tensor(name_in_gguf(name), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: Any, tokenizer: dict[str, Any], config: dict[str, Any]) -> None:
    import gguf

    words = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])
    special = {one["id"] for one in tokenizer["added_tokens"] if one["special"]}
    kinds = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([word for word, _ in words])
    writer.add_token_types(
        [kinds.CONTROL if number in special else kinds.NORMAL for _, number in words]
    )
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([one if isinstance(one, str) else " ".join(one) for one in merges])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)


def _interleave(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Returns rows in llama.cpp's order: the two halves of each head's rotation take turns."""
    rows, inputs = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, inputs)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, inputs))


def observe_moments(
    folder: Path, text: str, *, sequences: int, length: int, threads: int
) -> dict[str, NDArray[np.float64]]:
    """Returns second moments E[x x^T] [in, in] of what each linear layer reads, by GGUF name.

    From the float model on the first sequences of a text. A head tied to the embeddings is
    found under the embeddings' name. The diagonals are what llama.cpp calls importance.
    """
    import torch  # noqa: TID251
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads)
    tokens = AutoTokenizer.from_pretrained(folder).encode(text, add_special_tokens=False)
    count = min(sequences, len(tokens) // length)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    second: dict[str, Any] = {}

    def add(name: str, values: Any) -> None:
        rows = values.reshape(-1, values.shape[-1])
        # A batch's products fit float32; their sums over all batches are held in float64.
        second[name] = second.get(name, 0) + (rows.T @ rows).double()

    def watch(name: str) -> Any:
        return lambda _, inputs: add(name, inputs[0])

    for name, module in model.model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(watch(name_in_gguf(f"model.{name}.weight")))
    head = "token_embd.weight" if model.config.tie_word_embeddings else "output.weight"
    with torch.inference_mode():
        for begin in range(0, count, 4):
            part = torch.tensor(tokens[begin * length : min(begin + 4, count) * length])
            hidden = model.model(part.reshape(-1, length), use_cache=False).last_hidden_state
            add(head, hidden)
    return {name: (total / (count * length)).numpy() for name, total in second.items()}


def quantize(
    original: Path,
    out: Path,
    kind: str,
    *,
    threads: int,
    importance: dict[str, NDArray[np.float32]] | None = None,
    pure: bool = False,
) -> float:
    """Lets llama.cpp quantize a file; returns the seconds that it took. pure: all in one type."""
    import llama_cpp.llama_cpp as llama

    settings = llama.llama_model_quantize_default_params()
    settings.ftype = getattr(llama, f"LLAMA_FTYPE_MOSTLY_{kind}")
    settings.nthread = threads
    settings.pure = pure
    if importance:
        entries = (llama.llama_model_imatrix_data * (len(importance) + 1))()
        for place, (name, values) in enumerate(importance.items()):
            entries[place].name = name.encode()
            entries[place].data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            entries[place].size = values.size
        settings.imatrix = entries
    began = time.perf_counter()
    status = llama.llama_model_quantize(str(original).encode(), str(out).encode(), settings)
    seconds = time.perf_counter() - began
    if status != 0:
        raise SystemExit(f"llama_model_quantize ended with {status}")
    return seconds


def main(arguments: list[str]) -> None:
    original, out, kind, threads, *rest = arguments
    importance = None
    if rest:
        with np.load(rest[0], allow_pickle=False) as archive:
            importance = {name: np.ascontiguousarray(archive[name]) for name in archive.files}
    seconds = quantize(Path(original), Path(out), kind, threads=int(threads), importance=importance)
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main(sys.argv[1:])
