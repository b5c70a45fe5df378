"""How the numbers of a picture become the numbers that a network was trained on."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from packlight.errors import WrongUsage
from packlight.samples.protocol import Array

PREPROCESS_CANDIDATES = ("imagenet", "0..1", "-1..1", "0..255")
"""The names that can be tried one after another on labelled samples."""

# Mean and deviation of ImageNet's colours, as torchvision and its zoo of models use them.
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_OWN = re.compile(r"\s*mean\s*=(?P<mean>[^=]*?),?\s*std\s*=(?P<std>[^=]*)")


@dataclass(frozen=True)
class Normalization:
    """`(byte / 255 - mean) / std` for each channel.

    name: as the user writes it; mean, std: one number a channel, in units of 0..1.
    """

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def keeps_bytes(self) -> bool:
        """Whether the numbers 0..255 stay as they are."""
        return self.name == "0..255"

    def apply(self, picture: Array, *, channel_axis: int) -> Array:
        """8-bit pictures [..., channels, ...] as float32, or unchanged for 0..255."""
        if self.keeps_bytes:
            return picture
        # One multiplication and one addition: the same in every block size.
        shape = [1] * picture.ndim
        shape[channel_axis] = len(self.mean)
        std = np.asarray(self.std, np.float64)
        factor = (1 / (255 * std)).astype(np.float32).reshape(shape)
        offset = (-np.asarray(self.mean, np.float64) / std).astype(np.float32).reshape(shape)
        result: Array = picture.astype(np.float32) * factor + offset
        return result


def parse_preprocess(name: str, *, channels: int) -> Normalization:
    """The normalization of that name for pictures of 1 or 3 channels.

    name: imagenet, 0..1, -1..1, 0..255 or mean=a,b,c,std=d,e,f in units of 0..1.
    Raises WrongUsage for any other, listing these.
    """
    if name == "imagenet":
        mean, std = _IMAGENET_MEAN, _IMAGENET_STD
        if channels == 1:  # grey is about the mean of the colours
            mean, std = (sum(mean) / 3,) * 3, (sum(std) / 3,) * 3
        return Normalization(name, mean[:channels], std[:channels])
    fixed = {"0..1": (0.0, 1.0), "-1..1": (0.5, 0.5), "0..255": (0.0, 1 / 255)}
    if name in fixed:
        centre, spread = fixed[name]
        return Normalization(name, (centre,) * channels, (spread,) * channels)
    own = _OWN.fullmatch(name)
    if own is None:
        raise WrongUsage(
            f"--preprocess '{name}' is unknown; use one of {', '.join(PREPROCESS_CANDIDATES)} "
            "or mean=a,b,c,std=d,e,f (in units of 0..1)"
        )
    means = _numbers(own["mean"], channels, "mean", name)
    stds = _numbers(own["std"], channels, "std", name)
    if min(stds) <= 0:
        raise WrongUsage(f"--preprocess '{name}': every std must be above 0")
    if max(map(abs, (*means, *stds))) > 2:
        raise WrongUsage(
            f"--preprocess '{name}': mean and std are in units of 0..1; divide them by 255"
        )
    return Normalization(name, means, stds)


def _numbers(text: str, channels: int, what: str, name: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = (math.nan,)
    if len(numbers) not in (1, channels) or not all(map(math.isfinite, numbers)):
        raise WrongUsage(
            f"--preprocess '{name}': {what} needs {channels} number{'s' if channels > 1 else ''}, "
            f"one for each channel of the model's input"
        )
    return numbers * channels if len(numbers) == 1 else numbers
