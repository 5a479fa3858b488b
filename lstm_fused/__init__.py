"""A fused peephole LSTM for PyTorch: exact, differentiable, a drop-in for torch.nn.LSTM."""

from importlib.metadata import version

from lstm_fused.backends import engines
from lstm_fused.cell import LSTMCell
from lstm_fused.classifier import SequenceClassifier
from lstm_fused.functional import lstm
from lstm_fused.module import LSTM

__all__ = ["LSTM", "LSTMCell", "SequenceClassifier", "engines", "lstm"]
__version__ = version("lstm_fused")
