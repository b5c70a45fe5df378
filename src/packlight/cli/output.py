"""Whether the output folder can be written: asked before hours of work, not after them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

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
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UnusableOutput(
            f"The output folder {folder} cannot be made, because nothing may be written in "
            f"{parent}: choose another with --out."
        )


def _check_replaceable(folder: Path, inputs: list[Path]) -> None:
    held = [*inputs, Path.cwd().resolve(), Path("~").expanduser().resolve()]
    for path in held:
        if path == folder or folder in path.parents:
            raise UnusableOutput(
                f"The output folder {folder} cannot be replaced, because {path} lies in it: choose "
                "another with --out."
            )
