"""ONNX graphs as LiteRT files (.tflite), operator by operator."""
