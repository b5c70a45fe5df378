"""Checks a model file before any of it is trusted: what it is, and what it points at."""

from __future__ import annotations

import stat
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx

from packlight.errors import UnusableModel

PROTOBUF_LIMIT_BYTES = (1 << 31) - 1
"""Protobuf cannot read a message of 2 GiB or more."""

_EXPORT_HINT = "export it to ONNX first (PyTorch: torch.onnx.export; TensorFlow: tf2onnx)"

# (offset, first bytes, what it is, what to do)
_OTHER_FORMATS: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"PK\x03\x04", "a zip archive, such as a PyTorch checkpoint or a Keras file", _EXPORT_HINT),
    (0, b"\x80\x02", "a Python pickle, such as an old PyTorch checkpoint", _EXPORT_HINT),
    (0, b"\x80\x03", "a Python pickle, such as an old PyTorch checkpoint", _EXPORT_HINT),
    (0, b"\x80\x04", "a Python pickle", _EXPORT_HINT),
    (0, b"\x80\x05", "a Python pickle", _EXPORT_HINT),
    (4, b"TFL3", "a TensorFlow Lite model", "convert it to ONNX first (tf2onnx --tflite)"),
    (4, b"ORTM", "a model in onnxruntime's own ORT format", "use the .onnx file it was made from"),
    (0, b"\x89HDF", "an HDF5 file, such as a Keras model", _EXPORT_HINT),
    (0, b"GGUF", "a GGUF file", "packlight reads ONNX files here"),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the model", "run `git lfs pull`"),
    (0, b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (0, b"\x93NUMPY", "a NumPy array", "name the model file"),
)


def read_proto(path: Path) -> onnx.ModelProto:
    """Parse the file at `path` as an ONNX model, without its external data.

    Raises UnusableModel when it is missing, empty, cut short, larger than
    protobuf allows, or something else than ONNX (says what, and what to do).
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        raise UnusableModel(f"There is no file {path}: check the name of the model file.") from None
    except OSError as error:
        raise UnusableModel(f"{path} cannot be opened: {error.strerror or error}.") from None
    if stat.S_ISDIR(status.st_mode):
        raise UnusableModel(f"{path} is a folder: name the .onnx file inside it.")
    if not stat.S_ISREG(status.st_mode):
        raise UnusableModel(f"{path} is not an ordinary file: name an .onnx file.")
    if status.st_size == 0:
        raise UnusableModel(f"{path} is empty: download or export the model again.")
    if status.st_size > PROTOBUF_LIMIT_BYTES:
        raise UnusableModel(
            f"{path} has {status.st_size} bytes, more than the 2 GiB that one ONNX file may have: "
            "export it with external data (onnx.save(..., save_as_external_data=True))."
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UnusableModel(f"{path} cannot be read: {error.strerror or error}.") from None
    _refuse_other_formats(path, content[:512])
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(content)
    except Exception:
        raise UnusableModel(_unparsable(path, content)) from None
    if not proto.HasField("graph") or not (proto.graph.output or proto.graph.node):
        raise UnusableModel(
            f"{path} holds no ONNX graph: it is cut short, or not an ONNX model. "
            "Download or export it again."
        )
    if not proto.opset_import:
        raise UnusableModel(
            f"{path} does not say which operator set it uses (no opset_import): it is cut short "
            "or was not exported correctly. Download or export it again."
        )
    return proto


def resolve_external(location: str, model_path: Path, *, tensor: str = "") -> Path:
    """The real path of the external data at `location` of the model at `model_path`.

    The location must be relative, without `..`, and after following links lie inside the
    model's folder. One exception: in a Hugging Face cache the model itself is a link
    `snapshots/<revision>/... -> blobs/<hash>`, and its data may then be a link into
    the same `blobs` folder. A regular file with several hard links may be somebody
    else's file under a new name, which nothing can tell apart: it is refused
    outside such a cache. Raises UnusableModel.
    """
    who = f"{tensor} of {model_path}" if tensor else f"The external data of {model_path}"
    parts = PurePosixPath(location.replace("\\", "/")).parts
    if not location or "\0" in location or "_ORT_MEM_ADDR_" in location:
        raise UnusableModel(
            f"{who} is said to lie in {location!r}, which is no file name: export it again."
        )
    if (
        PurePosixPath(location).is_absolute()
        or PureWindowsPath(location).drive
        or PureWindowsPath(location).root
        or ".." in parts
    ):
        raise UnusableModel(
            f"{who} points outside the model's folder ({location!r}): this is refused, as such a "
            "file could pull in anything on this machine. Put the data next to the model and "
            "export it again."
        )
    folder = model_path.parent
    target = folder / location
    try:
        real = target.resolve(strict=True)
        status = real.stat()
    except FileNotFoundError:
        raise UnusableModel(
            f"{who} lies in {location!r}, and there is no such file: put it next to the model."
        ) from None
    except (OSError, RuntimeError, ValueError) as error:
        raise UnusableModel(
            f"{who} lies in {location!r}, which cannot be opened: {error}."
        ) from None
    if not stat.S_ISREG(status.st_mode):
        raise UnusableModel(f"{who} lies in {location!r}, which is not an ordinary file.")
    cache = _cache_blobs(model_path)
    if cache is not None and real.parent == cache:
        return real
    if not real.is_relative_to(folder.resolve()):
        raise UnusableModel(
            f"{who} points outside the model's folder through a link ({location!r}): this is "
            "refused. Copy the data next to the model instead of linking to it."
        )
    if status.st_nlink > 1:
        raise UnusableModel(
            f"{who} lies in {location!r}, a file with {status.st_nlink} hard links, which may be "
            "a file from elsewhere: this is refused. Make a copy of it (cp) in its place."
        )
    return real


def first_cause(error: BaseException) -> str:
    """The first line of what first went wrong, for a message."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _refuse_other_formats(path: Path, head: bytes) -> None:
    for offset, magic, what, hint in _OTHER_FORMATS:
        if head[offset : offset + len(magic)] == magic:
            raise UnusableModel(f"{path} is {what}, not an ONNX model: {hint}.")
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html")):
        raise UnusableModel(
            f"{path} is a web page (HTML), not an ONNX model: the download went wrong, "
            "download it again."
        )
    if text.startswith((b"<?xml", b"<net")):
        raise UnusableModel(
            f"{path} is an XML file, such as an OpenVINO model, not ONNX: use the original .onnx."
        )
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000:
        raise UnusableModel(f"{path} is a safetensors file, not an ONNX model: {_EXPORT_HINT}.")


def _unparsable(path: Path, content: bytes) -> str:
    # Every exporter writes ir_version, field 1, first: tag 0x08 and a small number.
    if content[0] == 0x08 and len(content) > 1 and content[1] < 32:
        return (
            f"{path} begins like an ONNX model but is cut short or damaged ({len(content)} bytes): "
            "download or export it again."
        )
    return f"{path} is not an ONNX model: name a file that was exported to ONNX."


def _cache_blobs(model_path: Path) -> Path | None:
    """The `blobs` folder that a model in a Hugging Face cache is linked to."""
    if not model_path.is_symlink():
        return None
    blobs = model_path.resolve().parent
    snapshots = blobs.parent / "snapshots"
    # The folder is resolved, the link itself is not: it must lie in this cache's snapshots.
    inside = model_path.parent.resolve().is_relative_to(snapshots)
    return blobs if blobs.name == "blobs" and inside else None
