"""A fused peephole LSTM for PyTorch: exact, differentiable, a drop-in for torch.nn.LSTM."""

from importlib import import_module
from importlib.metadata import version
from types import ModuleType

from lstm_fused.backends.choice import Choice
from lstm_fused.backends.table import engines
from lstm_fused.errors import ArgumentError, SlowEngineWarning
from lstm_fused.functional import lstm
from lstm_fused.gates import Gates, inspect
from lstm_fused.interop import torch_onnx
from lstm_fused.interop.replace import Report, replace, replacing, restore
from lstm_fused.layers.cell import LSTMCell
from lstm_fused.layers.classifier import SequenceClassifier
from lstm_fused.layers.lstm import LSTM
from lstm_fused.on_import import after_import

__all__ = [
    "LSTM",
    "ArgumentError",
    "Choice",
    "Gates",
    "LSTMCell",
    "Report",
    "SequenceClassifier",
    "SlowEngineWarning",
    "engines",
    "inspect",
    "lstm",
    "replace",
    "replacing",
    "restore",
]
__version__ = version("lstm_fused")
after_import("torch.onnx", torch_onnx.register)  # its import takes longer than that of this package


def __getattr__(name: str) -> ModuleType:
    """Import the modules that need an optional package, or that few need, on first use."""
    if name in ("onnx", "plot", "testing"):
        return import_module(f"lstm_fused.{name}")
    raise AttributeError(f"module 'lstm_fused' has no attribute {name!r}")
