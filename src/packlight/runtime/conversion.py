"""Writes a model in the format of another runtime, in a child process of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from packlight.errors import RuntimeRefused
from packlight.runtime.channel import Channel
from packlight.runtime.limits import Limits

_DEFAULT = Limits()


def convert_file(
    module: str,
    path: Path,
    out: Path,
    shapes: Mapping[str, Sequence[int]],
    *,
    limits: Limits = _DEFAULT,
) -> None:
    """Let `convert(path, out, shapes)` of a module of packlight's write the ONNX file at `path`.

    shapes: axes of every input, for formats that hold one shape only.
    Raises RuntimeRefused with what the module said, and as any request does.
    """
    header = {
        "module": module,
        "path": str(path.absolute()),
        "out": str(out.absolute()),
        "shapes": {name: [*shape] for name, shape in shapes.items()},
    }
    channel = Channel(limits)
    try:
        channel.request("convert", header, doing=f"writing {out.name}")
    finally:
        channel.close()
    if not out.is_file():
        raise RuntimeRefused(f"No {out.name} was written of {path.name}.")
