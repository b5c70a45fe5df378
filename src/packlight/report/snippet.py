"""A few lines that run the result."""

from __future__ import annotations

from packlight.measure.evidence import Evidence
from packlight.report.visible import visible

_IN_OWN_RUNTIME = {
    "openvino": (
        "\n# pip install openvino\nimport openvino\n\n"
        'outputs = openvino.compile_model("model.xml", "CPU")(FEEDS)\n'
    ),
    "litert": (
        "\n# pip install ai-edge-litert\nfrom ai_edge_litert.interpreter import Interpreter\n\n"
        'run = Interpreter("model.tflite").get_signature_runner()\n'
        "outputs = run(**FEEDS)  # one sample\n"
    ),
    "executorch": (
        "\n# pip install executorch\nimport executorch.kernels.quantized\n"
        "from executorch.runtime import Runtime\n\n"
        'method = Runtime.get().load_program("model.pte").load_method("forward")\n'
        "outputs = method.execute([...])  # tensors of one sample, in the order above\n"
    ),
    "coreml": (
        "\n# On a Mac, with model.mlpackage.zip unpacked: pip install coremltools\n"
        "import coremltools\n\n"
        'model = coremltools.models.MLModel("model.mlpackage")\n'
        "outputs = model.predict(FEEDS)  # one sample\n"
    ),
}
"""By target: FEEDS stands for the inputs."""


def how_to_run(evidence: Evidence) -> str:
    """A Python snippet that loads model.onnx with onnxruntime and runs it once.

    Where the target has a file of its own, that one too, in its runtime.
    """
    # "input:0: float32[1, 3]": a name may hold a colon, and what else its author liked.
    feeds = ", ".join(f"{line.rsplit(': ', 1)[0]!r}: ..." for line in evidence.inputs)
    shapes = "\n".join(f"#   {visible(line)}" for line in evidence.inputs)
    device = evidence.device_file
    own = "" if device is None or not device.files else _IN_OWN_RUNTIME.get(evidence.target, "")
    return (
        "# pip install onnxruntime\n"
        "import onnxruntime\n\n"
        'session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])\n'
        f"outputs = session.run(None, {{{feeds}}})  # NumPy arrays:\n{shapes}\n"
        + own.replace("FEEDS", f"{{{feeds}}}")
    )
