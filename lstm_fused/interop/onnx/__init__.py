"""ONNX files with the standard LSTM operator, including peepholes; needs the package onnx."""

try:
    import onnx  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "lstm_fused.onnx needs the package onnx: pip install 'lstm_fused[onnx]'", name=error.name
    ) from error

from lstm_fused.interop.onnx.reader import from_onnx
from lstm_fused.interop.onnx.writer import export

__all__ = ["export", "from_onnx"]
