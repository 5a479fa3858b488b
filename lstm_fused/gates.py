"""`inspect`: gates and cell state of every step, taken from what the forward pass saves for backward."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import TorchDispatchMode

from lstm_fused.autograd.operators import forward_op
from lstm_fused.checks import States
from lstm_fused.contract import SAVE
from lstm_fused.errors import bad, bad_type
from lstm_fused.layers.lstm import LSTM
from lstm_fused.reference import is_valid


class Gates(NamedTuple):
    """The gates and the cell state of one layer in one direction at each step.

    Each has the layout of the module's input with H features: (T, B, H), (B, T, H) or (T, H). The equations
    are those of `lstm_fused.reference`.
    """

    i: Tensor  # share of g that is let in, 0 to 1
    f: Tensor  # share of the cell state that is kept, 0 to 1
    g: Tensor  # candidate, -1 to 1
    o: Tensor  # share of tanh(c) that is shown, 0 to 1
    c: Tensor  # cell state; in bfloat16 from the C++ engine, else float32 at least


@torch.no_grad()
def inspect(
    module: LSTM, input: Tensor, hx: States | None = None, lengths: Tensor | None = None
) -> dict[str, Gates]:
    """Run a module without gradients and return its gates and cell states, zero past a length.

    Args:
        module: the module, with any engine; in eval mode if it has dropout or zoneout.
        input: (T, B, I), or (B, T, I) with batch_first, or one sequence (T, I).
        hx: initial states, as the module takes them.
        lengths: valid steps of each sequence, as the module takes them.

    Returns:
        The gates of each layer and direction, by the suffix of its parameters: "l0", "l0_reverse", "l1" and
        so on.

    Raises:
        ArgumentError: the module is not an `lstm_fused.LSTM`, or would draw dropout or zoneout, or an
            argument has the wrong rank, size, dtype, device or value.
    """
    if not isinstance(module, LSTM):
        raise bad_type("module", "an lstm_fused.LSTM", type(module).__name__)
    rates = {name: getattr(module, name) for name in ("recurrent_dropout", "zoneout_h", "zoneout_c")}
    rates["dropout"] = module.dropout if module.num_layers > 1 else 0.0
    random = ", ".join(f"{name}={rate}" for name, rate in rates.items() if rate)
    if module.training and random:
        raise bad("module", "eval mode", f"training mode with {random}")
    if isinstance(input, PackedSequence):
        raise bad("input", "a padded tensor, with lengths", "a PackedSequence")
    with Saving() as run:
        module(input, hx, lengths)

    def arranged(steps: Tensor) -> Tensor:
        if lengths is not None:
            steps = steps.masked_fill(~is_valid(lengths.to(steps.device), len(steps)), 0)
        return (
            steps.squeeze(1) if input.dim() == 2 else steps.transpose(0, 1) if module.batch_first else steps
        )

    names = [suffix for layer in range(module.num_layers) for suffix in module._suffixes(layer)]
    return {
        name: Gates(*map(arranged, (*gates.chunk(4, dim=-1), c)))
        for name, (c, gates) in zip(names, run.saved, strict=True)
    }


class Saving(TorchDispatchMode):
    """Dispatch mode that runs every forward operator with save=True and collects cell states and gates."""

    def __init__(self) -> None:
        super().__init__()
        self.saved: list[tuple[Tensor, Tensor]] = []  # c [T, B, H], gates [T, B, 4H]

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operator, with save=True if it is a forward operator."""
        if func not in forward_op.values():
            return func(*args, **(kwargs or {}))
        out = func(*args[:SAVE], True, *args[SAVE + 1 :])
        self.saved.append((out[3], out[4]))
        return out
