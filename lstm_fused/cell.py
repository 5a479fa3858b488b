"""`LSTMCell`: one step at a time, by the same engines."""

import math

import torch
from torch import Tensor, nn

from lstm_fused.checks import States, check_input, check_parameters, check_sizes, check_states
from lstm_fused.functional import run_layer


class LSTMCell(nn.Module):
    """A drop-in for `torch.nn.LSTMCell` whose gates see the cell state through a peephole.

    The equations stand in `lstm_fused.reference`. Parameters are those of torch.nn.LSTMCell, and
    ``weight_peephole`` of shape (3 * hidden_size,), ordered p_i, p_f, p_o; all start uniform in
    ±1/sqrt(hidden_size).

    Args:
        input_size: features of the input, I.
        hidden_size: cells, H.
        bias: whether to add bias_ih and bias_hh.
        device: where the parameters are made.
        dtype: what they are made of, a floating-point dtype.
        peephole: whether the gates see the cell state.
        engine: as for `lstm_fused.LSTM`.

    Raises:
        ValueError: a size is not a positive integer.
    """

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    weight_peephole: Tensor | None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        peephole: bool = True,
        engine: str | None = None,
    ) -> None:
        super().__init__()
        check_sizes(input_size, hidden_size, num_layers=1, dropout=0.0, proj_size=0, bidirectional=False)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bias
        self.peephole = peephole
        self.engine = engine
        H = hidden_size
        shapes = {
            "weight_ih": (4 * H, input_size),
            "weight_hh": (4 * H, H),
            "bias_ih": (4 * H,) if bias else None,
            "bias_hh": (4 * H,) if bias else None,
            "weight_peephole": (3 * H,) if peephole else None,
        }
        for name, shape in shapes.items():
            made = None if shape is None else nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
            self.register_parameter(name, made)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every parameter uniformly from ±1/sqrt(hidden_size)."""
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, input: Tensor, hx: States | None = None) -> States:
        """Take one step.

        Args:
            input: (B, I), or (I,) for one sequence.
            hx: the states before, h and c of shape (B, H) each, or (H,); zeros by default.

        Returns:
            The states after, h and c, shaped as hx.

        Raises:
            ValueError: an argument has the wrong rank, size, dtype or device.
            RuntimeError: the engine cannot serve this device or dtype; the message says why.
        """
        check_input(input, (1, 2), "of 1 dimension (input_size,) or 2 (B, input_size)", self.input_size)
        single = input.dim() == 1
        if hx is not None:
            shape = (*input.shape[:-1], self.hidden_size)
            meaning = "(hidden_size,)" if single else "(B, hidden_size)"
            check_states(hx, (shape, shape), (meaning, meaning), input)
            if single:
                hx = hx[0].unsqueeze(0), hx[1].unsqueeze(0)
        check_parameters(self.named_parameters(), input)
        _, (h, c) = run_layer(
            input[None, None] if single else input[None],
            self.weight_ih,
            self.weight_hh,
            self.bias_ih,
            self.bias_hh,
            self.weight_peephole,
            weight_hr=None,
            hx=hx,
            lengths=None,
            reverse=False,
            engine=self.engine,
        )
        return (h.squeeze(0), c.squeeze(0)) if single else (h, c)

    def extra_repr(self) -> str:
        """The sizes, and the options that differ from their defaults."""
        defaults = {"bias": True, "peephole": True, "engine": None}
        options = [f"{k}={getattr(self, k)!r}" for k, v in defaults.items() if getattr(self, k) != v]
        return ", ".join([f"{self.input_size}, {self.hidden_size}", *options])
