"""Samples that lie in picture files: decoded, resized and normalized when they are read."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from packlight.errors import UnusableSamples, WrongUsage
from packlight.samples.fitting import cast, check_type, expectations
from packlight.samples.folders import Listing
from packlight.samples.missing import fill_missing, required_inputs
from packlight.samples.naming import PictureLayout, numpy_dtype, picture_layout
from packlight.samples.preprocess import Normalization, parse_preprocess
from packlight.samples.protocol import Array
from packlight.tensors import TensorSpec

if TYPE_CHECKING:
    from PIL.Image import Image

DEFAULT_SIDE = 224
# Only these are decoded: others of Pillow's readers start programs (EPS) or are seldom tested.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")


@dataclass(frozen=True)
class PictureSamples:
    """Pictures of a folder, read as an input of the model wants them.

    filled: values for the model's other inputs, the same with every picture.
    """

    source: str
    listing: Listing
    spec: TensorSpec
    layout: PictureLayout
    height: int
    width: int
    normalization: Normalization
    filled: Mapping[str, Array]
    notes: tuple[str, ...] = ()
    generated: bool = False

    def __len__(self) -> int:
        return len(self.listing.names)

    @property
    def labels(self) -> Array | None:
        """The class of each picture, [n], or None."""
        return self.listing.labels

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the class folders, by label."""
        return self.listing.class_names

    def read(self, indices: Sequence[int]) -> dict[str, Array]:
        """These pictures as {input: [len(indices), channels, height, width]} (or channels last).

        Raises UnusableSamples naming the file that cannot be decoded.
        """
        pictures = [
            load_picture(
                self.listing.path(index),
                height=self.height,
                width=self.width,
                channels=self.layout.channels,
            )
            for index in indices
        ]
        block = self.normalization.apply(np.stack(pictures), channel_axis=-1)
        if self.layout.channels_first:
            block = block.transpose(0, 3, 1, 2)
        block = cast(block, self.spec, indices, source=str(self.listing.folder))
        feeds = {self.spec.name: block}
        for name, value in self.filled.items():
            feeds[name] = np.repeat(value[None], len(indices), axis=0)
        return feeds

    def fingerprints(self, indices: Sequence[int]) -> list[bytes]:
        """One digest a picture; files are only read where another has the same size."""
        paths = [self.listing.path(index) for index in indices]
        sizes = [_size_of(path) for path in paths]
        common = Counter(sizes)
        return [
            _digest(path) if common[size] > 1 else size.to_bytes(8, "little")
            for path, size in zip(paths, sizes, strict=True)
        ]


def samples_from_pictures(
    listing: Listing, inputs: Sequence[TensorSpec], *, preprocess: str | None = None
) -> PictureSamples:
    """The pictures of a folder as samples for the one input that takes pictures.

    preprocess: None assumes ImageNet's for colour, 0..1 for grey, and says so in the notes.
    Raises UnusableSamples where no input takes pictures; WrongUsage for an unknown preprocess.
    """
    candidates = [spec for spec in required_inputs(inputs) if picture_layout(spec) is not None]
    if not candidates:
        raise UnusableSamples(
            f"{listing.folder} holds pictures, but no input of the model takes one "
            f"([batch, 1 or 3, height, width] or [batch, height, width, 1 or 3]); "
            f"the model expects {expectations(inputs)}: give a .npz file"
        )
    spec = candidates[0]
    layout = picture_layout(spec)
    assert layout is not None
    check_type(np.dtype(np.uint8), spec, source=str(listing.folder))
    height, width = layout.height or DEFAULT_SIDE, layout.width or DEFAULT_SIDE
    notes = [*listing.notes]
    if layout.height is None or layout.width is None:
        notes.append(
            f"'{spec.name}' takes pictures of any size; they were made {height} x {width} pixels"
        )
    if layout.guessed:
        order = "channels, height, width" if layout.channels_first else "height, width, channels"
        notes.append(f"'{spec.name}' was taken to be [batch, {order}] with 3 channels")
    normalization = _normalization(spec, layout, preprocess, notes)
    shape = (layout.channels, height, width)
    shape = shape if layout.channels_first else (height, width, layout.channels)
    filled, guesses = fill_missing(inputs, {spec.name: shape}, source=str(listing.folder))
    count = len(listing.names)
    classes = f" of {len(listing.class_names)} classes" if listing.class_names else ""
    return PictureSamples(
        source=(
            f"{count} picture{'s' if count != 1 else ''}{classes} from {listing.folder}, resized "
            f"and cropped to {height} x {width}, prepared as {normalization.name}"
        ),
        listing=listing,
        spec=spec,
        layout=layout,
        height=height,
        width=width,
        normalization=normalization,
        filled=filled,
        notes=(*notes, *guesses),
    )


