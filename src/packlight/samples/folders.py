"""Finds the sample files of a folder, and labels where its subfolders are classes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from packlight.errors import UnusableSamples
from packlight.samples.protocol import Array

PICTURES = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
    *(".ppm", ".pgm"),
)
SOUNDS = (".wav", ".wave")


@dataclass(frozen=True)
class Listing:
    """The sample files of a folder, sorted.

    names: relative to the folder (text rather than Path: there may be millions).
    labels: [n], index of the class subfolder, or None; class_names: by label.
    """

    folder: Path
    names: tuple[str, ...]
    sounds: bool
    labels: Array | None = None
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def path(self, index: int) -> Path:
        """The file of one sample."""
        return self.folder / self.names[index]


def list_folder(folder: Path) -> Listing:
    """The pictures or sounds of a folder; two or more subfolders with some are classes.

    Files that lie in the folder itself come first: then subfolders are no classes.
    Raises UnusableSamples where there is nothing, or pictures and sounds are mixed.
    """
    try:
        entries = sorted(entry.name for entry in os.scandir(folder) if _visible(entry.name))
        inside = [name for name in entries if (folder / name).is_dir()]
        own = [name for name in entries if _is_sample(name)]
        if own:
            unused = f"the subfolders of {folder} were not used, as it holds files itself"
            return _listing(folder, own, notes=(unused,) if inside else ())
        classes = _in_order(inside)
        found = {name: sorted(_walk(folder, name)) for name in classes}
    except OSError as error:
        raise UnusableSamples(f"{folder} cannot be read ({error.strerror})") from error
    names = [file for files in found.values() for file in files]
    if not names:
        hint = ", ".join(entries[:5]) or "nothing"
        raise UnusableSamples(
            f"the folder {folder} holds no pictures ({', '.join(PICTURES)}) and no sounds "
            f"({', '.join(SOUNDS)}), but {hint}; give a folder with samples, or a .npz file itself"
        )
    if len(classes) < 2:
        return _listing(folder, names)
    notes = [f"the class folder '{name}' is empty" for name, files in found.items() if not files]
    numbers = all(name.isdecimal() for name in classes)
    if numbers and [int(name) for name in classes] != list(range(len(classes))):
        notes.append(
            "the class folders are numbered with gaps or not from 0; their labels are their places "
            f"in order, 0 to {len(classes) - 1}"
        )
    labels = np.repeat(np.arange(len(classes)), [len(files) for files in found.values()])
    return _listing(folder, names, labels=labels, class_names=tuple(classes), notes=tuple(notes))


def list_file(path: Path) -> Listing:
    """One picture or sound as a folder of one."""
    return _listing(path.parent, [path.name])


def _listing(
    folder: Path,
    names: list[str],
    *,
    labels: Array | None = None,
    class_names: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
) -> Listing:
    sounds = sum(name.lower().endswith(SOUNDS) for name in names)
    if 0 < sounds < len(names):
        raise UnusableSamples(
            f"{folder} holds {len(names) - sounds} pictures and {sounds} sounds; "
            "give a folder with samples of one kind"
        )
    return Listing(folder, tuple(names), sounds > 0, labels, class_names, notes)


def _in_order(names: Iterable[str]) -> list[str]:
    """Alphabetical, but 2 before 10 where all names are numbers."""
    names = list(names)
    if names and all(name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def _walk(folder: Path, name: str) -> Iterable[str]:
    for place, inside, files in os.walk(folder / name):
        inside[:] = [sub for sub in inside if _visible(sub)]
        relative = Path(place).relative_to(folder)
        for file in files:
            if _visible(file) and _is_sample(file):
                yield str(relative / file)


def _visible(name: str) -> bool:
    return not name.startswith((".", "__MACOSX"))


def _is_sample(name: str) -> bool:
    return name.lower().endswith((*PICTURES, *SOUNDS))
