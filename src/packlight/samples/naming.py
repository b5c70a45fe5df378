"""What an input's name, type and shape say of its meaning.

A model file doesn't say what its inputs are for; exporters' habits do. Every guess
stands here, so that generating values and filling in missing inputs agree.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from packlight.tensors import TensorSpec

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_STATE_WORDS = {"state", "states", "hidden", "cell", "past", "cache", "caches", "carry"}
_STATE_NAMES = {"h", "c", "h0", "c0", "hn", "cn", "hx", "cx"}
_AUDIO_WORDS = {"audio", "wav", "wave", "waveform", "window", "signal", "pcm", "speech", "sound"}
_RATE_WORDS = {"sr", "rate", "samplerate", "fs"}
PICTURE_CHANNELS = (1, 3)


def words_of(name: str) -> frozenset[str]:
    """The lower-case words of a name: "past_keyValues.3" -> past, key, values, 3."""
    return frozenset(word.lower() for word in _WORD.findall(name))


def dynamic(size: int | str | None) -> bool:
    """Whether an axis has no size of its own (old exporters write 0 or -1 for that)."""
    return not isinstance(size, int) or size <= 0


def is_float(spec: TensorSpec) -> bool:
    """Whether the input takes numbers with a fraction."""
    return spec.dtype == "bfloat16" or spec.dtype.startswith("float")


def is_integer(spec: TensorSpec) -> bool:
    """Whether the input takes whole numbers."""
    return spec.dtype.startswith(("int", "uint"))


def is_scalar(spec: TensorSpec) -> bool:
    """Whether one number fills the input: shape () or nothing but ones."""
    return all(size == 1 for size in spec.shape)


def is_state(spec: TensorSpec) -> bool:
    """Whether the input looks like a recurrent state or a cache that starts at zero."""
    words = words_of(spec.name)
    if not is_float(spec) or "encoder" in words:
        return False  # encoder_hidden_states is another network's output, not a state
    tail = spec.name.lower().rsplit("_", 1)[-1]
    return bool(words & _STATE_WORDS) or tail in _STATE_NAMES


def is_cache(spec: TensorSpec) -> bool:
    """Whether the input holds the keys or values of past tokens."""
    return is_state(spec) and bool(words_of(spec.name) & {"past", "cache", "caches"})


def is_mask(spec: TensorSpec) -> bool:
    """Whether the input says which positions count."""
    return "mask" in spec.name.lower()


def is_positions(spec: TensorSpec) -> bool:
    """Whether the input numbers the positions of a sequence."""
    return is_integer(spec) and "position" in spec.name.lower()


def is_token_types(spec: TensorSpec) -> bool:
    """Whether the input says which sentence a token belongs to."""
    words = words_of(spec.name)
    return is_integer(spec) and bool(words & {"segment", "segments", "type", "types"})


def is_sample_rate(spec: TensorSpec) -> bool:
    """Whether the input is the sampling rate in hertz."""
    return is_integer(spec) and is_scalar(spec) and bool(words_of(spec.name) & _RATE_WORDS)


def is_audio(spec: TensorSpec) -> bool:
    """Whether the input's name speaks of sound."""
    return is_float(spec) and bool(words_of(spec.name) & _AUDIO_WORDS)


def batch_axis(spec: TensorSpec) -> int:
    """The axis along which samples are stacked: 0, or 1 for [layers, batch, ...] states."""
    if len(spec.shape) < 2 or dynamic(spec.shape[0]):
        return 0
    second = spec.shape[1]
    if isinstance(second, str) and "batch" in second.lower():
        return 1
    layered = is_state(spec) or (len(spec.shape) == 3 and spec.shape[0] != 1)
    return 1 if layered and dynamic(second) else 0


def waveform_axis(spec: TensorSpec) -> int | None:
    """The axis of time if the input can take a bare waveform: [T], [batch, T], [batch, 1, T]."""
    if not is_float(spec) or is_state(spec) or not 1 <= len(spec.shape) <= 3 or is_scalar(spec):
        return None
    last = len(spec.shape) - 1
    return last if all(size == 1 for size in spec.shape[1:last]) else None


@dataclass(frozen=True)
class PictureLayout:
    """How an input takes pictures.

    channels: 1 or 3; height, width: in pixels, None where any size will do.
    guessed: True where the shape alone did not say it.
    """

    channels_first: bool
    channels: int
    height: int | None
    width: int | None
    guessed: bool = False

    @property
    def spatial_axes(self) -> tuple[int, int]:
        """The axes of height and width."""
        return (2, 3) if self.channels_first else (1, 2)


def picture_layout(spec: TensorSpec) -> PictureLayout | None:
    """How the input takes pictures, read from its shape; None if it takes something else."""
    if len(spec.shape) != 4 or not (is_float(spec) or spec.dtype == "uint8") or is_state(spec):
        return None
    first, last = spec.shape[1], spec.shape[3]
    guessed = False
    if first in PICTURE_CHANNELS:
        channels_first, channels = True, first
    elif last in PICTURE_CHANNELS:
        channels_first, channels = False, last
    elif dynamic(last) and _speaks_of_channels(last):
        channels_first, channels, guessed = False, 3, True
    elif dynamic(first) and not _speaks_of_length(spec):
        channels_first, channels, guessed = True, 3, True
    elif dynamic(last) and not dynamic(spec.shape[1]) and spec.shape[1] == spec.shape[2]:
        channels_first, channels, guessed = False, 3, True
    else:
        return None
    axes = (2, 3) if channels_first else (1, 2)
    height, width = (_fixed(spec.shape[axis]) for axis in axes)
    assert isinstance(channels, int)
    return PictureLayout(channels_first, channels, height, width, guessed)


def _fixed(size: int | str | None) -> int | None:
    return size if isinstance(size, int) and size > 0 else None


def _speaks_of_channels(size: int | str | None) -> bool:
    return isinstance(size, str) and ("channel" in size.lower() or size.lower() == "c")


def _speaks_of_length(spec: TensorSpec) -> bool:
    names = " ".join(size.lower() for size in spec.shape[1:] if isinstance(size, str))
    return any(word in names for word in ("seq", "time", "len", "head", "token", "frame"))


def numpy_dtype(spec: TensorSpec) -> np.dtype[np.generic] | None:
    """NumPy's type of the numbers, None where NumPy has none (text, 4-bit numbers...)."""
    if spec.dtype == "bfloat16":
        return np.dtype(np.float32)
    try:
        dtype = np.dtype(spec.dtype)
    except TypeError:
        return None
    return dtype if dtype.kind in "fiub" else None
