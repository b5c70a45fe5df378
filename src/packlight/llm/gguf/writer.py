"""Writes GGUF files tensor by tensor: whole or not at all under their name, and resumable.

The head has the same size whatever types the tensors turn out to have, so room is left for it,
tensors follow one at a time as they come, and it is filled in at the end. Beside the unfinished
file a journal holds what is finished, each tensor with its hash; a killed run goes on from there.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Protocol, TypeAlias

from numpy.typing import NDArray

from packlight.durable import current_umask
from packlight.errors import UnusableModel, UnusableOutput
from packlight.llm.gguf.reader import MOST_NAME_BYTES, GgufFile
from packlight.llm.gguf.values import Value, value_of
from packlight.llm.gguf.writing import Writing, told_apart

Array: TypeAlias = NDArray[Any]
Rows: TypeAlias = Array | Iterable[Array]
Content: TypeAlias = tuple[str, str, Rows | Callable[[], Rows]]
"""Name, type, and the tensor, or what computes it and is called only if it is not yet written:
uint8 [.., row_bytes] in the type's own layout, or floats [.., out, in] for F32, F16 and BF16;
or either as blocks of rows, so that not even one tensor need be in memory."""


class Shaped(Protocol):
    """What is known of a tensor before it is written."""

    @property
    def shape(self) -> tuple[int, ...]:
        """[.., out, in]."""
        ...


class Source(Protocol):
    """What a file is written from: see packlight.llm.checkpoint.Checkpoint."""

    @property
    def tensors(self) -> Mapping[str, Shaped]:
        """Every tensor that the file will hold."""
        ...

    @property
    def fingerprint(self) -> str:
        """What tells one checkpoint from another."""
        ...

    @property
    def files(self) -> tuple[Path, ...]:
        """The files it is read from."""
        ...

    @property
    def trouble(self) -> str:
        """Why there is no tokenizer in the metadata; empty where there is one."""
        ...

    def gguf_metadata(self) -> Mapping[str, Value]:
        """Everything that stands in front of the tensors. Raises UnusableModel."""
        ...


def write_gguf(
    path: Path | str,
    checkpoint: Source,
    contents: Iterable[Content],
    *,
    metadata: Mapping[str, Any] | None = None,
    settings: str = "",
) -> GgufFile:
    """Write every tensor of `contents` and what belongs in front of them, one tensor in memory.

    metadata: values that replace or add to the checkpoint's own, `Value` or plain Python; None
    takes a key away. settings: what else the tensors' bytes depend on; a killed run goes on
    only where checkpoint, metadata and settings are the same. The order of the contents is the
    order in the file. Raises UnusableOutput, UnusableModel.
    """
    with begin_gguf(path, checkpoint, metadata=metadata, settings=settings) as writing:
        for name, kind, content in contents:
            if callable(content):
                if writing.finished.get(name) == kind:
                    continue
                content = content()
            writing.add(name, kind, content)
        return writing.finish()


@contextlib.contextmanager
def begin_gguf(
    path: Path | str,
    checkpoint: Source,
    *,
    metadata: Mapping[str, Any] | None = None,
    settings: str = "",
) -> Iterator[Writing]:
    """Begin a file, or go on with it; unless `finish` is called it waits for the next run.

    Arguments as in `write_gguf`. Raises UnusableOutput when the folder cannot be written or is
    full, another run writes the same file, or the file is the checkpoint itself.
    """
    path = Path(path)
    _refuse_own_source(path, checkpoint.files)
    pairs = _override(checkpoint.gguf_metadata(), metadata or {})
    if "tokenizer.ggml.model" not in pairs:
        raise UnusableModel(checkpoint.trouble or f"There is no tokenizer for {path}.")
    shapes = {name: tuple(info.shape) for name, info in checkpoint.tensors.items()}
    for name in shapes:
        if len(name.encode("utf-8", "surrogateescape")) > MOST_NAME_BYTES:
            raise UnusableModel(
                f"The tensor {name} has a longer name than GGUF's {MOST_NAME_BYTES} bytes."
            )
    key = _key(checkpoint.fingerprint, pairs, shapes, settings)
    partial = path.with_name(f".{path.name}.partial")
    with contextlib.ExitStack() as cleanup:
        with told_apart(path):
            file = cleanup.enter_context(_open(partial))
            _lock(file, path)
            writing = Writing(path, partial, file, pairs, shapes, key)
        yield writing


def _open(partial: Path) -> IO[bytes]:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(partial, flags, 0o666 & ~current_umask()), "r+b")


def _lock(file: IO[bytes], path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UnusableOutput(
            f"{path} is being written by another run: wait for it, or choose another name."
        ) from None


def _refuse_own_source(path: Path, files: tuple[Path, ...]) -> None:
    if path.exists() and any(one.exists() and one.samefile(path) for one in files):
        raise UnusableOutput(
            f"{path} is the model that is read: choose another name for the output."
        )


def _override(own: Mapping[str, Value], changes: Mapping[str, Any]) -> dict[str, Value]:
    pairs = {**own}
    for key, change in changes.items():
        if change is None:
            pairs.pop(key, None)
        else:
            pairs[key] = change if isinstance(change, Value) else value_of(change)
    return pairs


def _key(
    fingerprint: str,
    pairs: Mapping[str, Value],
    shapes: Mapping[str, tuple[int, ...]],
    settings: str,
) -> str:
    digest = hashlib.sha256()
    for text in (fingerprint, settings, repr(sorted(shapes.items()))):
        digest.update(hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest())
    for name, value in pairs.items():
        digest.update(name.encode("utf-8", "surrogateescape") + bytes([0, value.kind]))
        digest.update(hashlib.sha256(value.raw).digest())
    return digest.hexdigest()
