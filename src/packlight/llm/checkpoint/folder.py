"""A Hugging Face folder: which files it has, that none leads elsewhere, and all its tensors."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from packlight.errors import UnusableModel
from packlight.llm.checkpoint.safetensors import Shard, read_shard
from packlight.llm.storage import Stored
from packlight.strict_json import read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MOST_INDEX_BYTES = 1 << 27
MOST_SHARDS = 10_000


@dataclass(frozen=True)
class Weights:
    """Every tensor of a checkpoint by its own name, and the files they lie in."""

    tensors: dict[str, Stored]
    shards: tuple[Shard, ...]


def resolve_within(folder: Path, name: str) -> Path:
    """The real path of the file `name` of a model's folder.

    The name must be a plain one, without folders. After following links the file must lie in
    the folder; or, in a Hugging Face cache, `snapshots/<revision>/name` may be a link into
    the cache's own `blobs`. Raises UnusableModel.
    """
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if len(parts) != 1 or parts[0] in ("..", "/") or "\0" in name or ":" in name:
        raise UnusableModel(
            f"{folder} points to the file {name[:200]!r}, which is not a plain name of a file in "
            "it: this is refused. Download the model again."
        )
    path = folder / name
    try:
        real = path.resolve(strict=True)
        status = real.stat()
    except (OSError, RuntimeError, ValueError):
        raise UnusableModel(f"{folder} has no file {name}: download the model again.") from None
    if not stat.S_ISREG(status.st_mode):
        raise UnusableModel(f"{path} is not an ordinary file: download the model again.")
    home = folder.resolve()
    blobs = home.parent.parent / "blobs"
    cached = home.parent.name == "snapshots" and real.parent == blobs.resolve()
    if real.parent != home and not cached:
        raise UnusableModel(
            f"{path} is a link out of the model's folder: this is refused, as such a file could "
            "pull in anything on this machine. Copy it instead of linking to it."
        )
    return real


def has_file(folder: Path, name: str) -> bool:
    """Tell whether the folder has such a file, or a link of that name."""
    path = folder / name
    return path.is_file() or path.is_symlink()


def read_weights(folder: Path) -> Weights:
    """Read the heads of all shards of a folder, and check that they agree with its index.

    Raises UnusableModel when shards or tensors are missing, or the weights are pickled.
    """
    if has_file(folder, INDEX):
        return _read_indexed(folder)
    if not has_file(folder, SINGLE):
        others = sorted(path.name for path in folder.glob("*.safetensors"))
        if len(others) != 1:
            raise _without_weights(folder, others)
        shard = read_shard(resolve_within(folder, others[0]))
    else:
        shard = read_shard(resolve_within(folder, SINGLE))
    return Weights(dict(shard.tensors), (shard,))


def _read_indexed(folder: Path) -> Weights:
    path = resolve_within(folder, INDEX)
    listed = read_json(path, MOST_INDEX_BYTES).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise UnusableModel(f"{path} has no weight_map: download the model again.")
    if not all(isinstance(name, str) for name in listed.values()):
        raise UnusableModel(f"{path} has a weight_map that does not name files.")
    names = sorted(set(listed.values()))
    if len(names) > MOST_SHARDS:
        raise UnusableModel(f"{path} names {len(names)} files; at most {MOST_SHARDS} are read.")
    missing = [name for name in names if _is_plain(name) and not has_file(folder, name)]
    if missing:
        raise UnusableModel(
            f"{folder} lacks {len(missing)} of the {len(names)} files of its index, {missing[0]} "
            "first: download the model again."
        )
    shards = {name: read_shard(resolve_within(folder, name)) for name in names}
    tensors: dict[str, Stored] = {}
    for tensor, name in listed.items():
        if tensor not in shards[name].tensors:
            raise UnusableModel(
                f"{path} says that {tensor} is in {name}, and it is not: the files are not of one "
                "model. Download it again."
            )
        tensors[tensor] = shards[name].tensors[tensor]
    _refuse_unlisted(path, shards.items(), listed)
    return Weights(tensors, tuple(shards.values()))


def _refuse_unlisted(
    path: Path, shards: Iterable[tuple[str, Shard]], listed: dict[str, str]
) -> None:
    for name, shard in shards:
        for tensor in shard.tensors:
            if listed.get(tensor) != name:
                raise UnusableModel(
                    f"{name} holds {tensor}, which {path} does not place there: the files are not "
                    "of one model. Download it again."
                )


def _is_plain(name: str) -> bool:
    return name not in ("", ".", "..") and not set(name) & set("/\\:\0")


def _without_weights(folder: Path, others: list[str]) -> UnusableModel:
    if others:
        return UnusableModel(
            f"{folder} holds {len(others)} safetensors files and no {INDEX} that says what is "
            "where: download the model again, with its index."
        )
    pickles = sorted(
        path.name for ending in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(ending)
    )
    if pickles:
        return UnusableModel(
            f"{folder} holds its weights as {pickles[0]}, a pickle that can run code when it is "
            "read: this is refused. Convert it where you trust it, with transformers: "
            "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)."
        )
    return UnusableModel(f"{folder} holds no {SINGLE}: name the folder of a downloaded model.")
