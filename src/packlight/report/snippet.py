"""Five lines that run the result."""

from __future__ import annotations

from packlight.measure.evidence import Evidence
from packlight.report.visible import visible


def how_to_run(evidence: Evidence) -> str:
    """A Python snippet that loads model.onnx with onnxruntime and runs it once."""
    # "input:0: float32[1, 3]": a name may hold a colon, and what else its author liked.
    feeds = ", ".join(f"{line.rsplit(': ', 1)[0]!r}: ..." for line in evidence.inputs)
    shapes = "\n".join(f"#   {visible(line)}" for line in evidence.inputs)
    return (
        "# pip install onnxruntime\n"
        "import onnxruntime\n\n"
        'session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])\n'
        f"outputs = session.run(None, {{{feeds}}})  # NumPy arrays:\n{shapes}\n"
    )
