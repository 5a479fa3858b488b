"""The public name of `lstm_fused.interop.onnx`: reads and writes ONNX files."""

from lstm_fused.interop.onnx import export, from_onnx
from lstm_fused.interop.torch_onnx import translation_table

__all__ = ["export", "from_onnx", "translation_table"]
