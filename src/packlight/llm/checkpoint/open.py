"""Opens a checkpoint, whatever it is: a folder from Hugging Face, or a GGUF file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from packlight.errors import UnusableModel
from packlight.llm.architectures import ARCHITECTURES, BY_MODEL_TYPE, Architecture
from packlight.llm.checkpoint.config import ModelConfig, read_config
from packlight.llm.checkpoint.folder import has_file, read_weights, resolve_within
from packlight.llm.checkpoint.mapping import FLOATS, Mapped, map_tensors, pieces_by_name, shape_of
from packlight.llm.checkpoint.metadata import config_of, metadata_of
from packlight.llm.checkpoint.model import Checkpoint, TensorInfo
from packlight.llm.checkpoint.parts import Part
from packlight.llm.checkpoint.roles import infer_role
from packlight.llm.gguf.reader import GgufFile, read_gguf
from packlight.llm.gguf.values import Value
from packlight.llm.storage import TYPES, Stored
from packlight.llm.vocabulary import FILES, read_vocabulary
from packlight.strict_json import read_json

MOST_CONFIG_BYTES = 1 << 22
_SAMPLE_BYTES = 4096

# Of the file itself, not of the model: written anew.
_OWN_KEYS = ("general.file_type", "general.quantization_version")


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Open the model at `path`, a Hugging Face folder or a .gguf file; no weights are read yet.

    Everything is checked: heads and sizes of files, that none leads out of the folder, and
    that tensors are those the configuration asks for. Raises UnusableModel.
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise UnusableModel(f"There is no {path}: check the name of the model.")
    if path.suffix == ".safetensors":
        raise UnusableModel(f"{path} is a file of a model: name the folder that it lies in.")
    if path.suffix in (".bin", ".pt", ".pth", ".ckpt"):
        raise UnusableModel(
            f"{path} is a pickle, which can run code when it is read: this is refused. Convert it "
            "where you trust it, with transformers: AutoModelForCausalLM.from_pretrained(folder)"
            ".save_pretrained(new_folder)."
        )
    return _open_gguf(read_gguf(path))


def _open_folder(folder: Path) -> Checkpoint:
    if not has_file(folder, "config.json"):
        files = sorted(one.name for one in folder.glob("*.gguf"))
        hint = f"name the file {files[0]} itself" if files else "name a folder from Hugging Face"
        raise UnusableModel(f"{folder} has no config.json: {hint}.")
    where = str(folder)
    config_path = resolve_within(folder, "config.json")
    config = read_config(read_json(config_path, MOST_CONFIG_BYTES), f"{folder}/config.json")
    weights = read_weights(folder)
    architecture = BY_MODEL_TYPE.get(config.model_type)
    notes = _notes(config)
    metadata: dict[str, Value] | None = None
    trouble = ""
    if architecture is None:
        infos, parts = _map_unknown(config, weights.tensors)
    else:
        _check_tie(architecture, config, weights.tensors, where)
        infos, parts = map_tensors(architecture, config, weights.tensors, where)
        vocabulary = read_vocabulary(folder, config)
        notes += vocabulary.notes
        trouble = vocabulary.trouble
        metadata = {**metadata_of(config), **vocabulary.metadata}
    small = [config_path, *(resolve_within(folder, one) for one in FILES if has_file(folder, one))]
    return Checkpoint(
        path=folder,
        config=config,
        tensors=infos,
        parts=parts,
        files=(*small, *(shard.path for shard in weights.shards)),
        size_bytes=sum(one.size_bytes for part in parts.values() for one in part.sources),
        fingerprint=_fingerprint(
            [one.read_bytes() for one in small] + [shard.head for shard in weights.shards],
            weights.tensors.values(),
        ),
        notes=notes,
        metadata=metadata,
        trouble=trouble,
    )


def _open_gguf(file: GgufFile) -> Checkpoint:
    if (count := file.metadata.get("split.count")) is not None and count.content != 1:
        raise UnusableModel(
            f"{file.path} is one of {count.content} parts of a model: join them first, with "
            "llama.cpp's `llama-gguf-split --merge`."
        )
    config = config_of(file.metadata, file.tensors, file.path)
    known = next((one for one in ARCHITECTURES if config.model_type in one.model_types), None)
    pieces = pieces_by_name(known, config) if known and config.known else {}
    infos: dict[str, TensorInfo] = {}
    parts: dict[str, Part] = {}
    for name, one in file.tensors.items():
        piece = pieces.get(name)
        if piece is not None and one.shape != shape_of(piece, config):
            raise UnusableModel(
                f"{name} of {file.path} has the shape {list(one.shape)}, and its metadata ask for "
                f"{list(shape_of(piece, config))}: convert the model again."
            )
        role = piece.role if piece else infer_role(name, one.shape, config)
        infos[name] = TensorInfo(name, one.shape, one.dtype, name, role)
        parts[name] = Part(one.shape, (one,))
    with file.path.open("rb") as opened:
        head = opened.read(file.head_bytes)
    return Checkpoint(
        path=file.path,
        config=config,
        tensors=infos,
        parts=parts,
        files=(file.path,),
        size_bytes=sum(one.size_bytes for one in file.tensors.values()),
        fingerprint=_fingerprint([head], (part.sources[0] for part in parts.values())),
        metadata={key: value for key, value in file.metadata.items() if key not in _OWN_KEYS},
    )


def _map_unknown(config: ModelConfig, stored: Mapping[str, Stored]) -> Mapped:
    infos, parts = {}, {}
    for name, one in stored.items():
        if one.dtype not in FLOATS or not one.shape:
            continue
        role = infer_role(name, one.shape, config)
        infos[name] = TensorInfo(name, one.shape, one.dtype, name, role)
        parts[name] = Part(one.shape, (one,))
    return infos, parts


def _check_tie(
    architecture: Architecture, config: ModelConfig, stored: Mapping[str, Stored], where: str
) -> None:
    if architecture.always_tied and not config.tied and "lm_head.weight" in stored:
        raise UnusableModel(
            f"{where} has an output matrix of its own (tie_word_embeddings is false), for which "
            f"llama.cpp's {architecture.name} has no place."
        )


def _notes(config: ModelConfig) -> tuple[str, ...]:
    notes = []
    if not config.known:
        notes.append(
            f"{config.model_type} is not a known architecture: tensors keep their own names, and "
            "what they are for is guessed from names and shapes."
        )
    elif config.sliding_window and config.architecture in ("llama", "phi3", "qwen2"):
        notes.append(
            f"llama.cpp computes {config.architecture} without the sliding window of "
            f"{config.sliding_window} tokens: beyond so many it differs from transformers."
        )
    return tuple(notes)


def _fingerprint(heads: list[bytes], stored: Iterable[Stored]) -> str:
    """Hash everything that is small, and from each tensor's middle a few bytes."""
    digest = hashlib.sha256()
    for head in heads:
        digest.update(hashlib.sha256(head).digest())
    for one in sorted(stored, key=lambda one: one.name):
        if not one.shape or one.dtype not in TYPES:
            continue
        place = f"{one.name} {one.dtype} {one.shape} {one.offset}"
        digest.update(place.encode("utf-8", "surrogateescape"))
        with one.file.open("rb") as file:
            file.seek(one.offset + max(0, one.size_bytes - _SAMPLE_BYTES) // 2)
            digest.update(file.read(min(_SAMPLE_BYTES, one.size_bytes)))
    return digest.hexdigest()
