"""`SequenceClassifier`: classifies a sequence from the LSTM's output at its last valid step."""

from torch import Tensor, nn

from lstm_fused.layers.lstm import LSTM
from lstm_fused.layers.options import size


class SequenceClassifier(nn.Module):
    """An LSTM, then a linear head on the last layer's output at the last valid step.

    Args:
        input_size: features of each step, I.
        hidden_size: cells of each layer, H.
        num_layers: layers of the LSTM.
        num_classes: number of classes, C.
        dropout: probability of zeroing an output between layers while training.
        peephole: whether the gates see the cell state.
        engine: as for `lstm_fused.LSTM`.

    Raises:
        ArgumentError: as for `lstm_fused.LSTM`, or num_classes is not a positive integer.

    Examples:
        >>> model = SequenceClassifier(28, hidden_size=64, num_layers=1, num_classes=10)
        >>> model(torch.randn(3, 50, 28), lengths=torch.tensor([50, 7, 23])).shape
        torch.Size([3, 10])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        num_classes: int,
        *,
        dropout: float = 0.0,
        peephole: bool = True,
        engine: str | None = None,
    ) -> None:
        super().__init__()
        classes = size("num_classes", num_classes)
        self.lstm = LSTM(
            input_size,
            hidden_size,
            num_layers,
            batch_first=True,
            dropout=dropout,
            peephole=peephole,
            engine=engine,
        )
        self.head = nn.Linear(self.lstm.hidden_size, classes)

    def forward(self, input: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Score every class.

        Args:
            input: the sequences, (B, T, I), or one sequence (T, I).
            lengths: valid steps of each sequence, integers of shape (B,); all T by default.

        Returns:
            The logits, (B, C), or (C,) for one sequence.

        Raises:
            ArgumentError: an argument has the wrong rank, size, dtype, device or value.
        """
        _, (h_n, _) = self.lstm(input, lengths=lengths)
        logits: Tensor = self.head(h_n[-1])
        return logits
