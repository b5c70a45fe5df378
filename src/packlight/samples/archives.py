"""Reads .npy and .npz files that may be damaged or hostile, without unpickling anything.

Sizes are checked before memory is taken. Big arrays that lie uncompressed are mapped, big
compressed ones are unpacked into a temporary file and mapped from there.
"""

from __future__ import annotations

import math
import mmap
import shutil
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np

from packlight.errors import UnusableSamples
from packlight.samples.protocol import Array

_MEMBERS = 1000
_TOTAL = 64 << 30
_BOMB_RATIO, _BOMB_BYTES = 1000, 1 << 30
_MAPPED_FROM = 64 << 20
_SPOOLED_FROM = 256 << 20
_CHUNK = 1 << 20
_BROKEN = (ValueError, EOFError, OSError, OverflowError, SyntaxError, zlib.error)


def read_npy(path: Path) -> Array:
    """The array of a .npy file, mapped rather than read.

    Raises UnusableSamples for a damaged file and for one that holds pickled objects.
    """
    try:
        with path.open("rb") as file:
            shape, fortran, dtype = _read_header(file, str(path))
            _check_size(
                path.stat().st_size - file.tell(), shape, dtype, str(path), may_be_longer=True
            )
            return _mapped(file, file.tell(), shape, dtype, fortran=fortran)
    except _BROKEN as error:
        raise _damaged(str(path), error) from error


def read_npz(path: Path) -> dict[str, Array]:
    """The arrays of a .npz file by name.

    Raises UnusableSamples for a damaged file, pickled objects, too many or too large members.
    """
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            members = [member for member in archive.infolist() if not member.is_dir()]
            _check_members(members, path)
            arrays: dict[str, Array] = {}
            for member in members:
                name = member.filename.removesuffix(".npy")
                if name in arrays:
                    raise UnusableSamples(f"{path} holds two arrays named '{name}'; keep one")
                arrays[name] = _read_member(archive, member, file, path)
    except (*_BROKEN, zipfile.BadZipFile, NotImplementedError, RuntimeError, KeyError) as error:
        raise _damaged(str(path), error) from error
    return arrays


def _check_members(members: list[zipfile.ZipInfo], path: Path) -> None:
    if len(members) > _MEMBERS:
        raise UnusableSamples(
            f"{path} holds {len(members)} arrays, more than {_MEMBERS}; "
            "a samples file has one for each input of the model"
        )
    total = sum(member.file_size for member in members)
    packed = max(1, sum(member.compress_size for member in members))
    if total > _TOTAL:
        raise UnusableSamples(
            f"{path} unpacks to {total >> 30} GiB, more than the {_TOTAL >> 30} GiB that are "
            "accepted; give fewer samples"
        )
    if total > _BOMB_BYTES and total > _BOMB_RATIO * packed:
        raise UnusableSamples(
            f"{path} unpacks to {total // packed} times its size ({total >> 20} MiB), as a zip "
            "bomb does; save the samples again with numpy.savez"
        )


def _read_member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, file: IO[bytes], path: Path
) -> Array:
    label = f"{path} ('{member.filename}')"
    with archive.open(member) as packed:
        shape, fortran, dtype = _read_header(packed, label)
        header = packed.tell()
        size = _check_size(member.file_size - header, shape, dtype, label)
        stored = member.compress_type == zipfile.ZIP_STORED
        if stored and size >= _MAPPED_FROM and not member.flag_bits & 0x1:
            start = _data_offset(file, member) + header
            if start + size <= path.stat().st_size:
                return _mapped(file, start, shape, dtype, fortran=fortran)
        if size >= _SPOOLED_FROM:
            with spool_file(size) as spool:
                shutil.copyfileobj(packed, spool, _CHUNK)
                spool.flush()
                return _mapped(spool, 0, shape, dtype, fortran=fortran)
        content = packed.read()  # to the end, so that the archive's checksum is compared
    if len(content) != size:
        raise ValueError(f"holds {len(content)} bytes instead of {size}")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def _data_offset(file: IO[bytes], member: zipfile.ZipInfo) -> int:
    """Where an uncompressed member's bytes begin: after its local header of variable length."""
    file.seek(member.header_offset)
    local = file.read(30)
    if len(local) < 30 or local[:4] != b"PK\x03\x04":
        raise ValueError("its local header is damaged")
    name, extra = int.from_bytes(local[26:28], "little"), int.from_bytes(local[28:30], "little")
    return member.header_offset + 30 + name + extra


def _read_header(file: IO[bytes], label: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, Fortran order and type of the array that a .npy stream begins with."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    else:  # 3.0 differs in the names of fields only, and arrays with fields are no samples
        raise ValueError(f"format version {version} is not one for plain arrays")
    if dtype.hasobject:
        raise UnusableSamples(
            f"{label} holds pickled Python objects, which are never loaded; "
            "save plain arrays of numbers, all samples of one shape"
        )
    if dtype.names is not None or dtype.subdtype is not None:
        raise UnusableSamples(
            f"{label} holds records with fields; save one plain array of numbers for each input"
        )
    return tuple(int(size) for size in shape), bool(fortran), dtype


def _check_size(
    found: int,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    label: str,
    *,
    may_be_longer: bool = False,
) -> int:
    """The bytes that the header promises, once they are known to be there."""
    if any(size < 0 for size in shape):
        raise ValueError(f"its header has the shape {list(shape)}")
    size = math.prod(shape) * dtype.itemsize
    if found < size or (found > size and not may_be_longer):
        raise UnusableSamples(
            f"{label} is damaged: its header promises {size} bytes for {dtype}{list(shape)}, "
            f"but {max(found, 0)} are there; save the samples again"
        )
    return size


def _mapped(
    file: IO[bytes], offset: int, shape: tuple[int, ...], dtype: np.dtype[Any], *, fortran: bool
) -> Array:
    order = "F" if fortran else "C"
    if math.prod(shape) * dtype.itemsize == 0:
        return np.empty(shape, dtype)
    # An own mmap instead of numpy.memmap: it stays valid when the file object is closed, and
    # works for a file without a name.
    page = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    size = math.prod(shape) * dtype.itemsize
    view = mmap.mmap(file.fileno(), offset - page + size, access=mmap.ACCESS_READ, offset=page)
    flat = np.frombuffer(view, dtype, count=math.prod(shape), offset=offset - page)
    return flat.reshape(shape, order=order)  # type: ignore[call-overload,no-any-return]


def spool_file(size: int) -> IO[bytes]:
    """A temporary file without a name: it is gone with its last user, even if that is killed.

    Raises UnusableSamples where `size` bytes don't fit on the disk.
    """
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if size > free:
        raise UnusableSamples(
            f"the samples need {size >> 20} MiB of temporary space, but {folder} has only "
            f"{free >> 20} MiB free; make room, set TMPDIR, or give fewer samples"
        )
    return tempfile.TemporaryFile(prefix="packlight-")


def map_spool(file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """The array that was written to a spool file, mapped; the file may be closed afterwards."""
    file.flush()
    return _mapped(file, 0, shape, dtype, fortran=False)


def _damaged(label: str, error: BaseException) -> UnusableSamples:
    what = str(error).split("\n", 1)[0][:200] or type(error).__name__
    return UnusableSamples(
        f"{label} cannot be read as an array file ({what}); save the samples again with "
        "numpy.savez or numpy.save"
    )
