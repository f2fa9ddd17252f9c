"""The ONNX graphs of a bundle."""
