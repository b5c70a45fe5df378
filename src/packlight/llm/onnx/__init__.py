"""A decoder as an ONNX graph with a key/value cache, for onnxruntime."""
