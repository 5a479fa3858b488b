"""Conversion from and to other libraries and ONNX files."""
