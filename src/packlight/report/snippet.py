"""Five lines that run the result."""

from __future__ import annotations

from packlight.measure.evidence import Evidence


def how_to_run(evidence: Evidence) -> str:
    """A Python snippet that loads model.onnx with onnxruntime and runs it once."""
    feeds = ", ".join(f"{name.split(':')[0]!r}: ..." for name in evidence.inputs)
    shapes = "\n".join(f"#   {line}" for line in evidence.inputs)
    return (
        "# pip install onnxruntime\n"
        "import onnxruntime\n\n"
        'session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])\n'
        f"outputs = session.run(None, {{{feeds}}})  # NumPy arrays:\n{shapes}\n"
    )
