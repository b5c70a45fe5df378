"""Whether a folder holds the files that its manifest lists, and nothing else."""

from __future__ import annotations

import hashlib
import itertools
import os
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

from packlight.errors import UnusableProof
from packlight.proof.manifest import MANIFEST, MOST_BYTES, FileEntry, Manifest

_MOST_ENTRIES = 10_000
_OF_FILE_MANAGERS = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
_KINDS = {stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder"}


def read_manifest_bytes(folder: Path) -> bytes:
    """Read `manifest.json`, of a bounded size.

    Raises UnusableProof where it is not there, or no plain file.
    """
    if not folder.is_dir():
        found = "is no folder" if folder.exists() else "does not exist"
        unpack = ": unpack it first, with `packlight unpack`" if folder.suffix == ".plz" else ""
        raise UnusableProof(
            f"{folder} {found}{unpack or ': name the folder that `packlight compress` wrote'}."
        )
    path = folder / MANIFEST
    if not os.path.lexists(path):
        raise UnusableProof(
            f"{folder} holds no {MANIFEST}, so there is nothing to hold it against: it was written "
            "by a packlight older than 0.2, or packed without --with-report. Compress the model "
            "again, or pack its folder with --with-report."
        )
    complaint = _look(path)
    if complaint:
        raise UnusableProof(f"{path} {complaint}: copy the folder again.")
    with _open_plain(path) as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise UnusableProof(
            f"{path} has more than {MOST_BYTES} bytes, which no manifest needs: copy the folder "
            "again."
        )
    return content


def find_damage(folder: Path, manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Give (file, complaint) of everything that is not as the manifest says, as it is found."""
    for entry in manifest.files:
        complaint = _compare(folder / entry.name, entry)
        if complaint:
            yield entry.name, complaint
    known = {entry.name for entry in manifest.files} | {MANIFEST} | _OF_FILE_MANAGERS
    original = find_original(folder, manifest)
    with os.scandir(folder) as entries:
        found = [entry.name for entry in itertools.islice(entries, _MOST_ENTRIES)]
    for name in sorted(found):
        if name not in known and (original is None or name != original.name):
            kind = _look(folder / name)
            yield name, f"is not in the manifest{f', and {kind}' if kind else ''}"


def find_original(folder: Path, manifest: Manifest) -> Path | None:
    """The original model, where somebody put it into the folder."""
    entry = manifest.original
    names = {one.name for one in manifest.files} | {MANIFEST}
    if entry is None or entry.name in names or Path(entry.name).name != entry.name:
        return None
    path = folder / entry.name
    if _look(path) or _hash(path) != entry.sha256:
        return None
    return path


def _compare(path: Path, entry: FileEntry) -> str:
    """Say how a file differs from what it should be; '' where it does not."""
    complaint = _look(path)
    if complaint:
        return complaint
    size = path.lstat().st_size
    if size != entry.size_bytes:
        return f"has {size} bytes instead of {entry.size_bytes}"
    return "" if _hash(path) == entry.sha256 else "was changed: its SHA-256 is another"


def _look(path: Path) -> str:
    """Say why a path is no plain file; '' where it is one."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return "is missing"
    if stat.S_ISREG(mode):
        return ""
    return f"is {_KINDS.get(stat.S_IFMT(mode), 'no plain file')}"


def _hash(path: Path) -> str:
    with _open_plain(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open_plain(path: Path) -> BufferedReader:
    """Open for reading; what became a link or a pipe meanwhile is not followed or waited for."""
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
