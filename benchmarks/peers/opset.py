"""Per-channel quantization needs opset 13: older files are converted first, as the peers ask."""

from __future__ import annotations

from pathlib import Path

LEAST = 13


def raise_opset(model: Path, folder: Path) -> Path:
    """Returns the file, or its conversion in `folder` if it is older than opset 13."""
    import onnx

    proto = onnx.load(model)
    (version,) = (entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    if version >= LEAST:
        return model
    converted = folder / "converted.onnx"
    onnx.save(onnx.version_converter.convert_version(proto, LEAST), converted)
    return converted
