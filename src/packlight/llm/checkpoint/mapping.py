"""Finds each tensor of a known architecture in a checkpoint, and holds it to the configuration."""

from __future__ import annotations

from collections.abc import Mapping

from packlight.errors import UnusableModel
from packlight.llm.architectures import (
    BARE,
    IGNORED_ENDINGS,
    IGNORED_PARTS,
    OUTPUT,
    PREFIXES,
    ROPE,
    Architecture,
    Piece,
)
from packlight.llm.checkpoint.config import ModelConfig
from packlight.llm.checkpoint.model import TensorInfo
from packlight.llm.checkpoint.parts import Part
from packlight.llm.checkpoint.rotation import rope_tensors
from packlight.llm.storage import Stored

FLOATS = ("F32", "F16", "BF16", "F64")

Mapped = tuple[dict[str, TensorInfo], dict[str, Part]]


def map_tensors(
    architecture: Architecture, config: ModelConfig, stored: Mapping[str, Stored], where: str
) -> Mapped:
    """Give every tensor of the model under its GGUF name, and what it is read from.

    Raises UnusableModel naming the tensor that is missing, has another shape than the
    configuration asks for, holds no floats, or has no place in the architecture.
    """
    found = {canonical_name(name): one for name, one in stored.items()}
    infos: dict[str, TensorInfo] = {}
    parts: dict[str, Part] = {}
    used: set[str] = set()
    for piece, block in _expand(architecture, config):
        sources = _sources(piece, block, config)
        if piece.role == OUTPUT and config.tied:
            used |= set(sources)
            if not architecture.untied:
                continue
            sources = [architecture.pieces[0].source]
        if not piece.needed and not any(source in found for source in sources):
            continue
        missing = [source for source in sources if source not in found]
        if missing:
            raise UnusableModel(
                f"{where} has no tensor {missing[0]}, which a model of the type "
                f"{config.model_type!r} with {config.layers} layers needs: download it again."
            )
        used |= set(sources)
        name = piece.name.format(i=block)
        chosen = tuple(found[source] for source in sources)
        shape = shape_of(piece, config)
        _check(name, piece, shape, chosen, where)
        parts[name] = Part(
            shape, chosen, piece.change, config.head_width if piece.change == "rotary" else 0
        )
        source = piece.source.format(i=block, e="{e}")
        infos[name] = TensorInfo(name, shape, chosen[0].dtype, source, piece.role)
    _refuse_unused(architecture, config, found, used, where)
    for name, numbers in rope_tensors(config, where).items():
        shape = (len(numbers),)
        parts[name] = Part(shape, (), numbers=numbers)
        infos[name] = TensorInfo(name, shape, "F32", "", ROPE)
    return infos, parts


def canonical_name(name: str) -> str:
    """Give a tensor's name as the tables have it, whatever prefix the checkpoint has."""
    for prefix, short in PREFIXES:
        if name.startswith(prefix):
            return short + name.removeprefix(prefix)
    return f"model.{name}" if name.startswith(BARE) else name


def pieces_by_name(architecture: Architecture, config: ModelConfig) -> dict[str, Piece]:
    """Give the piece of each tensor that the architecture may have, by GGUF name."""
    return {piece.name.format(i=block): piece for piece, block in _expand(architecture, config)}


def shape_of(piece: Piece, config: ModelConfig) -> tuple[int, ...]:
    """Give the shape that the configuration asks of a piece."""
    return tuple(
        sum(config.dimension(word) for word in axis.split("+")) for axis in piece.shape.split()
    )


def _expand(architecture: Architecture, config: ModelConfig) -> list[tuple[Piece, int]]:
    """Every piece with its block: what is outside of the blocks first, then block by block."""
    outside = [(piece, 0) for piece in architecture.pieces if "{i}" not in piece.name]
    inside = [piece for piece in architecture.pieces if "{i}" in piece.name]
    return outside + [(piece, block) for block in range(config.layers) for piece in inside]


def _sources(piece: Piece, block: int, config: ModelConfig) -> list[str]:
    experts = range(config.experts) if piece.change == "stack" else range(1)
    return [piece.source.format(i=block, e=expert) for expert in experts]


def _check(
    name: str, piece: Piece, shape: tuple[int, ...], stored: tuple[Stored, ...], where: str
) -> None:
    asked = {
        "transpose": shape[::-1],
        "stack": shape[1:],
        "flatten": (1, *shape),
    }.get(piece.change, shape)
    for one in stored:
        fits = one.shape == asked or (piece.change == "flatten" and one.shape == shape)
        if not fits:
            raise UnusableModel(
                f"{one.name} of {where} has the shape {list(one.shape)}, and its config.json asks "
                f"for {list(asked)} ({piece.shape.replace(' ', ' x ')}, for {name}): the files "
                "are not of one model, download it again."
            )
        if one.dtype not in FLOATS:
            raise UnusableModel(
                f"{one.name} of {where} is stored as {one.dtype}, and weights must be F32, F16, "
                "BF16 or F64: use the model as it was before it was quantized."
            )


def _refuse_unused(
    architecture: Architecture,
    config: ModelConfig,
    found: Mapping[str, Stored],
    used: set[str],
    where: str,
) -> None:
    for name, one in found.items():
        if name in used or name.endswith(IGNORED_ENDINGS) or one.name.startswith(IGNORED_PARTS):
            continue
        raise UnusableModel(
            f"{where} holds {one.name}, for which a model of the type {config.model_type!r} with "
            f"{config.layers} layers has no place in llama.cpp's {architecture.name}: it would "
            "be lost, so nothing is done."
        )
