"""Reads exported PyTorch programs (.pt2) without running what a hostile one may hold.

`torch.export.load` trusts its file: it unpickles the sample inputs (and falls back from safe
unpickling to any), hands symbolic sizes to SymPy's parser, which evaluates them as Python,
compiles guards that stand in the file as source, and looks every operator up by its dotted name
from `torch` on. So it is never given the file. It gets a copy made here, in memory, that holds
the description of the program and raw weights alone: no pickles, no guards, no metadata; with
operators and sizes of the forms below only.
"""

from __future__ import annotations

import io
import json
import logging
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch.export.pt2_archive._package import load_pt2

from packlight.errors import UnusableModel

MOST_BYTES = 8 << 30
"""What the members of a file may come to together."""

_PROGRAM = "models/model.json"
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_TENSORS = re.compile(r"data/(weights/weight|constants/tensor)_\d+")
_PLAIN = frozenset({"archive_format", "archive_version", "byteorder", "version", ".data/version"})
_OPERATOR = re.compile(
    r"torch\.ops\.aten\.\w+\.\w+|torch\.sym_(float|int|max|min|not|sqrt|sum)"
    r"|_operator\.(add|and_|eq|floordiv|ge|getitem|gt|le|lt|mod|mul|ne|neg|not_|or_|pow|sub|truediv)"
)
# Names of sizes, whole numbers, and a few functions of them, as SymPy prints them.
_SIZE = re.compile(
    r"(?:Symbol\('[a-z]{1,3}\d{1,6}'(?:, (?:positive|nonnegative|integer)=True)*\)"
    r"|Integer\(-?\d{1,18}\)|(?:Add|Mul|Max|Min|FloorDiv|CeilDiv|Mod|PythonMod)\("
    r"|-?\d{1,18}|[), ])*"
)
_TREE_TYPES = frozenset(
    {None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}
)


def load_program(path: Path) -> torch.export.ExportedProgram:
    """The exported program in a .pt2 file, without its sample inputs.

    Raises UnusableModel for a file that is no such archive, or holds anything but aten operators
    and plain tensors.
    """
    content = _clean(path)
    noisy = logging.getLogger("torch")
    level = noisy.level
    try:
        noisy.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Not torch.export.load, which tries an older, pickled format where this one fails.
            program: torch.export.ExportedProgram = load_pt2(content).exported_programs["model"]
            return program
    except Exception as error:
        raise UnusableModel(
            f"{path} cannot be read as an exported program ({_first_line(error)}): "
            f"save it with torch.export.save of PyTorch {torch.__version__}, or export it to ONNX."
        ) from error
    finally:
        noisy.setLevel(level)


def _clean(path: Path) -> io.BytesIO:
    """A copy of the archive with only what was looked at."""
    result = io.BytesIO()
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > MOST_BYTES:
                raise _unusable(path, "is larger than 8 GiB")
            roots = {entry.filename.split("/", 1)[0] for entry in entries}
            members = {entry.filename.partition("/")[2]: entry for entry in entries}
            if len(roots) != 1 or _PROGRAM not in members or len(members) != len(entries):
                raise _unusable(path, "is no archive of torch.export.save with one model")
            root = roots.pop()
            with zipfile.ZipFile(result, "w", zipfile.ZIP_STORED) as copy:
                for name, entry in members.items():
                    kept = _member(path, name, archive, entry)
                    if kept is not None:
                        _write(copy, f"{root}/{name}", kept)
    except (zipfile.BadZipFile, OSError, NotImplementedError, EOFError) as error:
        raise _unusable(path, f"cannot be read ({_first_line(error)})") from error
    result.seek(0)
    return result


def _write(copy: zipfile.ZipFile, name: str, content: bytes) -> None:
    # PyTorch reads tensors in place, from offsets that are multiples of 64.
    information = zipfile.ZipInfo(name)
    start = copy.fp.tell() + 30 + len(name.encode())  # type: ignore[union-attr]
    padding = -(start + 4) % 64
    information.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
    copy.writestr(information, content)


def _member(
    path: Path, name: str, archive: zipfile.ZipFile, entry: zipfile.ZipInfo
) -> bytes | None:
    """What a member becomes; None where it is left out."""
    if name.startswith("data/sample_inputs/"):
        return b""
    if name in _PLAIN or _TENSORS.fullmatch(name):
        return archive.read(entry)
    if name.startswith((".data/", "extra/")):
        return None
    if name == _PROGRAM:
        return json.dumps(_clean_program(path, _read_json(path, archive, entry))).encode()
    if name in _CONFIGS:
        config = _read_json(path, archive, entry)
        _check_config(path, config)
        return json.dumps(config).encode()
    raise _unusable(path, f"holds {name!r}, which is not read")


def _read_json(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Any:
    try:
        return json.loads(archive.read(entry))
    except (ValueError, RecursionError) as error:
        raise _unusable(path, f"has a broken {entry.filename!r}") from error


def _check_config(path: Path, config: Any) -> None:
    entries = config.get("config", {}) if isinstance(config, dict) else None
    if not isinstance(entries, dict):
        raise _unusable(path, "has a list of tensors that cannot be read")
    for name, entry in entries.items():
        plain = isinstance(entry, dict) and entry.get("use_pickle") is False
        if not plain or not re.fullmatch(r"(weight|tensor)_\d+", str(entry.get("path_name"))):
            raise _unusable(path, f"holds {name!r} as a pickled object, which may run any code")


def _clean_program(path: Path, program: Any) -> Any:
    """The description of a program, checked, without guards and metadata."""
    if not isinstance(program, dict):
        raise _unusable(path, "has a description that cannot be read")
    program["guards_code"] = []
    pending: list[Any] = [program]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending += value
            continue
        if not isinstance(value, dict):
            continue
        if "metadata" in value:
            value["metadata"] = {}
        for key, inner in value.items():
            if key in ("target", "as_operator") and isinstance(inner, str):
                _check_operator(path, key, inner, value)
            elif key == "expr_str" and not (
                isinstance(inner, str) and len(inner) < 10_000 and _SIZE.fullmatch(inner)
            ):
                raise _unusable(path, f"has a size {str(inner)[:60]!r}, which is not read")
            elif key in ("as_custom_obj", "as_opaque_obj", "custom_obj_name"):
                raise _unusable(path, "holds objects of Python, which may run any code")
            elif key in ("in_spec", "out_spec") and inner is not None:
                _check_tree(path, inner)
            pending.append(inner)
    return program


def _check_operator(path: Path, key: str, name: str, owner: dict[str, Any]) -> None:
    # Signatures have targets too: the names of weights, which are looked up in a dictionary.
    weight = key == "target" and "inputs" not in owner
    if not weight and not _OPERATOR.fullmatch(name):
        raise _unusable(path, f"calls {name[:80]!r}, which is no operator that packlight knows")


def _check_tree(path: Path, text: Any) -> None:
    """Only tuples, lists and dictionaries may hold inputs and outputs."""
    try:
        tree = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise _unusable(path, "describes its inputs in a way that cannot be read") from error
    pending = [tree]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            if value.get("type") not in _TREE_TYPES:
                raise _unusable(path, f"takes or gives a {str(value.get('type'))[:60]!r}")
            pending += value.values()
        elif isinstance(value, list):
            pending += value


def _unusable(path: Path, what: str) -> UnusableModel:
    return UnusableModel(
        f"{path} {what}: export the module to ONNX where you trust it, and give that file."
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
