"""A folder as a zip file, piece by piece: nothing is written, and little is in memory."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

_PIECE_BYTES = 1 << 20
_FIRST_DAY = (1980, 1, 1, 0, 0, 0)


class _Pieces:
    """A file that is written to and handed on, and cannot be gone back in."""

    def __init__(self) -> None:
        self.kept = bytearray()

    def write(self, content: bytes) -> int:
        self.kept += content
        return len(content)

    def flush(self) -> None:
        pass

    def take(self) -> bytes:
        taken, self.kept = bytes(self.kept), bytearray()
        return taken


def zip_folder(folder: Path, name: str) -> Iterator[bytes]:
    """Give the plain files of a folder as a zip file in which they lie in a folder of that name.

    The same files give the same bytes.
    """
    pieces = _Pieces()
    with zipfile.ZipFile(pieces, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:  # type: ignore[call-overload]
        for path in sorted(folder.iterdir()):
            if path.is_symlink() or not path.is_file():
                continue
            entry = zipfile.ZipInfo(f"{name}/{path.name}", _FIRST_DAY)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            with path.open("rb") as file, archive.open(entry, "w", force_zip64=True) as member:
                while part := file.read(_PIECE_BYTES):
                    member.write(part)
                    yield pieces.take()
    yield pieces.take()