def _normalization(
    spec: TensorSpec, layout: PictureLayout, preprocess: str | None, notes: list[str]
) -> Normalization:
    wanted = numpy_dtype(spec)
    fractions = wanted is not None and wanted.kind == "f"
    if preprocess is not None:
        normalization = parse_preprocess(preprocess, channels=layout.channels)
        if not fractions and not normalization.keeps_bytes:
            raise WrongUsage(
                f"--preprocess {preprocess} makes fractions, but the model expects {spec}; "
                "use --preprocess 0..255"
            )
        return normalization
    if not fractions:
        return parse_preprocess("0..255", channels=layout.channels)
    assumed = "imagenet" if layout.channels == 3 else "0..1"
    notes.append(
        f"preprocessing '{assumed}' was assumed; name the model's own with --preprocess if the "
        "model was trained otherwise"
    )
    return parse_preprocess(assumed, channels=layout.channels)


def load_picture(path: Path, *, height: int, width: int, channels: int) -> Array:
    """One picture as bytes [height, width, channels].

    The shorter side is scaled to fit (bilinear, antialiased), the longer one cropped around
    the centre; both in one step.
    Raises UnusableSamples naming a file that is broken or absurdly large.
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as file:
                file.load()
                upright = ImageOps.exif_transpose(file)
                picture = _in_channels(upright, channels)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnusableSamples(
            f"the picture {path} has too many pixels ({error}); scale it down or remove it"
        ) from error
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        IndexError,
        KeyError,
        TypeError,
        ArithmeticError,
        AttributeError,
        MemoryError,
        NotImplementedError,
    ) as error:
        # Pillow's readers let many kinds of errors out when a file is damaged.
        what = str(error).replace(repr(str(path)), "").strip().split("\n", 1)[0]
        raise UnusableSamples(
            f"the picture {path} cannot be decoded ({what or type(error).__name__}); "
            "repair or remove it"
        ) from error
    scale = min(picture.width / width, picture.height / height)
    # Rounding may put an edge a hair outside, which Pillow refuses.
    left = max((picture.width - width * scale) / 2, 0.0)
    top = max((picture.height - height * scale) / 2, 0.0)
    right = min(left + width * scale, float(picture.width))
    box = (left, top, right, min(top + height * scale, float(picture.height)))
    if (picture.width, picture.height) != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR, box=box)
    return np.asarray(picture, dtype=np.uint8).reshape(height, width, channels)


def _in_channels(picture: Image, channels: int) -> Image:
    from PIL import Image

    if picture.mode.startswith("I"):  # 16 bits: Pillow would clip them at 255
        values = np.asarray(picture).astype(np.float64)
        picture = Image.fromarray((np.clip(values, 0, 65535) / 257).round().astype(np.uint8))
    return picture.convert("L" if channels == 1 else "RGB")


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error) from error


def _digest(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> UnusableSamples:
    return UnusableSamples(
        f"the picture {path} cannot be read ({error.strerror}); repair or remove it"
    )
