"""What a user asks of a language model, read and checked before any work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from packlight.errors import WrongUsage
from packlight.llm.costs import GGUF
from packlight.llm.onnx.formats import ONNX
from packlight.llm.schemes.table import DEFAULT, SCHEMES, find_scheme
from packlight.nearest import did_you_mean
from packlight.plan.budget import parse_drop, parse_size

TARGETS = ("llama.cpp", "ollama", "onnxruntime", "vllm")
"""Runtimes; the first two read GGUF, and ollama gets a Modelfile too."""

BY_SCHEME = ("vllm",)
"""Those for which a scheme sets the bits."""


DEFAULT_BITS = 4.5
"""Bits a weight where no budget is named: what most people load into llama.cpp."""

FEWEST_BITS, MOST_BITS = 1.0, 16.0


@dataclass(frozen=True)
class Ask:
    """Just one of bits (a weight, over all tensors), max_size_bytes (of the file), max_drop (of
    the agreement on the most probable token, absolute), a recipe's types and a scheme is given.

    pins: types that tensors must have. scheme: of compressed-tensors. prune: share of the blocks
    that goes. removed: the blocks that a recipe says went, in their order.
    """

    target: str
    bits: float | None = None
    max_size_bytes: int | None = None
    max_drop: float | None = None
    types: Mapping[str, str] | None = None
    pins: Mapping[str, str] = field(default_factory=dict)
    prune: float = 0.0
    removed: tuple[int, ...] | None = None
    by_default: bool = False
    scheme: str = ""


def types_of(target: str) -> tuple[str, ...]:
    """The types that tensors may have in a target's files."""
    return tuple((ONNX if target == "onnxruntime" else GGUF).blocks)


def read_ask(
    *,
    target: str,
    original_bytes: int,
    bits: str | float | None = None,
    max_size: str | float | None = None,
    max_drop: str | float | None = None,
    pins: Mapping[str, str] | None = None,
    prune: str | float | None = None,
    types: Mapping[str, str] | None = None,
    scheme: str | None = None,
    removed: tuple[int, ...] = (),
) -> Ask:
    """The budget in numbers. original_bytes: of the checkpoint's tensors.

    Raises WrongUsage for what cannot be read, and for more than one budget.
    """
    target = "llama.cpp" if target == "laptop" else target
    if target not in TARGETS:
        raise WrongUsage(
            f"A language model cannot be made for the target {target!r} yet: choose one of "
            f"{', '.join(TARGETS)}."
        )
    if target in BY_SCHEME:
        if prune:
            raise WrongUsage(
                f"--prune cannot be used with --target {target} yet: leave it out, or choose "
                "llama.cpp, ollama or onnxruntime."
            )
        return _by_scheme(target, bits, max_size, max_drop, pins, scheme)
    if scheme is not None:
        raise WrongUsage(
            f"--scheme {scheme} is for --target {' or '.join(BY_SCHEME)}; for {target} say how "
            "small the model becomes with --bits, --max-size or --max-drop."
        )
    options = {"--bits": bits, "--max-size": max_size, "--max-drop": max_drop, "--recipe": types}
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise WrongUsage(
            f"{' and '.join(given)} cannot both say how small a language model becomes: give one."
        )
    known = types_of(target)
    for name, kind in (pins or {}).items():
        if kind not in known:
            raise WrongUsage(
                f"--pin {name}={kind}: there is no type {kind!r}{did_you_mean(kind, known)}: "
                f"use one of {', '.join(known)}."
            )
    share = 0.0 if prune is None else _share(prune)
    if share and types is not None:
        raise WrongUsage(
            "--prune and a recipe that says all contradict each other: edit `removed:` in the "
            "recipe, or leave it out."
        )
    ask = Ask(target, types=types, pins=dict(pins or {}), prune=share, removed=removed or None)
    if bits is not None:
        return replace(ask, bits=_bits(bits))
    if max_size is not None:
        return replace(ask, max_size_bytes=parse_size(max_size, original_bytes))
    if max_drop is not None:
        drop = parse_drop(max_drop)
        if drop <= 0:
            raise WrongUsage(
                f"--max-drop {max_drop}: fewer bits always change some predictions; allow more "
                "than 0, such as 2%."
            )
        return replace(ask, max_drop=drop)
    return ask if types is not None else replace(ask, bits=DEFAULT_BITS, by_default=True)


def _by_scheme(
    target: str,
    bits: str | float | None,
    max_size: str | float | None,
    max_drop: str | float | None,
    pins: Mapping[str, str] | None,
    scheme: str | None,
) -> Ask:
    given = {"--bits": bits, "--max-size": max_size, "--max-drop": max_drop, "--pin": pins or None}
    for option, value in given.items():
        if value is not None:
            raise WrongUsage(
                f"{option} cannot be used with --target {target}, where a scheme sets the bits of "
                f"all layers: give --scheme with one of {', '.join(SCHEMES)}."
            )
    name = find_scheme(scheme or DEFAULT).name
    return Ask(target, scheme=name, by_default=scheme is None)


def _share(value: str | float) -> float:
    text = str(value).strip()
    if text == "auto":
        raise WrongUsage(
            "--prune auto: how many blocks of a language model may go is not searched for, as "
            "fewer bits nearly always lose less; name a share, such as 25%."
        )
    try:
        found = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        found = float("nan")
    if not 0 <= found < 1:
        raise WrongUsage(
            f"--prune {value}: give the share of a language model's blocks to remove, such as 25% "
            "or 0.25."
        )
    return found


def _bits(value: str | float) -> float:
    try:
        found = float(value)
    except ValueError:
        found = float("nan")
    if not FEWEST_BITS <= found <= MOST_BITS:
        raise WrongUsage(
            f"--bits {value}: give bits a weight, {FEWEST_BITS:g} to {MOST_BITS:g}, such as 4.5."
        )
    return found
