"""Reads the heads of safetensors files, of which nothing is believed before it is checked.

The format (github.com/huggingface/safetensors, README.md): 8 bytes give the length of a JSON
head; it gives type, shape and place of each tensor; the tensors follow without a hole.
"""

from __future__ import annotations

import stat
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from packlight.errors import UnusableModel
from packlight.llm.storage import Stored
from packlight.strict_json import parse_json

MOST_HEAD_BYTES = 100_000_000
MOST_TENSORS = 1 << 18
MOST_AXES = 8

_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
_QUANTIZED = ("F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2")


@dataclass(frozen=True)
class Shard:
    """A safetensors file. head: its JSON as bytes, for fingerprints."""

    path: Path
    tensors: dict[str, Stored]
    head: bytes
    size_bytes: int


def read_shard(path: Path) -> Shard:
    """Read and check the head of the safetensors file at `path`, weights not read.

    Raises UnusableModel when lengths lie, a key is there twice, a type is unknown, or tensors
    overlap, leave a hole, end past the file or have another size than their shape asks for.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UnusableModel(f"{path} is not an ordinary file: download the model again.")
        with path.open("rb") as file:
            length = file.read(8)
            if length[:7] == b"version" or status.st_size < 8:
                raise UnusableModel(
                    f"{path} is no safetensors file but a placeholder or cut short "
                    f"({status.st_size} bytes): run `git lfs pull`, or download it again."
                )
            (head_bytes,) = struct.unpack("<Q", length)
            if head_bytes > MOST_HEAD_BYTES or head_bytes > status.st_size - 8:
                raise UnusableModel(
                    f"{path} says that its head has {head_bytes} bytes; the file has "
                    f"{status.st_size}, and a head at most {MOST_HEAD_BYTES}: it is cut short, "
                    "damaged or no safetensors file. Download it again."
                )
            head = file.read(head_bytes)
    except OSError as error:
        raise UnusableModel(f"{path} cannot be read: {error.strerror or error}.") from None
    listed = parse_json(head, f"The head of {path}")
    listed.pop("__metadata__", None)
    if not 0 < len(listed) <= MOST_TENSORS:
        raise UnusableModel(f"{path} holds {len(listed)} tensors: 1 to {MOST_TENSORS} can be read.")
    begin = 8 + head_bytes
    found = [_check(path, name, entry, status.st_size - begin) for name, entry in listed.items()]
    _check_cover(path, found, status.st_size - begin)
    tensors = {
        name: Stored(name, path, dtype, shape, begin + first)
        for name, dtype, shape, first, _ in found
    }
    return Shard(path, tensors, head, status.st_size)


_Found = tuple[str, str, tuple[int, ...], int, int]


def _check(path: Path, name: str, entry: Any, data_bytes: int) -> _Found:
    where = f"The tensor {name[:200]} of {path}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise UnusableModel(
            f"{where} is not described by dtype, shape and data_offsets: download it again."
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype in _QUANTIZED:
        raise UnusableModel(
            f"{where} is stored as {dtype}, that is, already compressed: use the model in "
            "BF16, F16 or F32."
        )
    if not isinstance(dtype, str) or dtype not in _BYTES:
        raise UnusableModel(f"{where} has the unknown type {str(dtype)[:50]!r}.")
    if not _are_counts(shape) or len(shape) > MOST_AXES or not _are_counts(offsets):
        raise UnusableModel(f"{where} has a shape or place that is no list of whole numbers.")
    if len(offsets) != 2 or not offsets[0] <= offsets[1] <= data_bytes:
        raise UnusableModel(
            f"{where} is said to lie at {offsets} of {data_bytes} bytes: the file is cut short or "
            "damaged. Download it again."
        )
    # Python's integers do not overflow; a product as large as this is a lie anyway.
    needed = prod(shape) * _BYTES[dtype]
    if needed != offsets[1] - offsets[0]:
        raise UnusableModel(
            f"{where} has the shape {shape} in {dtype}, which takes {needed} bytes, and "
            f"{offsets[1] - offsets[0]} are given: the file is damaged. Download it again."
        )
    return name, dtype, tuple(shape), offsets[0], offsets[1]


def _are_counts(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(
        type(one) is int and 0 <= one < 1 << 62 for one in numbers
    )


def _check_cover(path: Path, found: list[_Found], data_bytes: int) -> None:
    """Refuse tensors that overlap, and bytes that belong to none."""
    end, last = 0, "the head"
    for name, _, _, first, stop in sorted(found, key=lambda one: (one[3], one[4])):
        if first != end:
            what = "overlap" if first < end else f"leave a hole of {first - end} bytes"
            raise UnusableModel(
                f"In {path} {last[:200]} and {name[:200]} {what}: the file is damaged, or made to "
                "do harm. Download it again."
            )
        end, last = stop, name
    if end != data_bytes:
        raise UnusableModel(
            f"{path} has {data_bytes - end} bytes behind its last tensor: the file is damaged. "
            "Download it again."
        )
