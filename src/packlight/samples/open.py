"""Opens whatever people have as samples for a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from packlight.errors import UnusableSamples, WrongUsage
from packlight.samples.archives import read_npy, read_npz
from packlight.samples.arrays import samples_from_arrays
from packlight.samples.fitting import expectations
from packlight.samples.folders import PICTURES, SOUNDS, Listing, list_file, list_folder
from packlight.samples.iterables import samples_from_iterable, to_array
from packlight.samples.pictures import samples_from_pictures
from packlight.samples.preprocess import parse_preprocess
from packlight.samples.protocol import Samples
from packlight.samples.sound import samples_from_sounds
from packlight.tensors import TensorSpec


def open_samples(
    data: object, inputs: Sequence[TensorSpec], *, preprocess: str | None = None, seed: int = 0
) -> Samples:
    """Samples for a model with these inputs, to be read piece by piece.

    data: a path (.npz, .npy, a picture, a .wav, or a folder of pictures or sounds, a subfolder a
        class), an array [n, ...], a dictionary of arrays by input, an iterable of arrays,
        dictionaries or (array, label) pairs such as a PyTorch DataLoader or Dataset, or Samples.
    preprocess: imagenet, 0..1, -1..1, 0..255 or mean=a,b,c,std=d,e,f, for pictures.
    seed: for sources that draw at random; none of today's does.
    Raises UnusableSamples where they are broken or don't fit, WrongUsage for an option that
    makes no sense.
    """
    if preprocess is not None and not preprocess.lstrip().startswith("mean"):
        parse_preprocess(preprocess, channels=3)  # an unknown name is told before all else
    if isinstance(data, str | Path):
        return _open_path(Path(data), inputs, preprocess=preprocess)
    if isinstance(data, Samples):
        if preprocess is not None:
            raise WrongUsage("--preprocess cannot be applied to samples that were opened before")
        return data
    if isinstance(data, Mapping):
        arrays = {
            str(name): to_array(value, label=f"the samples' '{name}'")
            for name, value in data.items()
        }
        return samples_from_arrays(
            arrays, inputs, place="the arrays that were passed", preprocess=preprocess
        )
    if isinstance(data, np.ndarray) or hasattr(data, "detach"):
        array = to_array(data, label="the array of samples")
        place = "the array that was passed"
        return samples_from_arrays({"": array}, inputs, place=place, preprocess=preprocess)
    if isinstance(data, Iterable) and not isinstance(data, bytes | bytearray):
        items: Iterable[Any] = data
        return samples_from_iterable(items, inputs, preprocess=preprocess)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):  # a PyTorch Dataset
        count = len(data)
        return samples_from_iterable(
            (data[index] for index in range(count)), inputs, preprocess=preprocess
        )
    raise UnusableSamples(
        f"{type(data).__name__} cannot be read as samples; give a path, arrays or an iterable of "
        f"them for {expectations(inputs)}"
    )


def _open_path(path: Path, inputs: Sequence[TensorSpec], *, preprocess: str | None) -> Samples:
    if not path.exists():
        raise UnusableSamples(f"the samples {path} don't exist; check the path")
    if path.is_dir():
        return _open_listing(list_folder(path), inputs, preprocess=preprocess)
    suffix = path.suffix.lower()
    if suffix in (*PICTURES, *SOUNDS):
        return _open_listing(list_file(path), inputs, preprocess=preprocess)
    if suffix not in (".npz", ".npy"):
        raise UnusableSamples(
            f"{path} is of no kind that can be read as samples; give .npz, .npy, a picture "
            f"({', '.join(PICTURES)}), a sound ({', '.join(SOUNDS)}) or a folder of these"
        )
    if not path.is_file():
        raise UnusableSamples(f"{path} is no regular file; give the samples as a file")
    if path.stat().st_size == 0:
        raise UnusableSamples(f"{path} is empty; save the samples again")
    arrays = read_npz(path) if suffix == ".npz" else {"": read_npy(path)}
    return samples_from_arrays(arrays, inputs, place=str(path), preprocess=preprocess)


def _open_listing(
    listing: Listing, inputs: Sequence[TensorSpec], *, preprocess: str | None
) -> Samples:
    if listing.sounds:
        return samples_from_sounds(listing, inputs, preprocess=preprocess)
    return samples_from_pictures(listing, inputs, preprocess=preprocess)
