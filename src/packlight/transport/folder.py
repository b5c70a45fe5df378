"""A folder into one transport file, and back, byte for byte; each whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from packlight.durable import current_umask, sync_folder
from packlight.errors import UnusableOutput, UnusablePack
from packlight.progress import SILENT, Progress
from packlight.transport.container import (
    HASH_BYTES,
    MAGIC,
    MOST_FILES,
    MOST_NAME_BYTES,
    VERSION,
    Entry,
    Packed,
    decode_file,
    encode_file,
    hash_rest,
    method_of,
    plain_of,
    read_head,
    split_plain,
    write_head,
)
from packlight.transport.plan import cut_file
from packlight.transport.wire import Buffer

REPORTS = ("golden.npz", "manifest.json", "report.html", "report.json", "verify.html")
"""What of an output folder is not needed to use the model: left out unless asked for."""

_RESERVED = frozenset(
    ["con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))]
)


@dataclass(frozen=True)
class Transport:
    """A transport file and what it holds.

    path: of the file (after pack) or of the folder (after unpack). packed_bytes: of the file.
    files: what is in it. left_out: names of the folder's files that are not.
    """

    path: Path
    packed_bytes: int
    files: tuple[Packed, ...]
    left_out: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Bytes of the files unpacked."""
        return sum(file.size_bytes for file in self.files)


def pack(
    folder: str | Path,
    out: str | Path | None = None,
    *,
    with_report: bool = False,
    force: bool = False,
    progress: Progress = SILENT,
) -> Transport:
    """Write the files of a folder as one small file that `unpack` gives back byte for byte.

    out: the file; without it <folder>.plz next to the folder. with_report: also pack the report
    and what `verify` needs. force: replace the file if it exists.
    Raises UnusablePack for a folder that holds links, folders or other than plain files,
    UnusableOutput where the file exists or cannot be written.
    """
    folder = Path(folder)
    names, left_out = _list_folder(folder, with_report)
    path = folder.absolute().with_name(folder.absolute().name + ".plz") if out is None else out
    path = Path(path)
    if path.is_symlink() or (path.exists() and not (force and path.is_file())):
        raise UnusableOutput(
            f"{path} exists: choose another name with --out, or replace it with --force."
        )
    if path.exists() and any(path.samefile(folder / name) for name in names):
        raise UnusableOutput(f"{path} is one of the files to pack: choose another name with --out.")
    progress.stage(f"packing {len(names)} files")
    try:
        with contextlib.ExitStack() as cleanup:
            body = cleanup.enter_context(tempfile.TemporaryFile(dir=path.parent))
            entries, plains, packed = [], [], []
            for name in names:
                with _open_plain(folder / name) as content:
                    pieces = cut_file(content, onnx=name.lower().endswith(".onnx"))
                    lengths, methods = [], []
                    for coded in encode_file(content, pieces):
                        body.write(coded)
                        lengths.append(len(coded))
                        methods.append(method_of(coded))
                        progress.step(name)
                    plains.append(plain_of(content, pieces))
                    digest = hashlib.sha256(content).digest()
                    entries.append(Entry(name, len(content), pieces, tuple(lengths), digest))
                    ways = tuple(sorted(set(methods)))
                    packed.append(Packed(name, len(content), sum(lengths), ways))
            head = write_head(entries, b"".join(plains))
            size = _write_pack(path, head, body, cleanup)
    except OSError as error:
        raise UnusableOutput(
            f"{path} cannot be written ({error.strerror or error}): check that its folder exists, "
            "may be written to and has space left."
        ) from error
    return Transport(path, size, tuple(packed), left_out)


def packed_size(files: Sequence[Path], *, texts: Mapping[str, str] | None = None) -> int:
    """Give the bytes of a transport file of these files and texts by name; it is not kept."""
    with tempfile.TemporaryDirectory(prefix="packlight-") as scratch:
        folder = Path(scratch) / "files"
        folder.mkdir()
        for file in files:
            shutil.copyfile(file, folder / file.name)
        for name, text in (texts or {}).items():
            (folder / name).write_bytes(text.encode("utf-8"))
        return pack(folder, Path(scratch) / "all.plz").packed_bytes


def unpack(
    file: str | Path,
    out: str | Path | None = None,
    *,
    progress: Progress = SILENT,
) -> Transport:
    """Write the folder that a transport file holds; it appears whole or not at all.

    out: the folder, which must not exist; without it the file's name without .plz.
    Raises UnusablePack for a file that is damaged, cut short or not of this format, and
    UnusableOutput where the folder exists or cannot be written.
    """
    file = Path(file)
    folder = Path(out) if out is not None else file.with_suffix("")
    if folder == file:
        folder = file.with_name(file.name + ".unpacked")
    if folder.is_symlink() or folder.exists():
        raise UnusableOutput(f"{folder} exists: choose another folder with --out.")
    size = _check_file(file)
    with file.open("rb") as source:
        _check_whole(source, file)
        entries, plain, begin = read_head(source, size)
        check_names([entry.name for entry in entries])
        progress.stage(f"unpacking {len(entries)} files")
        try:
            with contextlib.ExitStack() as cleanup:
                folder.parent.mkdir(parents=True, exist_ok=True)
                need = sum(entry.size for entry in entries)
                if need > shutil.disk_usage(folder.parent).free:
                    raise UnusableOutput(
                        f"{file} unpacks to {need} bytes, more than the disk of {folder} has left."
                    )
                made = Path(
                    tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent)
                )
                cleanup.callback(shutil.rmtree, made, ignore_errors=True)
                made.chmod(0o777 & ~current_umask())
                source.seek(begin)
                at = 0
                for entry in entries:
                    runs, at = split_plain(plain, entry, at)
                    parts = decode_file(source, entry, iter(runs))
                    _write_file(made / entry.name, entry, parts, progress)
                sync_folder(made)
                _rename_new(made, folder)
                sync_folder(folder.parent)
        except OSError as error:
            raise UnusableOutput(
                f"The folder {folder} cannot be written ({error.strerror or error}): check that "
                "its place may be written to, or choose another with --out."
            ) from error
    held = tuple(Packed(entry.name, entry.size, sum(entry.coded)) for entry in entries)
    return Transport(folder, size, held)


