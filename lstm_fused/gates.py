"""`inspect`: gates and cell state of every step, taken from what the forward pass saves for backward."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import TorchDispatchMode

from lstm_fused.autograd.operators import forward_op
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

    def sequence(self, index: int, length: int | None = None, *, batch_first: bool = False) -> "Gates":
        """Cut one sequence out of a batch, as (T, H).

        Args:
            index: its row in the batch.
            length: its valid steps; None for all.
            batch_first: whether the module was batch-first.

        Raises:
            ArgumentError: these are not the gates of a batch.
        """
        if self.c.dim() != 3:
            raise bad("gates", "those of a batch, of 3 dimensions", f"shape {tuple(self.c.shape)}")
        return Gates(*(value.select(0 if batch_first else 1, index)[:length] for value in self))


@torch.no_grad()
def inspect(module: nn.Module, /, *args: Any, **kwargs: Any) -> dict[str, Gates]:
    """Run a module without gradients and return its gates and cell states, zero past a length.

    Args:
        module: an `lstm_fused.LSTM`, or a model that holds some, with any engine; in eval mode if its LSTMs
            have dropout or zoneout.
        *args: the arguments of the call, as the module takes them; of an LSTM these are the input, hx and
            lengths.
        **kwargs: its keyword arguments.

    Returns:
        The gates of each layer and direction, by the suffix of its parameters, "l0", "l0_reverse", "l1" and
        so on; in a model with the LSTM's name before it, as in "encoder.l0". Of an LSTM that the model calls
        several times, those of the last call; of one that it does not call, none.

    Raises:
        ArgumentError: the module neither is nor holds an `lstm_fused.LSTM`, or an LSTM would draw dropout or
            zoneout or is given a PackedSequence, or an argument has the wrong rank, size, dtype, device or
            value.

    Examples:
        >>> model = lstm_fused.SequenceClassifier(28, hidden_size=64, num_layers=1, num_classes=10)
        >>> gates = inspect(model, torch.randn(3, 50, 28))["lstm.l0"]
        >>> gates.f.shape, gates.sequence(2, batch_first=True).c.shape
        (torch.Size([3, 50, 64]), torch.Size([50, 64]))
    """
    layers = {}
    if isinstance(module, nn.Module):
        layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, LSTM)}
    if not layers:
        expected = "an lstm_fused.LSTM or a model that holds one"
        raise bad_type("module", expected, type(module).__name__)
    for layer in layers.values():
        check_draws_nothing(layer)
    found: dict[str, Gates] = {}
    with ExitStack() as stack:
        run = stack.enter_context(Saving())
        for name, layer in layers.items():
            recorder = Recorder(f"{name}." if name else "", run, found)
            for hook in (
                layer.register_forward_pre_hook(recorder.before, with_kwargs=True),
                layer.register_forward_hook(recorder.after, with_kwargs=True),
            ):
                stack.callback(hook.remove)
        module(*args, **kwargs)
    return found


def check_draws_nothing(module: LSTM) -> None:
    """Check that this call of a module draws no dropout or zoneout."""
    rates = {name: getattr(module, name) for name in ("recurrent_dropout", "zoneout_h", "zoneout_c")}
    rates["dropout"] = module.dropout if module.num_layers > 1 else 0.0
    random = ", ".join(f"{name}={rate}" for name, rate in rates.items() if rate)
    if module.training and random:
        raise bad("module", "eval mode", f"training mode with {random}")


class Recorder:
    """The hooks of one LSTM: they take what its layers saved.

    Args:
        prefix: prefix of its names in the result.
        run: the dispatch mode that collects what is saved.
        found: the result, to which each call adds.
    """

    def __init__(self, prefix: str, run: "Saving", found: dict[str, Gates]) -> None:
        self.prefix, self.run, self.found = prefix, run, found

    def before(self, module: LSTM, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forget what was saved before this call."""
        input, _ = arguments(*args, **kwargs)
        if isinstance(input, PackedSequence):
            raise bad("input", "a padded tensor, with lengths", "a PackedSequence")
        self.run.saved.clear()

    def after(self, module: LSTM, args: tuple[Any, ...], kwargs: dict[str, Any], _: object) -> None:
        """Take the gates of this call, in the layout of its input."""
        input, lengths = arguments(*args, **kwargs)

        def arranged(steps: Tensor) -> Tensor:
            if lengths is not None:
                steps = steps.masked_fill(~is_valid(lengths.to(steps.device), len(steps)), 0)
            if input.dim() == 2:
                return steps.squeeze(1)
            return steps.transpose(0, 1) if module.batch_first else steps

        names = [suffix for layer in range(module.num_layers) for suffix in module._suffixes(layer)]
        for name, (c, gates) in zip(names, self.run.saved, strict=True):
            self.found[self.prefix + name] = Gates(*map(arranged, (*gates.chunk(4, dim=-1), c)))


def arguments(input: Any, hx: object = None, lengths: Tensor | None = None) -> tuple[Any, Tensor | None]:
    """The input and the lengths of a call of `LSTM`."""
    return input, lengths


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
