"""`manifest.json`: every file's size and SHA-256, and what is claimed of them.

The file is sealed: its last line is the SHA-256 of all bytes before that line, so that a changed
byte of the manifest itself is found too. The seal is a checksum and no signature; it names the
proof: two folders with the same seal are the same, byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from packlight.errors import UnusablePack, UnusableProof
from packlight.proof.tolerance import OutputPromise
from packlight.report import to_plain
from packlight.strict_json import parse_json
from packlight.transport.folder import check_names
from packlight.version import __version__

SCHEMA = 1
MANIFEST = "manifest.json"
GOLDEN = "golden.npz"
PAGE = "verify.html"
MOST_BYTES = 4 << 20
"""Of a manifest; one with a thousand files has 200 KB."""

MOST_FILES = 1000
MOST_SAMPLES = 64

Kind = Literal["graph", "language-model"]

_SEAL = '  "sha256": "{}"\n}}\n'
_ADVICE = "copy the folder again, or compress the model again"


@dataclass(frozen=True)
class FileEntry:
    """A file as it was written. sha256: in hexadecimal."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class GoldenEntry:
    """What `golden.npz` holds. inputs: names, in order. outputs: what is promised of each."""

    samples: int
    inputs: tuple[str, ...]
    outputs: tuple[OutputPromise, ...]


@dataclass(frozen=True)
class Manifest:
    """What an output folder promises.

    model: the name of the file that runs. original: the file that was compressed (None: not a
    single one). claims: as in report.json. made_on: machine and versions. golden: None where the
    folder holds no samples, of which note says why.
    """

    kind: Kind
    model: str
    original: FileEntry | None
    files: tuple[FileEntry, ...]
    claims: Mapping[str, Any]
    made_on: Mapping[str, str]
    golden: GoldenEntry | None = None
    note: str = ""
    packlight: str = field(default=__version__)

    def claim(self, key: str, which: str) -> float | None:
        """One finite number of the claims, such as claims.latency_ms.compressed; None: no claim."""
        pair = self.claims.get(key)
        value = pair.get(which) if isinstance(pair, Mapping) else None
        return float(value) if value is not None and _is_number(value) else None


def describe_file(path: Path, *, size_bytes: int | None = None) -> FileEntry:
    """Hash a file. size_bytes: of all its parts, where others belong to it."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileEntry(path.name, path.stat().st_size if size_bytes is None else size_bytes, digest)


def write_manifest(manifest: Manifest) -> str:
    """Give the text of `manifest.json`, sealed; the same for the same manifest."""
    plain = to_plain({"schema": SCHEMA, **asdict(manifest)})
    head = json.dumps(plain, indent=2, allow_nan=False).removesuffix("\n}") + ",\n"
    return head + _SEAL.format(hashlib.sha256(head.encode("ascii")).hexdigest())


def read_seal(content: bytes) -> str | None:
    """Give the seal of a manifest in hexadecimal; None where it is broken."""
    length = len(_SEAL.format("0" * 64))
    digest = hashlib.sha256(content[:-length]).hexdigest()
    return digest if content[-length:] == _SEAL.format(digest).encode("ascii") else None


def read_manifest(content: bytes, where: Path) -> Manifest:
    """Read what `write_manifest` wrote; nothing in it is trusted.

    Raises UnusableProof for another schema, for names that are no plain names of files, and
    where something is missing or of another kind than it should be.
    """
    value = parse_json(content, str(where), kind=UnusableProof, advice=_ADVICE)
    if value.get("schema") != SCHEMA:
        raise UnusableProof(
            f"{where} is of schema {str(value.get('schema'))[:20]}, but this packlight reads "
            f"schema {SCHEMA}: use the packlight that wrote it, or a newer one."
        )
    try:
        manifest = _manifest(value)
    except (KeyError, TypeError, ValueError) as error:
        raise UnusableProof(
            f"{where} does not hold what it should ({str(error)[:200]}): {_ADVICE}."
        ) from None
    names = [entry.name for entry in manifest.files]
    try:
        check_names([*names, MANIFEST])
    except UnusablePack as error:
        raise UnusableProof(f"{where} names a file that it may not: {error}") from None
    needed = [manifest.model, *([GOLDEN] if manifest.golden else [])]
    missing = [name for name in needed if name not in names]
    if missing:
        raise UnusableProof(f"{where} does not list {missing[0]!r}, which it needs: {_ADVICE}.")
    return manifest


def _manifest(value: Mapping[str, Any]) -> Manifest:
    original, golden = value["original"], value["golden"]
    kind = _text(value["kind"])
    if kind not in get_args(Kind):
        raise ValueError(f"the kind {kind[:40]!r} is not known")
    return Manifest(
        kind="graph" if kind == "graph" else "language-model",
        model=_text(value["model"]),
        original=None if original is None else _file(original),
        files=tuple(_file(entry) for entry in _list(value["files"], MOST_FILES)),
        claims=_mapping(value["claims"]),
        made_on={_text(key): _text(item) for key, item in _mapping(value["made_on"]).items()},
        golden=None if golden is None else _golden(golden),
        note=_text(value["note"]),
        packlight=_text(value["packlight"]),
    )


def _file(value: Any) -> FileEntry:
    entry = _mapping(value)
    digest = _text(entry["sha256"])
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise ValueError(f"{digest[:70]!r} is no SHA-256")
    return FileEntry(_text(entry["name"]), _count(entry["size_bytes"], 1 << 62), digest)


def _golden(value: Any) -> GoldenEntry:
    entry = _mapping(value)
    samples = _count(entry["samples"], MOST_SAMPLES)
    inputs = tuple(_text(name) for name in _list(entry["inputs"], MOST_FILES))
    outputs = tuple(_promise(one) for one in _list(entry["outputs"], MOST_FILES))
    if not (samples and inputs and outputs):
        raise ValueError("golden samples without samples, inputs or outputs")
    return GoldenEntry(samples, inputs, outputs)


def _promise(value: Any) -> OutputPromise:
    entry = _mapping(value)
    keys = ("scale", "spread", "tolerance", "original_spread", "original_tolerance")
    numbers = {key: entry[key] for key in keys}
    for key, number in numbers.items():
        if not _is_number(number) or number < 0:
            raise ValueError(f"{key} is {str(number)[:40]}, where a number from 0 is expected")
    if not isinstance(entry["classes"], bool):
        raise TypeError("classes is neither true nor false")
    return OutputPromise(
        name=_text(entry["name"]),
        dtype=_text(entry["dtype"]),
        classes=entry["classes"],
        **{key: float(number) for key, number in numbers.items()},
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{str(value)[:40]!r}, where an object is expected")
    return value


def _list(value: Any, most: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise TypeError(f"{str(value)[:40]!r}, where a list of at most {most} is expected")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{str(value)[:40]!r}, where a text is expected")
    return value


def _count(value: Any, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise TypeError(f"{str(value)[:40]!r}, where a count is expected")
    return value


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
