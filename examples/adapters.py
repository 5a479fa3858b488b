"""The LSTM in libraries that call or treat torch.nn.LSTM in ways of their own: see docs/replace.md.

Each class or function is a recipe to copy. tests/test_adapters.py runs them without the libraries, and
`make test-clients` inside them.
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils.rnn import PackedSequence

import lstm_fused
from lstm_fused.checks import States


class ForecastingLSTM(lstm_fused.LSTM):
    """The LSTM that pytorch-forecasting's models call, with lengths that may be zero and in any order.

    ``model.rnn = ForecastingLSTM.of(model.rnn)`` puts it into a DeepAR or RecurrentNetwork.
    """

    @classmethod
    def of(cls, theirs: nn.LSTM) -> "ForecastingLSTM":
        """Copy theirs, a subclass of torch.nn.LSTM with a forward of its own; peepholes start at zero."""
        sizes = "input_size", "hidden_size", "proj_size", "num_layers"
        names = *sizes, "bias", "batch_first", "dropout", "bidirectional"
        ours = cls(**{name: getattr(theirs, name) for name in names})
        ours.load_state_dict(theirs.state_dict(), strict=False)
        return ours.to(theirs.get_parameter("weight_hh_l0")).train(theirs.training)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: States | None = None,
        lengths: Tensor | None = None,
        enforce_sorted: bool = True,  # no order is needed
    ) -> tuple[Tensor | PackedSequence, States]:
        """Run over sequences; those of length 0 keep their states."""
        return super().forward(input, hx, lengths)

    def init_hidden_state(self, x: Tensor) -> States:
        """Zero states for a batch."""
        B = x.shape[0] if self.batch_first else x.shape[1]
        rows, P = self.num_layers * self.num_directions, self.proj_size or self.hidden_size
        return x.new_zeros(rows, B, P), x.new_zeros(rows, B, self.hidden_size)

    def repeat_interleave(self, hidden_state: States, n_samples: int) -> States:
        """Repeat the states of each sequence."""
        h, c = (state.repeat_interleave(n_samples, 1) for state in hidden_state)
        return h, c


class MaskedLSTM(lstm_fused.LSTM):
    """The LSTM for torchrl's LSTMModule, which passes the valid steps of each sequence as a mask (B, T).

    ``LSTMModule(lstm=MaskedLSTM(64, 128, batch_first=True), in_key="x", out_key="y")``
    """

    def forward(  # type: ignore[override]
        self, input: Tensor, hx: States | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor | PackedSequence, States]:
        """Run over sequences whose valid steps come first."""
        return super().forward(input, hx, None if mask is None else mask.sum(-1))


def per_sample_gradients(
    layer: nn.Module, activations: Iterable[Tensor], backprops: Tensor
) -> dict[nn.Parameter, Tensor]:
    """The gradients of each sample, for Opacus.

    ``opacus.grad_sample.register_grad_sampler(lstm_fused.LSTM)(per_sample_gradients)`` makes GradSampleModule
    and PrivacyEngine use it. The loss may depend on the outputs y, not on h_n and c_n, because Opacus passes
    on the gradient of the first output only.

    Args:
        layer: the LSTM.
        activations: its input (B, T, I).
        backprops: the gradient of y, (B, T, H).

    Returns:
        For each trainable parameter its gradients, (B, ...).
    """
    bare = Bare(layer)
    parameters: dict[str, Any] = {name: p for name, p in bare.named_parameters() if p.requires_grad}

    def loss(values: dict[str, Tensor], x: Tensor, dy: Tensor) -> Tensor:
        y: Tensor = functional_call(bare, values, (x,))  # one sequence without a batch, (T, I)
        return (y * dy).sum()

    (x,) = activations
    gradients = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")(parameters, x, backprops)
    return {parameters[name]: gradient for name, gradient in gradients.items()}


class Bare(nn.Module):
    """A layer without its hooks, which are those of Opacus and take parameters only."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """The layer's outputs."""
        y: Tensor = self.layer.forward(x)[0]
        return y
