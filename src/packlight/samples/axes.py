"""Sizes for the axes that a model leaves open, the same wherever the same name occurs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from packlight.samples.naming import (
    batch_axis,
    dynamic,
    is_audio,
    is_cache,
    is_integer,
    is_mask,
    picture_layout,
    waveform_axis,
)
from packlight.tensors import TensorSpec

Role = Literal["batch", "past", "total", "picture", "window", "sequence"]

# An axis name may stand in several inputs; the role that says most about it wins.
_PRECEDENCE: tuple[Role, ...] = ("total", "past", "batch", "picture", "window", "sequence")
_DEFAULTS: dict[Role, int] = {"batch": 1, "past": 8, "picture": 224, "window": 512, "sequence": 16}
_LENGTHS = (512, 256, 16, 1, 1024, 32, 64, 80, 100, 128, 8, 2048, 4096, 16000, 3000)
_PICTURE_SIZES = (224, 256, 320, 416, 512, 640, 299, 128, 96, 64, 32)
_LENGTH_WORDS = ("seq", "time", "len", "frame", "token", "step", "sample", "window", "chunk")


def axis_key(spec: TensorSpec, axis: int) -> str | None:
    """The name of an open axis ("input[1]" where the model has none), None if it is fixed."""
    size = spec.shape[axis]
    if not dynamic(size):
        return None
    return size.strip() if isinstance(size, str) and size.strip() else f"{spec.name}[{axis}]"


def axis_roles(inputs: Sequence[TensorSpec]) -> dict[str, Role]:
    """What each open axis of the inputs seems to be for, by its key."""
    cached = any(is_cache(spec) for spec in inputs)
    roles: dict[str, Role] = {}
    for spec in inputs:
        for axis in range(len(spec.shape)):
            key = axis_key(spec, axis)
            if key is None:
                continue
            role = _role(spec, axis, cached=cached)
            if key not in roles or _PRECEDENCE.index(role) < _PRECEDENCE.index(roles[key]):
                roles[key] = role
    return roles


def _role(spec: TensorSpec, axis: int, *, cached: bool) -> Role:
    size = spec.shape[axis]
    name = size.strip().lower() if isinstance(size, str) else ""
    layout = picture_layout(spec)
    if "+" in name or "total" in name:
        return "total"
    if any(word in name for word in ("past", "cache", "prev")):
        return "past"
    if "batch" in name or name in {"n", "b", "bs"}:
        return "batch"
    if axis == batch_axis(spec) and not any(word in name for word in _LENGTH_WORDS):
        return "batch"
    if layout is not None and axis in layout.spatial_axes:
        return "picture"
    if not name and is_cache(spec):
        return "past"
    if not name and cached and is_mask(spec):
        return "total"
    if waveform_axis(spec) == axis and (len(spec.shape) > 1 or is_audio(spec)):
        return "window"
    return "sequence"


def axis_sizes(
    inputs: Sequence[TensorSpec], axes: Mapping[str, int] | None = None
) -> dict[str, int]:
    """A size for every open axis, by its key; `axes` overrides the guesses.

    An axis that counts past and new tokens together (its name has "total" in it, or is
    a sum such as "past_sequence_length + 1") gets the sum of the two.
    """
    given = dict(axes or {})
    roles = axis_roles(inputs)
    sizes = {key: _DEFAULTS[role] for key, role in roles.items() if role != "total"}
    for spec in inputs:
        layout = picture_layout(spec)
        if layout is not None and layout.guessed:
            key = axis_key(spec, 1 if layout.channels_first else 3)
            if key is not None:
                sizes[key] = layout.channels
    sizes.update(given)
    sequence, past = _sequence_size(inputs, roles, sizes), past_size(inputs, sizes)
    for key, role in roles.items():
        if role == "total" and key not in given:
            sizes[key] = _sum_of_terms(key, sizes, sequence, past)
    return sizes


def past_size(inputs: Sequence[TensorSpec], sizes: Mapping[str, int]) -> int:
    """How many tokens the caches hold: 0 for a model without."""
    for key, role in axis_roles(inputs).items():
        if role == "past":
            return sizes.get(key, 0)
    return 0


def _sequence_size(
    inputs: Sequence[TensorSpec], roles: Mapping[str, Role], sizes: Mapping[str, int]
) -> int:
    # Token ids come first: their length is what a mask's length is made of.
    for spec in sorted(inputs, key=lambda spec: not is_integer(spec) or is_mask(spec)):
        for axis, size in enumerate(spec.shape):
            key = axis_key(spec, axis)
            if key is not None and roles[key] in ("sequence", "window") and key in sizes:
                return sizes[key]
            if key is None and axis == 1 and is_integer(spec) and isinstance(size, int):
                return size
    return _DEFAULTS["sequence"]


def _sum_of_terms(name: str, sizes: Mapping[str, int], sequence: int, past: int) -> int:
    if "+" not in name:
        return past + sequence
    total = 0
    for term in (part.strip() for part in name.split("+")):
        if term.isdigit():
            total += int(term)
        elif term in sizes:
            total += sizes[term]
        else:
            total += past if "past" in term.lower() else sequence
    return total


def shape_of(spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The input's shape with every open axis filled in."""
    shape = []
    for axis, size in enumerate(spec.shape):
        key = axis_key(spec, axis)
        shape.append(sizes[key] if key is not None else int(size or 0))
    return tuple(shape)


def alternative_axes(inputs: Sequence[TensorSpec]) -> tuple[dict[str, int], ...]:
    """Guesses at the open axes, the likeliest first, for a model that refuses the default.

    Each is a value for `axes` of `generate_samples`; the first is what it does by itself.
    Empty lengths of caches are tried as well, as some models only start from nothing.
    """
    roles = axis_roles(inputs)
    past = [key for key, role in roles.items() if role == "past"]
    lengths = [key for key, role in roles.items() if role in ("sequence", "window")]
    pictures = [key for key, role in roles.items() if role == "picture"]
    guesses: list[dict[str, int]] = [{}]
    if past:
        guesses += [dict.fromkeys(past, 0), dict.fromkeys(past, 1)]
    if lengths:
        guesses += [dict.fromkeys(lengths, length) for length in _LENGTHS]
        if past:
            starts = dict.fromkeys(past, 0)
            guesses += [starts | dict.fromkeys(lengths, length) for length in _LENGTHS[:8]]
    if pictures:
        guesses += [dict.fromkeys(pictures, size) for size in _PICTURE_SIZES]
    found: list[dict[str, int]] = []
    for guess in guesses:
        sizes = axis_sizes(inputs, guess)
        if sizes not in found:
            found.append(sizes)
    return tuple(found)
