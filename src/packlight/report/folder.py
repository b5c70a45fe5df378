"""The output folder: whether it can be written, asked before the work, and writing it whole."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from packlight.durable import current_umask, sync_folder
from packlight.errors import UnusableOutput


def check_output(folder: Path, *, force: bool, inputs: Iterable[Path]) -> None:
    """Raises UnusableOutput where a result could not be put at `folder`.

    force: an existing folder may be replaced, but never one that holds the model, the
        samples or the recipe (`inputs`), the current directory or the user's home.
    """
    if folder.is_symlink():
        raise UnusableOutput(
            f"The output folder {folder} is a link: give the folder that it points to with --out."
        )
    if folder.exists():
        if not folder.is_dir():
            raise UnusableOutput(
                f"The output folder {folder} is a file: choose another name with --out."
            )
        if not force:
            raise UnusableOutput(
                f"The output folder {folder} exists: choose another with --out, or replace it "
                "with --force."
            )
        _check_replaceable(folder.resolve(), [path.resolve() for path in inputs])
    parent = folder.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise UnusableOutput(
            f"The output folder {folder} cannot be made, because {parent} is a file: choose "
            "another with --out."
        )
    if not _may_write(parent):
        raise UnusableOutput(
            f"The output folder {folder} cannot be made, because nothing may be written in "
            f"{parent}: choose another with --out."
        )


def _may_write(parent: Path) -> bool:
    """Whether a folder can be made there: tried, since permissions tell half of it."""
    if not os.access(parent, os.W_OK | os.X_OK):
        return False
    try:
        Path(tempfile.mkdtemp(prefix=".packlight-", dir=parent)).rmdir()
    except OSError as error:
        # A disk that is full now may have space when the work is done.
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return True


def _check_replaceable(folder: Path, inputs: list[Path]) -> None:
    held = [*inputs, Path.cwd().resolve(), Path("~").expanduser().resolve()]
    for path in held:
        if path == folder or folder in path.parents:
            raise UnusableOutput(
                f"The output folder {folder} cannot be replaced, because {path} lies in it: choose "
                "another with --out."
            )


def write_folder(
    folder: Path,
    *,
    files: Sequence[Path],
    texts: Mapping[str, str],
    seal: Callable[[Path], Mapping[str, str]],
    force: bool = False,
    inputs: Iterable[Path] = (),
) -> Path:
    """Put a result at `folder`, whole or not at all; give the folder.

    files: copied under their own names. texts: {name: content}. seal: gives the texts that are
    about all else, once that lies in the unfinished folder. What was at `folder` is replaced only
    once the new one is whole. Raises UnusableOutput where it cannot be.
    """
    check_output(folder, force=force, inputs=inputs)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as cleanup:
            made = tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent)
            cleanup.callback(shutil.rmtree, made, ignore_errors=True)
            Path(made).chmod(0o777 & ~current_umask())
            for file in files:
                _copy(file, Path(made) / file.name)
            for name, text in texts.items():
                _write(Path(made) / name, text.encode("utf-8"))
            for name, text in seal(Path(made)).items():
                _write(Path(made) / name, text.encode("utf-8"))
            sync_folder(Path(made))
            _swap(Path(made), folder, cleanup)
            sync_folder(folder.parent)
    except OSError as error:
        raise UnusableOutput(
            f"The output folder {folder} cannot be written ({error.strerror or error}): check that "
            "its place may be written to and has space left, or choose another with --out."
        ) from error
    return folder


def _swap(made: Path, folder: Path, cleanup: contextlib.ExitStack) -> None:
    """Rename the finished folder into place; what was there goes away afterwards."""
    if not folder.exists():
        made.rename(folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".old", dir=folder.parent))
    cleanup.callback(shutil.rmtree, old, ignore_errors=True)
    folder.rename(old / "replaced")
    try:
        made.rename(folder)
    except BaseException:
        (old / "replaced").rename(folder)
        raise


def _copy(file: Path, path: Path) -> None:
    """Piece by piece: a model may be larger than memory."""
    with file.open("rb") as source, path.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 22)
        target.flush()
        os.fsync(target.fileno())
    if path.stat().st_size != file.stat().st_size:
        raise OSError(f"{path.name} was not written whole")


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if path.stat().st_size != len(content):
        raise OSError(f"{path.name} was not written whole")
