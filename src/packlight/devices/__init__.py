"""The compressed model in the file formats of other runtimes than onnxruntime."""