def _list_folder(folder: Path, with_report: bool) -> tuple[list[str], tuple[str, ...]]:
    """Give the names to pack, in order, and those left out."""
    if not folder.is_dir():
        found = "is no folder" if folder.exists() else "does not exist"
        raise UnusablePack(f"{folder} {found}: name the folder that `packlight compress` wrote.")
    names = sorted(path.name for path in folder.iterdir())
    for name in names:
        mode = (folder / name).lstat().st_mode
        if not stat.S_ISREG(mode):
            kind = {stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder"}.get(stat.S_IFMT(mode))
            raise UnusablePack(
                f"{folder / name} is {kind or 'not an ordinary file'}: only a folder of plain "
                "files can be packed. Move it elsewhere."
            )
    left_out = () if with_report else tuple(name for name in names if name in REPORTS)
    names = [name for name in names if name not in left_out]
    if not names or len(names) > MOST_FILES:
        raise UnusablePack(
            f"{folder} holds {len(names)} files to pack: from 1 to {MOST_FILES} are possible."
        )
    check_names(names)
    return names, left_out


def check_names(names: list[str]) -> None:
    """Raise UnusablePack for names that mean something else than a file in its folder."""
    for name in names:
        plain = name.isprintable() and 0 < len(name.encode("utf-8", "replace")) <= MOST_NAME_BYTES
        if (
            not plain
            or any(sign in name for sign in '/\\:*?"<>|')
            or name.strip(" ") != name
            or name.endswith(".")
            or name.startswith("..")
            or name.split(".")[0].lower() in _RESERVED
        ):
            raise UnusablePack(f"{name!r} is not a plain name of a file: this is refused.")
    if len({name.casefold() for name in names}) != len(names):
        raise UnusablePack("Two files have the same name, but for capital letters: rename one.")


@contextlib.contextmanager
def _open_plain(path: Path) -> Iterator[Buffer]:
    """Give the bytes of a file without reading all of it at once."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    with os.fdopen(handle, "rb"):
        if os.fstat(handle).st_size == 0:
            yield b""
            return
        with mmap.mmap(handle, 0, access=mmap.ACCESS_READ) as mapped:
            view = memoryview(mapped)
            try:
                yield view
            finally:
                view.release()


def _write_pack(path: Path, head: bytes, body: IO[bytes], cleanup: contextlib.ExitStack) -> int:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    cleanup.callback(Path(name).unlink, missing_ok=True)
    with os.fdopen(handle, "w+b") as target:
        target.write(MAGIC + bytes([VERSION]) + bytes(HASH_BYTES) + head)
        body.seek(0)
        shutil.copyfileobj(body, target)
        target.seek(len(MAGIC) + 1 + HASH_BYTES)
        digest = hash_rest(target)
        size = target.tell()
        target.seek(len(MAGIC) + 1)
        target.write(digest)
        target.flush()
        os.fsync(handle)
        # What cannot be read back is never handed over.
        read_head(target, size)
    Path(name).chmod(0o666 & ~current_umask())
    Path(name).replace(path)
    sync_folder(path.parent)
    return size


def _check_file(file: Path) -> int:
    try:
        status = file.stat()
    except OSError as error:
        raise UnusablePack(f"{file} cannot be opened: {error.strerror or error}.") from None
    if not stat.S_ISREG(status.st_mode):
        raise UnusablePack(f"{file} is not an ordinary file: name a .plz file.")
    return status.st_size


def _check_whole(source: IO[bytes], file: Path) -> None:
    """Raise UnusablePack for another format, another version, or a damaged file."""
    head = source.read(len(MAGIC) + 1 + HASH_BYTES)
    if head[: len(MAGIC)] != MAGIC:
        raise UnusablePack(
            f"{file} is not a transport file of packlight: name one that `packlight pack` wrote."
        )
    if head[len(MAGIC) : len(MAGIC) + 1] != bytes([VERSION]):
        version = head[len(MAGIC)] if len(head) > len(MAGIC) else "none"
        raise UnusablePack(
            f"{file} is of version {version} of the format, and this packlight reads version "
            f"{VERSION}: use the packlight that wrote it, or a newer one."
        )
    if hash_rest(source) != head[len(MAGIC) + 1 :]:
        raise UnusablePack(
            f"{file} is damaged or cut short: its checksum differs. Download or copy it again."
        )


def _write_file(path: Path, entry: Entry, parts: Iterator[bytes], progress: Progress) -> None:
    hashed = hashlib.sha256()
    with path.open("xb") as target:
        for part in parts:
            hashed.update(part)
            target.write(part)
            progress.step(entry.name)
        target.flush()
        os.fsync(target.fileno())
    if hashed.digest() != entry.sha256:
        raise UnusablePack(
            f"{entry.name} does not come out as it went in: its checksum differs. The file was "
            "damaged, or written by a packlight with a fault."
        )


def _rename_new(made: Path, folder: Path) -> None:
    if folder.is_symlink() or folder.exists():
        raise UnusableOutput(f"{folder} has appeared meanwhile: choose another with --out.")
    made.rename(folder)
