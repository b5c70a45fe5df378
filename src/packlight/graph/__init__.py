"""The ONNX wing: loading, looking at and rewriting graphs."""
